"""Batch norm with what follows it on the CPU, from tensors to the compiled loops and back.

These two functions choose how memory is seen and cut into blocks, allocate, and run the passes of
:mod:`gammabeta.norm.kernels.native`. They know nothing of gradients as autograd sees them.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from gammabeta.norm.kernels.native.launch import Loop
from gammabeta.norm.kernels.native.task import Task
from gammabeta.norm.kernels.native.variant import MASKED, Variant

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


class Program(NamedTuple):
    """The loops of a plan, and a task with all its sizes."""

    task: Task
    statistics: Loop
    forward: Loop
    reduce: Loop
    backward: Loop


@lru_cache(maxsize=1024)
def program(plan: Plan, shape: torch.Size, added: bool, constant: bool) -> Program:
    """Return what computes a plan for an input of that shape.

    Args:
        plan: How to compute.
        shape: (N, C, *).
        added: Whether a residual is added.
        constant: Whether statistics are given.
    """
    task = Task(
        channels=shape[1],
        count=shape.numel() // shape[1],
        size=shape.numel(),
        batch=shape[0],
        plane=1,
        eps=plan.eps,
        slope=plan.slope,
        width=shape[1],
        recover_ratio=_RECOVERABLE[plan.dtype],
    )
    width = _cut(task, plan, shape)

    def loop(name: str, fixed: bool) -> Loop:
        what = f"{plan.family}.{name}"
        return _loop(Variant(what, plan.dtype, plan.activation, added, plan.pool, fixed, width))

    family = "rows" if plan.pool else plan.family
    statistics = _loop(Variant(f"{family}.statistics", plan.dtype, width=_WIDTHS[family]))
    return Program(
        task, statistics, loop("forward", False), loop("reduce", False), loop("backward", constant)
    )


@cache
def _loop(v: Variant) -> Loop:
    return Loop(v)


_COMBINE, _GIVEN, _AGAIN, _SLOPES = (
    Loop(Variant(f"channels.{name}", "float32")) for name in ("combine", "given", "again", "slopes")
)
_WIDTHS = {"rows": 64, "planes": 16}


def _cut(task: Task, plan: Plan, shape: torch.Size) -> int:
    """Set the task's blocks, and return the width of a vector."""
    if plan.family == "planes":
        _cut_planes(task)
    elif plan.family == "rows":
        _cut_rows(task)
    else:
        _cut_windows(task, plan.pool, shape)
        return next((w for w in (64, 32, 16) if task.channels % w == 0), 16)
    return _WIDTHS[plan.family]


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


def _cut_windows(task: Task, pool: int, shape: torch.Size) -> None:
    task.height, task.image_width = shape[2:]
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
    running: tuple[Tensor, Tensor, float] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:
    """Return y, mean, unbiased variance, and what backward needs: statistics and codes.

    Args:
        plan: How to compute.
        x: (N, C, *), dense in the layout of the plan's family; so is the residual.
        weight: float32 (C,), as are bias, mean and var; those are given in eval mode.
        bias: Or None.
        residual: Or None.
        mean: None computes it.
        var: None computes it.
        running: Running statistics and momentum: they are moved, and mean and variance are None.
    """
    p = program(plan, x.shape, residual is not None, mean is not None)
    task = Task.from_buffer_copy(p.task)
    y = _like_output(plan, x, task)
    masked = residual is not None and plan.activation in MASKED
    codes = x.new_empty(0, dtype=torch.uint8)
    if plan.pool or masked:
        codes = torch.empty_like(y, dtype=torch.uint8)
    saved = x.new_empty(2, task.channels, dtype=torch.float64)
    scratch = _floats(x, (3 * task.blocks + 5) * task.width)
    task.partial, task.coefficients = _split(scratch, task)
    task.x, task.y, task.codes = x.data_ptr(), y.data_ptr(), codes.data_ptr()
    task.weight, task.bias, task.residual = _at(weight), _at(bias), _at(residual)
    task.saved = saved.data_ptr()
    given = mean is not None
    if running is not None:
        task.running_mean, task.running_var = _at(running[0]), _at(running[1])
        task.momentum = running[2]
    elif not given:
        mean, var = _floats(x, task.channels), _floats(x, task.channels)
    task.mean, task.var = _at(mean), _at(var)
    if given:
        _GIVEN(task)
    else:
        _statistics(plan, p, x, task)
    p.forward(task, task.size)
    return y, mean, var, saved, codes


def _statistics(plan: Plan, p: Program, x: Tensor, task: Task) -> None:
    """Run the pass that sums, over rows even where the next one pools."""
    if not plan.pool:
        p.statistics(task, task.size)
        _COMBINE(task)
        return
    flat = Task.from_buffer_copy(task)
    _cut_rows(flat)
    sums = _floats(x, (3 * flat.blocks + 5) * flat.width)
    flat.partial, flat.coefficients = _split(sums, flat)
    p.statistics(flat, flat.size)
    _COMBINE(flat)
    _AGAIN(task)


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
        y: Where pooled, or None if it was overwritten.
        saved: Of forward.
        codes: Of forward.
        added: Whether a residual was added.
        constant: Whether the statistics were given.
        needs_x: Whether dx is wanted, or the residual's gradient.
        needs_affine: Whether dγ or dβ is.
    """
    p = program(plan, x.shape, added, constant)
    task = Task.from_buffer_copy(p.task)
    scratch = _floats(x, (3 * task.blocks + 5) * task.width)
    task.partial, task.coefficients = _split(scratch, task)
    task.x, task.dy, task.codes, task.saved = (
        x.data_ptr(),
        dy.data_ptr(),
        codes.data_ptr(),
        saved.data_ptr(),
    )
    task.weight, task.bias, task.residual, task.y = _at(weight), _at(bias), _at(residual), _at(y)
    recover = x.new_zeros(task.channels, dtype=torch.uint8) if plan.pool else None
    task.recover = _at(recover)
    task.recover_ratio *= y is not None
    _AGAIN(task)
    dweight = dbias = None
    if needs_affine or (needs_x and not constant):
        dweight, dbias = _floats(x, task.channels), _floats(x, task.channels)
        task.dweight, task.dbias = dweight.data_ptr(), dbias.data_ptr()
        p.reduce(task, task.size)
        _SLOPES(task)
    if not needs_x:
        return None, dweight, dbias, None
    dx = torch.empty_like(x)
    dresidual = torch.empty_like(x) if added else None
    task.dx, task.dresidual = dx.data_ptr(), _at(dresidual)
    p.backward(task, task.size)
    return dx, dweight, dbias, dresidual


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
