"""The gradients of a fused batch norm by torch's own operators, to be differentiated.

They are taken with respect to aliases of the inputs, each cut off from the others: a residual may
be upstream of x, γ may be computed from it, or two of them be one tensor, and the derivative by one
must not run through another, nor use up the graph that lies above them all. What was computed with
the aliases still leads to the inputs themselves, so that it can be differentiated once more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gammabeta.norm.activation import Epilogue
from gammabeta.norm.kernels import eager
from gammabeta.norm.kernels.native.variant import APART


@torch.enable_grad()
def composite(
    ctx: Any, kept: tuple[Any, ...], dy: Tensor, *, create_graph: bool
) -> tuple[Tensor | None, ...]:
    """Return the gradients as functions of x, γ, β, the residual and dy.

    Args:
        ctx: Of ``FusedBatchNorm``, or of the operator with a plan.
        kept: Its saved tensors, which may be read once only.
        dy: As backward is given it.
        create_graph: Whether the gradients are to be differentiated.
    """
    x, weight, residual, saved, codes = kept
    saved = saved.detach()  # an output of the operator, but a constant here
    bias = _as_it_was(ctx.bias, saved[2])
    _, _, activation, slope, _, eps = ctx.plan
    inputs = [None if t is None else _cut(t, create_graph) for t in (weight, bias, residual)]
    gamma, beta, added = inputs
    values = _cut(x, create_graph)
    gated = ctx.added and activation in APART  # what follows the sum is a mask, which is known
    epilogue = _epilogue(ctx.plan, gated)
    if ctx.constant:
        y = eager.infer(values, *_statistics(saved, eps), gamma, beta, added, eps, epilogue)
    else:
        y = epilogue(eager.by_operators(values, gamma, beta, eps)[0], added)
    if gated and codes is not None and codes.numel():
        blocked = slope if activation == "leaky_relu" else 0.0
        dy = dy * torch.where(codes.bool(), 1.0, blocked).to(dy.dtype)
    grads = _derivatives(y, [values, *inputs], ctx.needs_input_grad, dy, create_graph)
    if gated and ctx.needs_input_grad[3]:
        grads[3] = dy
    return tuple(grads)


def _as_it_was(bias: Tensor | None, values: Tensor) -> Tensor | None:
    """Return β with the values of the forward pass and its own history.

    As torch's batch norm does not keep it, it may have been changed in place since.
    """
    return None if bias is None else values.to(bias.dtype) + (bias - bias.detach())


def _cut(tensor: Tensor, keep_history: bool) -> Tensor:
    """Return another tensor of the same values, in which the search for gradients ends."""
    if not tensor.requires_grad:
        return tensor
    return tensor.view_as(tensor) if keep_history else tensor.detach().requires_grad_()


def _derivatives(
    y: Tensor, inputs: list[Tensor | None], needed: tuple[bool, ...], dy: Tensor, create_graph: bool
) -> list[Tensor | None]:
    grads: list[Tensor | None] = [None] * len(inputs)
    wanted = {i: t for i, t in enumerate(inputs) if t is not None and needed[i]}
    if not wanted:
        return grads
    found = torch.autograd.grad(
        y, list(wanted.values()), dy, create_graph=create_graph, allow_unused=True
    )
    for i, grad in zip(wanted, found, strict=True):
        grads[i] = grad
    return grads


def _statistics(saved: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the mean and the variance that were given."""
    mean, inverse = saved[0], saved[1]
    return mean.float(), (inverse**-2 - eps).float()


def _epilogue(plan: Any, gated: bool) -> Epilogue:
    _, _, activation, slope, pool, _ = plan
    tanh = activation == "gelu_tanh"
    name = None if gated or activation == "identity" else activation.removesuffix("_tanh")
    return Epilogue(name, slope, "tanh" if tanh else "none", pool or None)
