"""Batch norm fused with what follows it on the CPU, compiled by Numba; see ``registry.Kernel``.

This is the door: :func:`refusal` tells which calls the compiled loops serve, and why not the
others. The loops see addresses and sizes only, so nothing may pass that it has not seen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gammabeta.moments import Array
from gammabeta.norm.activation import Epilogue
from gammabeta.norm.kernels import forked as forked
from gammabeta.norm.kernels import layout
from gammabeta.norm.kernels.tracing import watched

_log = logging.getLogger("gammabeta")
_DTYPES = (torch.float32, torch.bfloat16)
_PLAIN = (Tensor, torch.nn.Parameter)
_NO_EPS = 1e-300
"""An ε that is lost beside any variance, and stands in for one of nought."""
_COMMUTING = (None, "relu")
"""Activations before which a kernel may pool."""


def train(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    epilogue: Epilogue,
    running: tuple[Tensor, Tensor, float, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Normalise with the batch's own statistics; see ``registry.Kernel``."""
    if running is not None and not _may_move(running, x):
        running = None
    done = _run(x, weight, bias, residual, (None, None), eps, epilogue, running)
    if running is not None and not running[0].is_inference():
        mean, var, _, batches = running
        written = (mean, var) if batches is None else (mean, var, batches)
        torch.autograd.graph.increment_version(written)
    return done


def _may_move(running: tuple[Tensor, Tensor, float, Tensor | None], x: Tensor) -> bool:
    """Tell whether the compiled code may write the running statistics, and count."""
    mean, var, _, batches = running
    size = x.shape[1:2]
    if torch.compiler.is_compiling() or not (_is_own(mean, size) and _is_own(var, size)):
        return False
    return mean.is_inference() == var.is_inference() and (
        batches is None
        or (
            batches.dtype == torch.int64
            and batches.numel() == 1
            and batches.is_cpu
            and _is_plain(batches)
            and batches.is_inference() == mean.is_inference()
        )
    )


def _is_own(vector: Tensor, size: torch.Size) -> bool:
    plain = _is_channel_vector(vector, size, torch.float32) and vector.is_contiguous()
    return plain and layout.resolved(vector) is vector


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
    return _run(x, weight, bias, residual, (mean, var), eps, epilogue)[0]


def measure(x: Tensor) -> tuple[Array, Array]:
    """Return mean and biased variance, float64 (C,), of what :func:`refusal` does not refuse."""
    from gammabeta.norm.kernels import fused
    from gammabeta.norm.kernels.program import plan_of

    plan = plan_of(x.dtype, layout.of(x) or "planes", "identity", 0.01, 0, _NO_EPS)
    mean, inverse = fused.measure(plan, x.detach()).numpy()
    with np.errstate(divide="ignore"):  # of what overflowed, 1 / σ is nought
        return mean, inverse**-2.0 - _NO_EPS


def refusal(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    stats: tuple[Tensor, ...] = (),
) -> str | None:
    """Return why the kernels do not serve a call, or None if they do."""
    reason = _input_refusal(x)
    if reason is not None:
        return reason
    if residual is not None:
        if residual.shape != x.shape or residual.dtype != x.dtype:
            return f"the residual is {residual.dtype} {tuple(residual.shape)}"
        if not (residual.is_cpu and _is_plain(residual)):
            return f"the residual is a {type(residual).__name__} on {residual.device}"
    size = x.shape[1:2]
    for vector in (weight, bias, *stats):
        if vector is not None and not _is_channel_vector(vector, size, x.dtype):
            return f"a parameter is {vector.dtype} {tuple(vector.shape)} on {vector.device}"
    return None


def _input_refusal(x: Tensor) -> str | None:
    if not x.is_cpu:
        return f"the input is on {x.device}"
    if x.dtype not in _DTYPES:
        return f"the input is {x.dtype}, not float32 or bfloat16"
    if not _is_plain(x):
        return f"the input is a {type(x).__name__}, not a plain tensor"
    if watched():
        return "the call is recorded, transformed or watched"
    if x.numel() == 0 or layout.of(x) is None:
        return f"the memory of the input {tuple(x.shape)}, strides {x.stride()}, is not dense"
    missing: str | None = unavailable()  # last: tracing changes what Numba would import
    return missing


def _is_plain(x: Tensor) -> bool:
    """Tell whether a tensor is its own memory, and no wrapper around others."""
    if type(x) in _PLAIN and x.layout == torch.strided:
        return True
    return torch.compiler.is_compiling()


def _is_channel_vector(vector: Tensor, size: torch.Size, dtype: torch.dtype) -> bool:
    return (
        (vector.dtype == torch.float32 or vector.dtype == dtype)
        and vector.shape == size
        and vector.is_cpu
        and _is_plain(vector)
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def unavailable() -> str | None:
    """Return why there are no compiled kernels in this process, or None."""
    function = _function()
    return function if isinstance(function, str) else None


@cache
def _function() -> Callable[..., tuple[Tensor, Tensor | None, Tensor | None]] | str:
    """Return what computes, or, having said so, why Numba cannot: gammabeta works without it."""
    try:
        return _compiled()
    except Exception as error:  # noqa: BLE001 (an installation can be broken in any way)
        first = (str(error).splitlines() or [""])[0]
        reason = f"Numba cannot be used ({type(error).__name__}: {first})"
    _log.warning("no compiled CPU kernels, torch's own operators serve instead: %s", reason)
    return reason


def _compiled() -> Callable[..., tuple[Tensor, Tensor | None, Tensor | None]]:
    """Import what needs Numba, and have it compile the loop that every call needs."""
    import numba

    if numba.config.DISABLE_JIT:
        raise ImportError("NUMBA_DISABLE_JIT is set")
    from gammabeta.norm.kernels import operator as operator  # registers it
    from gammabeta.norm.kernels.autograd import fused_batch_norm
    from gammabeta.norm.kernels.native.launch import conductor

    conductor()
    return fused_batch_norm


def _run(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    given: tuple[Tensor | None, Tensor | None],
    eps: float,
    epilogue: Epilogue,
    running: tuple[Tensor, Tensor, float, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    lie = layout.of(x)
    pool = epilogue.pool if _pools(x, lie, residual, epilogue) else None
    options = eps, _name(epilogue), epilogue.negative_slope, pool or 0
    if bias is not None and not bias.is_leaf:
        bias = bias.clone()  # its history is needed as it is now, whatever is done to it later
    if torch.compiler.is_compiling():
        recorded = torch.ops.gammabeta.batch_norm
        y, mean, var, *_ = recorded(x, weight, bias, residual, *given, *options)
    else:
        call: Any = _function()
        y, mean, var = call(x, weight, bias, residual, *given, lie, *options, running)
    return (y if pool == epilogue.pool else epilogue.pool_only(y)), mean, var


def _pools(x: Tensor, lie: str | None, residual: Tensor | None, epilogue: Epilogue) -> bool:
    """Tell whether a kernel pools as well: channels-last, with nothing in between but a ReLU."""
    return (
        epilogue.pool is not None
        and lie == "rows"
        and residual is None
        and epilogue.activation in _COMMUTING
        and min(x.shape[2:]) >= (2 if epilogue.pool == 2 else 1)
    )


def _name(epilogue: Epilogue) -> str:
    if epilogue.activation == "gelu" and epilogue.approximate == "tanh":
        return "gelu_tanh"
    return epilogue.activation or "identity"
