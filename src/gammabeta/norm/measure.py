"""The moments of each channel of a tensor, measured as fast as it can be read.

What batch norm's own kernels sum on their way (float32 sums over short blocks about a shift, merged
in float64) is here an end in itself. Where they do not serve, torch measures in float64.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from gammabeta.errors import GammabetaError
from gammabeta.moments import Array, Moments
from gammabeta.norm.kernels import cpu

_CHUNK = 1 << 22
"""Values converted to float64 at a time: 32 MiB."""


def channel_moments(x: Tensor) -> Moments:
    """Measure a tensor, on any device and in any real dtype and memory layout.

    Args:
        x: (N, C, *). Left unchanged.

    Returns:
        Its moments; NaN or infinite in the channels that hold such values, and only there.

    Raises:
        GammabetaError: If x has fewer than two axes.

    Example:
        >>> found = channel_moments(torch.tensor([[1.0, 10.0], [3.0, 10.0]]))
        >>> found.count, found.mean, found.var
        (2, array([ 2., 10.]), array([1., 0.]))
    """
    if x.dim() < 2:
        raise GammabetaError(f"moments need values of shape (N, C, ...), not {tuple(x.shape)}")
    if x.numel() == 0:
        return Moments.empty(x.shape[1])
    if cpu.refusal(x, None, None, None) is None:
        found = _moments(x, *cpu.measure(x))
        if is_finite(found):
            return found  # squares of what float32 holds may exceed float32: look again
    per_sample = max(x.numel() // len(x), 1)
    parts = x.detach().split(max(_CHUNK // per_sample, 1))
    return Moments.merge_all(_measure(part) for part in parts)


def _measure(x: Tensor) -> Moments:
    axes = [0, *range(2, x.dim())]
    var, mean = torch.var_mean(x.double(), axes, correction=0)
    return _moments(x, mean.cpu().numpy(), var.cpu().numpy())


def _moments(x: Tensor, mean: Array, var: Array) -> Moments:
    count = x.numel() // x.shape[1]
    return Moments(count, mean, np.maximum(var, 0) * count)


def is_finite(moments: Moments) -> bool:
    """Tell whether no channel held NaN or infinity: a mean that is not finite has no finite M2."""
    return math.isfinite(moments.m2.sum())
