"""The definition of batch norm in float64, from elementary torch operators, and what may differ."""

from __future__ import annotations

import torch
from torch import Tensor

HALVES = (torch.bfloat16, torch.float16)


def normalised(x: Tensor, mean: Tensor | None, var: Tensor | None, eps: float) -> Tensor:
    r"""Return :math:`(x - \mu) / \sqrt{v + \epsilon}` for (N, C, *), by the batch if no statistics.

    The batch's variance is the biased one (Ioffe & Szegedy 2015, algorithm 1).
    """
    if mean is None or var is None:
        var, mean = moments(x, unbiased=False)
    shape = (1, -1, *[1] * (x.dim() - 2))
    return (x - mean.view(shape)) / (var.view(shape) + eps).sqrt()


def definition(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
) -> Tensor:
    """Return γ x̂ + β; see :func:`normalised`."""
    y = normalised(x, mean, var, eps)
    shape = (1, -1, *[1] * (x.dim() - 2))
    if weight is not None:
        y = y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


def moments(x: Tensor, *, unbiased: bool) -> tuple[Tensor, Tensor]:
    """Return variance and mean of each channel, (C,), over all other axes."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    return torch.var_mean(x, axes, correction=int(unbiased))


def tolerance(dtype: torch.dtype) -> float:
    """Return the allowed relative error: 128 roundings, 2 for 16-bit floats, 0 for integers.

    A 16-bit layer computes in float32 and rounds the result, so its error is that rounding's.
    """
    if not dtype.is_floating_point:
        return 0.0
    return torch.finfo(dtype).eps * (2 if dtype in HALVES else 128)
