"""Batch norm with what follows it on the CPU, from tensors to the compiled loops and back.

These two functions choose how memory is seen and cut into blocks, allocate, and run the passes of
:mod:`gammabeta.norm.kernels.native`. They know nothing of gradients as autograd sees them.
"""

from __future__ import annotations

import math
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from gammabeta.norm.kernels.native.launch import Sequence
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
            recover_ratio=_RECOVERABLE[plan.dtype],
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
        self.scratch = max(_sums(self.task) + self.task.channels // 4 + 1, _sums(self.sums))
        self._at = 0

    def place(self, address: int) -> None:
        """Tell the tasks where their scratch memory is: coefficients, sums, a byte a channel."""
        if address == self._at:
            return
        self._at = address
        for task in (self.task, self.sums):
            task.coefficients, task.partial = address, address + 20 * task.width
        if self._program.plan.pool:
            self.task.recover = address + 4 * _sums(self.task)

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
    running: tuple[Tensor, Tensor, float, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor | None]:
    """Return y, mean, unbiased variance, and what backward needs: statistics and codes.

    Args:
        plan: How to compute.
        x: (N, C, *), dense in the layout of the plan's family; so is the residual.
        weight: float32 (C,), as are bias, mean and var; those are given in eval mode.
        bias: Or None.
        residual: Or None.
        mean: None computes it.
        var: None computes it.
        running: As ``registry.Running``: they are moved, and mean and variance are None.
    """
    shape, added = x.shape, residual is not None
    p = program(plan, shape, added, mean is not None)
    run = p.borrow()
    y = _like_output(plan, x, run.task)
    coded = plan.pool or (added and plan.activation in MASKED)
    codes = torch.empty_like(y, dtype=torch.uint8) if coded else None
    saved = torch.empty((2, shape[1]), dtype=torch.float64, device="cpu")
    if mean is None and running is None:
        mean, var = _floats(shape[1]), _floats(shape[1])
    scratch = _lend(run)
    task, sums = run.task, run.sums
    task.x, task.residual, task.y, task.codes = x.data_ptr(), _at(residual), y.data_ptr(), _at(codes)
    task.weight, task.bias, task.saved = _at(weight), _at(bias), saved.data_ptr()
    if sums is not task:
        sums.x, sums.saved = task.x, task.saved
    sums.mean, sums.var = _at(mean), _at(var)
    _move(sums, running)
    run.forward()
    _scratch.append(scratch)
    p.give_back(run)
    return y, mean, var, saved, codes


def _move(task: Task, running: tuple[Tensor, Tensor, float, Tensor | None] | None) -> None:
    """Tell which running statistics are to be moved."""
    if running is None:
        task.running_mean = task.running_var = task.batches = 0
        return
    mean, var, task.momentum, batches = running
    task.running_mean, task.running_var, task.batches = mean.data_ptr(), var.data_ptr(), _at(batches)


def backward(
    plan: Plan,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    y: Tensor | None,
    saved: Tensor,
    codes: Tensor | None,
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
        codes: Of forward, or None.
        added: Whether a residual was added.
        constant: Whether the statistics were given.
        needs_x: Whether dx is wanted, or the residual's gradient.
        needs_affine: Whether dγ or dβ is.
    """
    p = program(plan, x.shape, added, constant)
    run = p.borrow()
    task = run.task
    dx = torch.empty_like(x) if needs_x else None
    dresidual = torch.empty_like(x) if needs_x and added else None
    reduces = needs_affine or (needs_x and not constant)
    dweight, dbias = (_floats(task.channels), _floats(task.channels)) if reduces else (None, None)
    scratch = _lend(run)
    task.x, task.residual, task.y, task.codes = x.data_ptr(), _at(residual), _at(y), _at(codes)
    task.dy, task.dx, task.dresidual = dy.data_ptr(), _at(dx), _at(dresidual)
    task.weight, task.bias, task.saved = _at(weight), _at(bias), saved.data_ptr()
    task.dweight, task.dbias = _at(dweight), _at(dbias)
    task.recover_ratio = _RECOVERABLE[plan.dtype] if y is not None else 0.0
    if needs_x:
        (run.backward if reduces else run.spread)()
    elif reduces:
        run.reduce()
    _scratch.append(scratch)
    p.give_back(run)
    return dx, dweight, dbias, dresidual


_scratch: list[Tensor] = []
"""Memory for sums and coefficients that no call uses now."""


def _lend(run: Run) -> Tensor:
    """Return scratch memory, having told the tasks where it is."""
    try:
        scratch = _scratch.pop()
    except IndexError:
        scratch = _floats(run.scratch)
    if scratch.numel() < run.scratch:
        scratch = _floats(run.scratch)
    run.place(scratch.data_ptr())
    return scratch


def _sums(task: Task) -> int:
    """Return how many numbers coefficients and sums are."""
    return (3 * task.blocks + 5) * task.width  # type: ignore[no-any-return]


def _floats(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.float32, device="cpu")


def _at(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _like_output(plan: Plan, x: Tensor, task: Task) -> Tensor:
    if not plan.pool:
        return torch.empty_like(x)
    shape = x.shape[0], x.shape[1], task.out_height, task.out_width
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
