"""Batch norm from torch's own operators, on every device, differentiable to any order.

On CUDA this is cuDNN. On the CPU torch sums float32 channels-last data in float32 about zero, and
applies the result as ``x * a + b``: with a mean of 1e6 and a standard deviation of 1 the variance
is hundreds of times too large, and even exact statistics would drown in the rounding of ``b``.
Batch norm does not change when a constant is added to a channel, so such channels are first moved
near zero, which is exact or nearly so in floating point.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from gammabeta.norm.activation import Epilogue
from gammabeta.norm.kernels.tracing import recorded, transformed

_FAR = 16.0
"""A channel is moved if its mean is this many standard deviations from zero: 4 bits are lost."""
_PROBED = 32
"""Values a channel from which that is guessed; a wrong guess costs time or bits, nothing else."""


def train(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    epilogue: Epilogue,
    running: object = None,  # noqa: ARG001 (left to the caller)
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise with the batch's own statistics; see ``registry.Kernel``."""
    if _differentiated_beyond_torch() and x.numel():
        y, mean, var = by_operators(x, weight, bias, eps)
        return epilogue(y, residual), mean, var
    shift = _probe(x)
    if shift is not None:
        x = x - per_channel(shift, x)
    mean = x.new_zeros(x.shape[1], dtype=statistics_dtype(x, weight))
    var = torch.zeros_like(mean)
    # With momentum 1 torch writes the batch's statistics into these two and nowhere else, so that
    # no buffer of a layer is part of the graph: another process may overwrite them before backward.
    y = F.batch_norm(x, mean, var, weight, bias, True, 1.0, eps)
    if shift is not None:
        mean = mean + shift
    return epilogue(y, residual), mean, var


def infer(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    epilogue: Epilogue,
) -> Tensor:
    """Normalise with given statistics; see ``registry.Kernel``."""
    if torch.is_grad_enabled() and not _traced(x):
        mean, var = mean.clone(), var.clone()  # torch would keep the buffers for backward
    if _may_look(x) and _may_look(mean):
        far = (mean.abs() > _FAR * (var + eps).sqrt()) & mean.isfinite()
        if far.any():
            shift = torch.where(far, mean, 0.0)
            x, mean = x - per_channel(shift, x), mean - shift
    return epilogue(F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), residual)


def by_operators(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise as ``train`` does, with operators that have derivatives of every order.

    Torch's batch norm has two, and its tangent in forward mode has none that is right: mean and
    deviation count as constants in it.

    Args:
        x: (N, C, *), not empty. Half precision is computed in float32.
        weight: (C,) or None.
        bias: (C,) or None.
        eps: Added to the variance.

    Returns:
        The output, and the batch's mean and unbiased variance, without a gradient.
    """
    wide = x.float() if x.dtype in {torch.bfloat16, torch.float16} else x
    axes, count = [0, *range(2, x.dim())], x.numel() // x.shape[1]
    var, mean = torch.var_mean(wide, axes, correction=0)
    scale = (var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    y = (wide - per_channel(mean, x)) * per_channel(scale, x)
    y = y if bias is None else y + per_channel(bias, x)
    dtype = statistics_dtype(x, weight)
    unbiased = var.detach() * (count / max(count - 1, 1))
    return y.to(x.dtype), mean.detach().to(dtype), unbiased.to(dtype)


def _differentiated_beyond_torch() -> bool:
    """Tell whether torch.func may ask for a derivative that torch's batch norm has not."""
    if not transformed():
        return not torch.compiler.is_compiling() and forward_ad._current_level >= 0
    if torch.compiler.is_compiling():  # which cannot see the whole stack
        return True
    functorch = torch._C._functorch
    kinds = [level.key() for level in functorch.get_interpreter_stack()]
    return functorch.TransformType.Jvp in kinds or kinds.count(functorch.TransformType.Grad) > 1


def statistics_dtype(x: Tensor, weight: Tensor | None) -> torch.dtype:
    """Return the dtype of statistics: the parameters', float32 for half-precision data."""
    if weight is not None:
        return weight.dtype
    return torch.float32 if x.dtype in {torch.bfloat16, torch.float16} else x.dtype


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Return (C,) values in a shape that broadcasts against x, (N, C, *)."""
    return values.view(1, -1, *[1] * (x.dim() - 2))


def _probe(x: Tensor) -> Tensor | None:
    """Return a value near the mean for each channel that is far from zero, or None."""
    if not _may_look(x) or x.numel() == 0:
        return None
    some = tuple(slice(s // 2, s // 2 + 2) for s in x.shape[2:])
    probe = x.detach()[(slice(None, None, -(-x.shape[0] // _PROBED)), slice(None), *some)]
    var, mean = torch.var_mean(probe.transpose(0, 1).flatten(1), dim=1, correction=0)
    far = mean.abs() > _FAR * var.sqrt()
    return torch.where(far, mean, 0.0) if far.any() else None


def _may_look(x: Tensor) -> bool:
    """Tell whether values may decide what is computed: float32 on the CPU, not while tracing."""
    plain = type(x) in {Tensor, torch.nn.Parameter} and not _traced(x)
    return plain and x.dtype == torch.float32 and x.device.type == "cpu"


def _traced(x: Tensor) -> bool:
    """Tell whether the operators are recorded or transformed, to be run on other data."""
    return (
        torch.compiler.is_compiling()
        or recorded()
        or torch._C._functorch.is_functorch_wrapped_tensor(x)
    )
