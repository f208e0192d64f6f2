"""The fused kernels as an operator of torch's, one node of a compiled graph.

Called directly it would cost some 30 microseconds more than ``autograd.FusedBatchNorm``. A compiler
may hand over other memory than it was shown, and everything that it records is a tensor.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from gammabeta.norm.kernels import layout
from gammabeta.norm.kernels.autograd import compute, gradients, is_batched, like
from gammabeta.norm.kernels.composite import composite
from gammabeta.norm.kernels.library import register
from gammabeta.norm.kernels.native.variant import APART, MASKED
from gammabeta.norm.kernels.program import Plan, plan_of, pooled_size
from gammabeta.norm.kernels.tracing import watched


def _forward_operator(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    given_mean: Tensor | None,
    given_var: Tensor | None,
    *options: Any,
) -> tuple[Tensor, ...]:
    plan, x = _planned(x, *options)
    done = compute(x, weight, bias, residual, given_mean, given_var, plan)
    y, mean, var, saved, codes = done
    if given_mean is not None:  # an operator may not return what it was given
        mean, var = _copy(mean), _copy(var)
    codes = y.new_empty(0, dtype=torch.uint8) if codes is None else codes
    return cast("tuple[Tensor, ...]", (y, mean, var, saved, codes))


def _planned(
    x: Tensor, eps: float, activation: str, slope: float, pool: int
) -> tuple[Plan, Tensor]:
    """Return how to compute, and x in memory that the loops serve, whatever a compiler gave."""
    lie = layout.of(x)
    if lie is None or (pool and lie != "rows"):
        x = x.contiguous(memory_format=torch.channels_last if pool else torch.contiguous_format)
        lie = "rows" if pool else "planes"
    return plan_of(x.dtype, lie, activation, slope, pool, eps), x


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


def _backward_operator(dy: Tensor, x: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    weight, residual, saved, codes = inputs[:4]
    options, flags = inputs[4:8], inputs[8:]
    plan, x = _planned(x, *options)
    codes = codes if codes.numel() else None
    found = gradients(plan, dy, x, weight, residual, saved, codes, *flags)
    return tuple(dy.new_empty(0) if grad is None else grad for grad in found)


def _forward_shapes(x: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    residual, activation, pool = inputs[2], inputs[6], inputs[8]
    channels = x.shape[1]
    y = torch.empty_like(x)
    if pool:
        size = [pooled_size(pool, s) for s in x.shape[2:]]
        y = x.new_empty((*x.shape[:2], *size)).to(memory_format=torch.channels_last)
    coded = pool or (residual is not None and activation in MASKED)
    return (
        y,
        x.new_empty(channels, dtype=torch.float32),
        x.new_empty(channels, dtype=torch.float32),
        x.new_empty(3, channels, dtype=torch.float64),
        torch.empty_like(y, dtype=torch.uint8) if coded else x.new_empty(0, dtype=torch.uint8),
    )


def _backward_shapes(dy: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    weight = rest[0]
    added, constant, needs_x, needs_affine = rest[-4:]
    empty = dy.new_empty(0)
    affine = needs_affine or (needs_x and not constant)
    return (
        torch.empty_like(x) if needs_x else empty,
        torch.empty_like(weight) if affine and weight is not None else empty,
        x.new_empty(x.shape[1], dtype=torch.float32) if affine else dy.new_empty(0),
        torch.empty_like(x) if needs_x and added else dy.new_empty(0),
    )


def _save_recorded(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, residual, mean, _, *ctx.options = inputs
    _, _, _, saved, codes = output
    activation = ctx.options[1]
    ctx.added, ctx.constant = residual is not None, mean is not None
    kept = None if activation in APART else residual
    ctx.bias = bias
    ctx.save_for_backward(x, weight, kept, saved, codes)


def _backward_recorded(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:4]
    none = (None,) * 6  # for mean, var and the options
    if dy is None:
        return (None,) * 4 + none
    kept = x, weight, residual, saved, codes = ctx.saved_tensors
    if not torch.compiler.is_compiling() and (
        torch.is_grad_enabled() or watched() or is_batched(dy)
    ):
        ctx.plan = _planned(x, *ctx.options)[0]
        return *composite(ctx, kept, dy, create_graph=torch.is_grad_enabled()), *none
    flags = ctx.added, ctx.constant, needs[0] or needs[3], needs[1] or needs[2]
    saved_for = x, weight, residual, saved, codes
    run = torch.ops.gammabeta.batch_norm_backward
    found = run(dy, *saved_for, *ctx.options, *flags)
    dx, dweight, dbias, dresidual = found
    grads = dx, dweight, like(ctx.bias, dbias), dresidual
    return *(grad if wanted else None for grad, wanted in zip(grads, needs, strict=True)), *none


register()
