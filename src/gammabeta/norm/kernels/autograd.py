"""The fused kernels as functions that autograd, ``torch.compile`` and double backward know.

First derivatives come from kernels. Where a derivative is itself to be differentiated, it is
computed by torch's own operators instead, from the eager composite.

``torch.ops.gammabeta.batch_norm`` is the same as an operator, one node of a compiled graph.
Called directly it would cost some 30 microseconds more than :class:`FusedBatchNorm`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from gammabeta.norm.activation import Epilogue
from gammabeta.norm.kernels import eager, layout
from gammabeta.norm.kernels.fused import Plan, backward, forward, pooled_size
from gammabeta.norm.kernels.native.variant import APART, MASKED
from gammabeta.norm.kernels.tracing import watched


class FusedBatchNorm(torch.autograd.Function):
    """pool(act(BN(x) + residual)), with mean and variance computed, or given for eval mode.

    Takes ``(x, weight, bias, residual, mean, var, eps, activation, slope, pool, running)`` and
    returns ``(y, mean, unbiased variance)``; the last two are None if ``running`` statistics and
    their momentum were given, which are then moved.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Compute, and save what backward needs."""
        outputs = _forward(*inputs)
        _save(ctx, inputs[:-1], outputs)
        y, mean, var = outputs[:3]
        if mean is not None:
            ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight, bias and residual."""
        return *_backward(ctx, *grads), None


def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    activation: str,
    slope: float,
    pool: int,
    running: tuple[Tensor, Tensor, float, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor | None]:
    plan, x = _plan(x, eps, activation, slope, pool)
    return forward(
        plan,
        x,
        _vector(weight),
        _vector(bias),
        None if residual is None else layout.laid(residual, _lie(plan)),
        _vector(mean),
        _vector(var),
        running,
    )


def _plan(x: Tensor, eps: float, activation: str, slope: float, pool: int) -> tuple[Plan, Tensor]:
    """Return how to compute, and x in memory that the loops serve."""
    lie = layout.of(x)
    if lie is None or (pool and lie != "rows"):  # a compiler may hand over other memory
        x = x.contiguous(memory_format=torch.channels_last if pool else torch.contiguous_format)
        lie = "rows" if pool else "planes"
    dtype = "bfloat16" if x.dtype == torch.bfloat16 else "float32"
    return Plan("pooled" if pool else lie, dtype, activation, slope, pool, eps), x


def _lie(plan: Plan) -> str:
    return "planes" if plan.family == "planes" else "rows"


def _vector(values: Tensor | None) -> Tensor | None:
    """Return values a channel as the loops read them."""
    if values is None or (values.dtype == torch.float32 and values.is_contiguous()):
        return values
    return values.detach().float().contiguous()


def _save(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
    x, weight, bias, residual, mean, _, eps, activation, slope, pool = inputs
    y, _, _, saved, codes = outputs
    ctx.options = eps, activation, slope, pool
    ctx.added, ctx.constant = residual is not None, mean is not None
    kept = None if activation in APART else residual  # the codes tell what it led to
    ctx.witness, output = None, y if pool else None
    if pool and not (torch.compiler.is_compiling() or watched() or y.is_inference()):
        ctx.witness, output = _Witness(y), y.data
    ctx.save_for_backward(x, weight, bias, kept, output, saved, codes)


class _Witness:
    """Tells whether a tensor was written since, without holding its memory.

    The pooled output is a convenience: if somebody activates it in place, as is usual, the winners
    are looked up in x.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._alias = tensor.detach()  # shares the counter of writes
        self._alias.data = tensor.new_empty(0)
        self._version = tensor._version

    def untouched(self) -> bool:
        return self._alias._version == self._version


def _is_batched(dy: Tensor) -> bool:
    """Tell whether dy is many, as ``autograd.grad(..., is_grads_batched=True)`` makes it."""
    functorch = torch._C._functorch
    return functorch.is_legacy_batchedtensor(dy) or functorch.is_functorch_wrapped_tensor(dy)


def _backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    none = (None,) * 6  # for mean, var and the options
    if dy is None:
        return (None,) * 4 + none
    if not torch.compiler.is_compiling() and (
        torch.is_grad_enabled() or watched() or _is_batched(dy)
    ):
        return *_composite(ctx, dy, create_graph=torch.is_grad_enabled()), *none
    x, weight, bias, residual, y, saved, codes = ctx.saved_tensors
    if ctx.witness is not None and not ctx.witness.untouched():
        y = None
    needs = ctx.needs_input_grad[:4]
    flags = ctx.added, ctx.constant, needs[0] or needs[3], needs[1] or needs[2]
    compiling = torch.compiler.is_compiling()
    run: Any = torch.ops.gammabeta.batch_norm_backward if compiling else _gradients
    found = run(dy, x, weight, bias, residual, y, saved, codes, *ctx.options, *flags)
    kept = [grad if wanted else None for grad, wanted in zip(found, needs, strict=True)]
    return *kept, *none


def _gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    y: Tensor | None,
    saved: Tensor,
    codes: Tensor | None,
    eps: float,
    activation: str,
    slope: float,
    pool: int,
    added: bool,
    constant: bool,
    needs_x: bool,
    needs_affine: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    plan, x = _plan(x, eps, activation, slope, pool)
    lie = _lie(plan)
    dx, dweight, dbias, dresidual = backward(
        plan,
        layout.laid(dy, lie),
        x,
        _vector(weight),
        _vector(bias),
        None if residual is None else layout.laid(residual, lie),
        None if y is None else layout.laid(y, lie),
        saved,
        None if codes is None or not codes.numel() else layout.laid(codes, lie),
        added=added,
        constant=constant,
        needs_x=needs_x,
        needs_affine=needs_affine,
    )
    return dx, _as(weight, dweight), _as(bias, dbias), dresidual


def _as(parameter: Tensor | None, grad: Tensor | None) -> Tensor | None:
    return None if grad is None or parameter is None else grad.to(parameter.dtype)


@torch.enable_grad()
def _composite(ctx: Any, dy: Tensor, *, create_graph: bool) -> tuple[Tensor | None, ...]:
    """Return the gradients as functions of x, γ, β, the residual and dy."""
    x, weight, bias, residual, _, saved, codes = ctx.saved_tensors
    eps, activation, slope, pool = ctx.options
    gated = ctx.added and activation in APART
    tanh = activation == "gelu_tanh"
    name = None if gated or activation == "identity" else activation.removesuffix("_tanh")
    epilogue = Epilogue(name, slope, "tanh" if tanh else "none", pool or None)
    if ctx.constant:
        mean, inverse = saved.detach()
        mean, var = mean.float(), (inverse**-2 - eps).float()
        y = eager.infer(x, mean, var, weight, bias, residual, eps, epilogue)
    else:
        y = eager.train(x, weight, bias, residual, eps, epilogue)[0]
    if gated and codes is not None and codes.numel():
        blocked = slope if activation == "leaky_relu" else 0.0
        dy = dy * torch.where(codes.bool(), 1.0, blocked).to(dy.dtype)
    inputs = (x, weight, bias, residual)
    wanted = [i for i in range(4) if ctx.needs_input_grad[i] and inputs[i] is not None]
    found = torch.autograd.grad(
        y, [inputs[i] for i in wanted], dy, create_graph=create_graph, allow_unused=True
    )
    grads: list[Tensor | None] = [None] * 4
    for i, grad in zip(wanted, found, strict=True):
        grads[i] = grad
    if gated and ctx.needs_input_grad[3]:
        grads[3] = dy
    return tuple(grads)


_library = torch.library.Library("gammabeta", "DEF")
_library.define(
    "batch_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? mean, "
    "Tensor? var, float eps, str activation, float slope, int pool) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "batch_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, "
    "Tensor? y, Tensor saved, Tensor codes, float eps, str activation, float slope, int pool, "
    "bool added, bool constant, bool needs_x, bool needs_affine) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)


def _forward_operator(*inputs: Any) -> tuple[Tensor, ...]:
    y, mean, var, saved, codes = cast("tuple[Tensor, ...]", _forward(*inputs))
    codes = y.new_empty(0, dtype=torch.uint8) if codes is None else codes
    given = inputs[4] is not None  # an operator may not return what it was given
    return y, mean.clone() if given else mean, var.clone() if given else var, saved, codes


def _backward_operator(dy: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    found = _gradients(dy, *inputs)
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
        x.new_empty(2, channels, dtype=torch.float64),
        torch.empty_like(y, dtype=torch.uint8) if coded else x.new_empty(0, dtype=torch.uint8),
    )


def _backward_shapes(dy: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    weight, bias = rest[:2]
    added, constant, needs_x, needs_affine = rest[-4:]
    empty = dy.new_empty(0)
    affine = needs_affine or (needs_x and not constant)
    return (
        torch.empty_like(x) if needs_x else empty,
        torch.empty_like(weight) if affine and weight is not None else empty,
        torch.empty_like(bias) if affine and bias is not None else dy.new_empty(0),
        torch.empty_like(x) if needs_x and added else dy.new_empty(0),
    )


_library.impl("batch_norm", _forward_operator, "CPU")
_library.impl("batch_norm_backward", _backward_operator, "CPU")
torch.library.register_fake("gammabeta::batch_norm", _forward_shapes, lib=_library)
torch.library.register_fake("gammabeta::batch_norm_backward", _backward_shapes, lib=_library)
torch.library.register_autograd(
    "gammabeta::batch_norm",
    _backward,
    setup_context=lambda ctx, inputs, output: _save(ctx, inputs, output),
    lib=_library,
)
