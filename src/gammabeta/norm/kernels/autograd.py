"""The fused kernels as a function that autograd and double backward know.

First derivatives come from kernels. Where a derivative is itself to be differentiated, it is
computed by torch's own operators instead, from the eager composite.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gammabeta.norm.kernels import layout
from gammabeta.norm.kernels.composite import composite
from gammabeta.norm.kernels.fused import backward, forward
from gammabeta.norm.kernels.native.variant import APART
from gammabeta.norm.kernels.program import Plan, plan_of
from gammabeta.norm.kernels.tracing import watched


class FusedBatchNorm(torch.autograd.Function):
    """pool(act(BN(x) + residual)), with mean and variance computed, or given for eval mode.

    Takes ``(x, weight, bias, residual, mean, var, plan, running)`` and returns ``(y, mean,
    unbiased variance)``; the last two are None if ``running`` statistics are given, which are then
    moved. x must lie as the plan's family says.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        plan: Plan,
        running: tuple[Tensor, Tensor, float, Tensor | None] | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Compute, and save what backward needs."""
        ctx.plan, ctx.added, ctx.constant = plan, residual is not None, mean is not None
        ctx.bias = bias  # not saved, which would forbid to change it
        done = compute(x, weight, bias, residual, mean, var, plan, running)
        y, mean, var, saved, codes = done
        kept = None if plan.activation in APART else residual  # the codes tell what it led to
        ctx.save_for_backward(x, weight, kept, saved, codes)
        ctx.set_materialize_grads(False)
        if mean is not None:
            ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight, bias and residual."""
        if dy is None:
            return (None,) * 8
        kept = ctx.saved_tensors
        if torch.is_grad_enabled() or watched() or is_batched(dy):
            grads = composite(ctx, kept, dy, create_graph=torch.is_grad_enabled())
            return *grads, None, None, None, None
        x, weight, residual, saved, codes = kept
        needs = ctx.needs_input_grad
        flags = ctx.added, ctx.constant, needs[0] or needs[3], needs[1] or needs[2]
        dx, dweight, dbias, dresidual = gradients(
            ctx.plan, dy, x, weight, residual, saved, codes, *flags
        )
        return (
            dx if needs[0] else None,
            dweight if needs[1] else None,
            like(ctx.bias, dbias) if needs[2] else None,
            dresidual if needs[3] else None,
            None,
            None,
            None,
            None,
        )


def fused_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    lie: str,
    eps: float,
    activation: str,
    slope: float,
    pool: int,
    running: tuple[Tensor, Tensor, float, Tensor | None] | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return y, mean and unbiased variance, differentiable; see :class:`FusedBatchNorm`.

    ``lie`` is the layout of x, as ``layout.of`` names it.
    """
    plan = plan_of(x.dtype, lie, activation, slope, pool, eps)
    inputs = layout.resolved(x), weight, bias, residual, mean, var, plan, running
    if not torch.is_grad_enabled():  # spares a third of a call on a tiny tensor
        y, mean, var, _, _ = compute(*inputs)
        return y, mean, var
    done: tuple[Tensor, Tensor | None, Tensor | None] = FusedBatchNorm.apply(*inputs)
    return done


def compute(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    plan: Plan,
    running: tuple[Tensor, Tensor, float, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor | None]:
    """Return what ``fused.forward`` does, for a residual and parameters of any layout and dtype."""
    added = None if residual is None else layout.laid(residual, plan.lie)
    vectors = as_vector(weight), as_vector(bias), added, as_vector(mean), as_vector(var)
    return forward(plan, x, *vectors, running)


def as_vector(values: Tensor | None) -> Tensor | None:
    """Return values a channel as the loops read them."""
    if values is None:
        return None
    values = layout.resolved(values)
    if values.dtype == torch.float32 and values.is_contiguous():
        return values
    return values.detach().float().contiguous()


def is_batched(dy: Tensor) -> bool:
    """Tell whether dy is many, as ``autograd.grad(..., is_grads_batched=True)`` makes it."""
    functorch = torch._C._functorch
    return functorch.is_legacy_batchedtensor(dy) or functorch.is_functorch_wrapped_tensor(dy)


def gradients(
    plan: Plan,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    residual: Tensor | None,
    saved: Tensor,
    codes: Tensor | None,
    added: bool,
    constant: bool,
    needs_x: bool,
    needs_affine: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients, that of β as float32.

    A hook may have moved what was saved to other memory.
    """
    lie = plan.lie
    dx, dweight, dbias, dresidual = backward(
        plan,
        layout.laid(dy, lie),
        layout.laid(x, lie),
        as_vector(weight),
        None if residual is None else layout.laid(residual, lie),
        saved,
        None if codes is None else layout.laid(codes, lie),
        added=added,
        constant=constant,
        needs_x=needs_x,
        needs_affine=needs_affine,
    )
    return dx, like(weight, dweight), dbias, dresidual


def like(parameter: Tensor | None, grad: Tensor | None) -> Tensor | None:
    """Return a parameter's gradient in its dtype."""
    if grad is None or parameter is None:
        return None
    return grad if parameter.dtype == torch.float32 else grad.to(parameter.dtype)
