"""How a call computes: which loops, in what order, over memory cut into which blocks.

All of it depends on the shape and the options alone, so it is decided once and kept.
"""

from __future__ import annotations

import math
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch

from gammabeta.norm.kernels.native.launch import Sequence
from gammabeta.norm.kernels.native.task import Task
from gammabeta.norm.kernels.native.variant import Variant

_BLOCK = 1 << 15
"""Elements in a block: its data stay in a core's own cache, its sums are short."""
_MOST_ROWS = 1024
_WIDE, _TILE, _WIDE_ROWS = 1 << 12, 1 << 10, 1 << 7
"""Rows longer than the first are cut into tiles of so many lanes and rows.

A block's sums are three values a lane, so that a block of few rows would need as much memory for
them as it has data.
"""
_PLANE_UNIT = 1 << 14


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

    @property
    def lie(self) -> str:
        """The layout of its tensors, as ``layout.of`` names it."""
        return "planes" if self.family == "planes" else "rows"


def plan_of(
    dtype: torch.dtype, lie: str, activation: str, slope: float, pool: int, eps: float
) -> Plan:
    """Return the plan for data of that dtype and layout."""
    name = "bfloat16" if dtype == torch.bfloat16 else "float32"
    return Plan("pooled" if pool else lie, name, activation, slope, pool, eps)


class Program:
    """What computes a plan for an input of one shape.

    Args:
        plan: How to compute.
        shape: (N, C, *).
        added: Whether a residual is added.
        constant: Whether statistics are given.
    """

    def __init__(self, plan: Plan, shape: torch.Size, added: bool, constant: bool) -> None:
        self.plan, self.constant = plan, constant
        self.task = Task(
            channels=shape[1],
            count=shape.numel() // shape[1],
            size=shape.numel(),
            batch=shape[0],
            plane=1,
            eps=plan.eps,
            slope=plan.slope,
            width=shape[1],
        )
        self._like = plan.dtype, plan.activation, added, plan.pool
        self._width = _cut(self.task, plan, shape)
        self._idle: list[Run] = []

    def borrow(self) -> Run:
        """Return what no other call uses, be it of another thread or of this one, interrupted."""
        try:
            return self._idle.pop()
        except IndexError:
            return Run(self)

    def give_back(self, run: Run) -> None:
        """Let a later call use it."""
        self._idle.append(run)

    def loop(self, name: str, *, fixed: bool = False) -> Variant:
        """Return a pass over the data."""
        return Variant(f"{self.plan.family}.{name}", *self._like, fixed, self._width)

    def statistics(self) -> Variant:
        """Return the pass that sums, which knows nothing of what follows."""
        family = "rows" if self.plan.pool else self.plan.family
        return Variant(f"{family}.statistics", self.plan.dtype, width=_WIDTHS[family])


program = lru_cache(maxsize=1024)(Program)
_COMBINE, _GIVEN, _AGAIN, _SLOPES = (
    Variant(f"channels.{name}", "float32") for name in ("combine", "given", "again", "slopes")
)
_WIDTHS = {"rows": 64, "planes": 16}


class Run:
    """The tasks of one call, and the passes over them.

    Statistics are summed over rows even where the next pass pools, in a task of their own.
    """

    def __init__(self, p: Program) -> None:
        self._program = p
        self.task = Task.from_buffer_copy(p.task)
        self.sums = self.task
        if p.plan.pool and not p.constant:
            self.sums = Task.from_buffer_copy(p.task)
            _cut_rows(self.sums)
        self.scratch = max(_sums(self.task), _sums(self.sums))
        self._at = 0

    def place(self, address: int) -> None:
        """Tell the tasks where their scratch memory is: coefficients, then sums."""
        if address == self._at:
            return
        self._at = address
        for task in (self.task, self.sums):
            task.coefficients, task.partial = address, address + 20 * task.width

    @cached_property
    def forward(self) -> Sequence:
        """Statistics, or the coefficients of given ones, and then the output."""
        p, task = self._program, self.task
        if p.constant:
            steps = [(_GIVEN, task)]
        else:
            steps = [(p.statistics(), self.sums), (_COMBINE, self.sums)]
            if self.sums is not task:
                steps.append((_AGAIN, task))
        return Sequence([*steps, (p.loop("forward"), task)], task.size)

    @cached_property
    def measure(self) -> Sequence:
        """Statistics alone."""
        steps = [(self._program.statistics(), self.sums), (_COMBINE, self.sums)]
        return Sequence(steps, self.task.size)

    @cached_property
    def reduce(self) -> Sequence:
        """The gradients of γ and β, and what the mean and the variance add to that of x."""
        p, task = self._program, self.task
        return Sequence([(_AGAIN, task), (p.loop("reduce"), task), (_SLOPES, task)], task.size)

    @cached_property
    def spread(self) -> Sequence:
        """The gradient of x where the statistics are constants."""
        steps = [(_AGAIN, self.task), (self._spreads(), self.task)]
        return Sequence(steps, self.task.size)

    @cached_property
    def backward(self) -> Sequence:
        """All gradients."""
        p, task = self._program, self.task
        steps = [(_AGAIN, task), (p.loop("reduce"), task), (_SLOPES, task), (self._spreads(), task)]
        return Sequence(steps, task.size)

    def _spreads(self) -> Variant:
        return self._program.loop("backward", fixed=self._program.constant)


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
    if task.count >= fold and task.channels < _WIDE:  # a wide row has few lanes beside its vectors
        task.width = task.channels * fold
    wide = task.width > _WIDE
    task.tile = _TILE if wide else task.width
    task.rows = task.size // task.width
    task.block_rows = _WIDE_ROWS if wide else min(max(_BLOCK // task.width, 8), _MOST_ROWS)
    task.blocks = -(-task.rows // task.block_rows) + (task.size > task.rows * task.width)
    task.tiles = -(-task.width // task.tile)
    task.units = task.blocks * task.tiles


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


def _sums(task: Task) -> int:
    """Return how many numbers coefficients and sums are."""
    return (3 * task.blocks + 5) * task.width  # type: ignore[no-any-return]
