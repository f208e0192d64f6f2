"""Batch norm with what follows it on the CPU, from tensors to the compiled loops and back.

These two functions choose how memory is seen and cut into blocks, allocate, and run the passes of
:mod:`gammabeta.norm.kernels.native`. They know nothing of gradients as autograd sees them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gammabeta.norm.kernels.native.launch import launch
from gammabeta.norm.kernels.native.task import Task
from gammabeta.norm.kernels.native.variant import Variant

_BLOCK = 1 << 15
"""Elements in a block: its data stay in a core's own cache, its sums are short."""
_MOST_ROWS = 1024
_PLANE_UNIT = 1 << 14

_RECOVERABLE = {"float32": 64.0, "bfloat16": 2.0}
"""How large β may be beside γ for x̂ to be recovered from y with the precision of the dtype."""


class Plan(NamedTuple):
    """How one call computes.

    Args:
        family: "rows", "planes" or "pooled", the loops' module.
        dtype: "float32" or "bfloat16".
        activation: As in ``Variant``.
        slope: Of "leaky_relu".
        pool: 0, 2 or 3.
        eps: Added to the variance.
    """

    family: str
    dtype: str
    activation: str
    slope: float
    pool: int
    eps: float


def plan_task(plan: Plan, x: Tensor) -> tuple[Task, int]:
    """Return a task with all sizes, and the width of a vector."""
    count, channels = x.shape[0], x.shape[1]
    size = x.numel()
    task = Task(
        channels=channels, count=size // channels, size=size, batch=count, plane=1, eps=plan.eps,
        slope=plan.slope, width=channels, x=x.data_ptr(),
        recover_ratio=_RECOVERABLE[plan.dtype],
    )  # fmt: skip
    if plan.family == "planes":
        _cut_planes(task)
        return task, 16
    if plan.family == "pooled":
        _cut_windows(task, plan.pool, x)
        return task, next((w for w in (64, 32, 16) if channels % w == 0), 16)
    _cut_rows(task)
    return task, 64


def _cut_rows(task: Task) -> None:
    fold = 64 // math.gcd(task.channels, 64)
    if task.count >= fold:
        task.width = task.channels * fold
    task.rows = task.size // task.width
    task.block_rows = min(max(_BLOCK // task.width, 8), _MOST_ROWS)
    task.blocks = -(-task.rows // task.block_rows) + (task.size > task.rows * task.width)


def _cut_planes(task: Task) -> None:
    task.plane = task.count // task.batch
    task.rows = task.batch
    task.block_rows = min(max(_PLANE_UNIT // task.plane, 1), task.batch)
    task.blocks = -(-task.batch // task.block_rows)
    task.unit_planes = max(_PLANE_UNIT // task.plane, 1)
    task.units = -(-task.batch * task.channels // task.unit_planes)


def _cut_windows(task: Task, pool: int, x: Tensor) -> None:
    task.height, task.image_width = x.shape[2:]
    task.out_height, task.out_width = (
        pooled_size(pool, task.height),
        pooled_size(pool, task.image_width),
    )
    task.rows = task.batch * task.out_height
    task.block_rows = max(_BLOCK // (2 * task.image_width * task.channels), 1)
    task.blocks = -(-task.rows // task.block_rows)


def pooled_size(pool: int, size: int) -> int:
    """Return the length of a pooled axis."""
    return size // 2 if pool == 2 else (size - 1) // 2 + 1


def forward(
    plan: Plan,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return y, mean, unbiased variance, and what backward needs: statistics and codes.

    Args:
        plan: How to compute.
        x: (N, C, *), dense in the layout of the plan's family; so is the residual.
        weight: float32 (C,), as are bias, mean and var; those are given in eval mode.
        bias: Or None.
        residual: Or None.
        mean: None computes it.
        var: None computes it.
    """
    task, width = plan_task(plan, x)
    y = _like_output(plan, x, task)
    masked = residual is not None and plan.activation in {"relu", "relu6", "leaky_relu"}
    codes = x.new_empty(y.numel() if plan.pool or masked else 0, dtype=torch.uint8)
    saved = x.new_empty(2, task.channels, dtype=torch.float64)
    v = _variant(plan, "forward", residual is not None, width, constant=False)
    scratch = _floats(x, (3 * task.blocks + 5) * task.width)
    task.partial, task.coefficients = _split(scratch, task)
    task.y, task.codes, task.saved = y.data_ptr(), codes.data_ptr(), saved.data_ptr()
    task.weight, task.bias, task.residual = _at(weight), _at(bias), _at(residual)
    if mean is None or var is None:
        mean, var = _floats(x, task.channels), _floats(x, task.channels)
        task.mean, task.var = mean.data_ptr(), var.data_ptr()
        _statistics(plan, x, task, width)
    else:
        task.mean, task.var = mean.data_ptr(), var.data_ptr()
        launch(_channels("given"), task)
    launch(v, task, task.size)
    return y, mean, var, saved, codes


def _statistics(plan: Plan, x: Tensor, task: Task, width: int) -> None:
    """Run the pass that sums, over rows even where the next one pools."""
    if plan.family != "pooled":
        launch(Variant(f"{plan.family}.statistics", plan.dtype, width=width), task, task.size)
        launch(_channels("combine"), task)
        return
    flat = Task.from_buffer_copy(task)
    flat.plane = 1
    _cut_rows(flat)
    sums = _floats(x, (3 * flat.blocks + 5) * flat.width)
    flat.partial, flat.coefficients = _split(sums, flat)
    launch(Variant("rows.statistics", plan.dtype, width=64), flat, flat.size)
    launch(_channels("combine"), flat)
    launch(_channels("again"), task)


def backward(
    plan: Plan,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    y: Tensor | None,
    saved: Tensor,
    codes: Tensor,
    *,
    added: bool,
    constant: bool,
    needs_x: bool,
    needs_affine: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Return dx, dγ, dβ and the residual's gradient, None where not needed.

    Args:
        plan: As in forward, and so are the tensors.
        dy: In y's layout.
        x: As in forward.
        weight: As in forward.
        bias: As in forward.
        residual: Where the codes do not stand for it.
        y: Where pooled.
        saved: Of forward.
        codes: Of forward.
        added: Whether a residual was added.
        constant: Whether the statistics were given.
        needs_x: Whether dx is wanted, or the residual's gradient.
        needs_affine: Whether dγ or dβ is.
    """
    task, width = plan_task(plan, x)
    scratch = _floats(x, (3 * task.blocks + 5) * task.width)
    task.partial, task.coefficients = _split(scratch, task)
    task.dy, task.codes, task.saved = dy.data_ptr(), codes.data_ptr(), saved.data_ptr()
    task.weight, task.bias, task.residual, task.y = _at(weight), _at(bias), _at(residual), _at(y)
    recover = x.new_empty(task.channels if plan.pool else 0, dtype=torch.uint8)
    task.recover = recover.data_ptr()
    launch(_channels("again"), task)
    dweight = dbias = None
    if needs_affine or (needs_x and not constant):
        dweight, dbias = _floats(x, task.channels), _floats(x, task.channels)
        task.dweight, task.dbias = dweight.data_ptr(), dbias.data_ptr()
        launch(_variant(plan, "reduce", added, width, constant=False), task, task.size)
        launch(_channels("slopes"), task)
    if not needs_x:
        return None, dweight, dbias, None
    dx = torch.empty_like(x)
    dresidual = torch.empty_like(x) if added else None
    task.dx, task.dresidual = dx.data_ptr(), _at(dresidual)
    launch(_variant(plan, "backward", added, width, constant=constant), task, task.size)
    return dx, dweight, dbias, dresidual


def _variant(plan: Plan, name: str, added: bool, width: int, *, constant: bool) -> Variant:
    return Variant(
        f"{plan.family}.{name}", plan.dtype, plan.activation, added, plan.pool, constant, width
    )


def _channels(name: str) -> Variant:
    return Variant(f"channels.{name}", "float32")


def _split(scratch: Tensor, task: Task) -> tuple[int, int]:
    """Return the addresses of the blocks' sums and of the coefficients in scratch memory."""
    start = scratch.data_ptr()
    return start + 20 * task.width, start


def _floats(x: Tensor, size: int) -> Tensor:
    return x.new_empty(size, dtype=torch.float32)


def _at(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _like_output(plan: Plan, x: Tensor, task: Task) -> Tensor:
    if not plan.pool:
        return torch.empty_like(x)
    shape = x.shape[0], x.shape[1], task.out_height, task.out_width
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
