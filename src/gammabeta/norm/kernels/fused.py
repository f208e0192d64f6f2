"""Batch norm with what follows it on the CPU, from tensors to the compiled loops and back.

These two functions allocate, tell the loops where everything is, and run them. They know nothing
of gradients as autograd sees them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gammabeta.norm.kernels.layout import resolved
from gammabeta.norm.kernels.native.task import Task
from gammabeta.norm.kernels.native.variant import MASKED
from gammabeta.norm.kernels.program import Plan, Run, program


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
    """Return y, mean, unbiased variance, and what backward needs: statistics, β and codes.

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
    saved = torch.empty((3, shape[1]), dtype=torch.float64, device="cpu")
    if mean is None and running is None:
        mean, var = _floats(shape[1]), _floats(shape[1])
    scratch = _lend(run)
    task, sums = run.task, run.sums
    task.x, task.residual, task.y = x.data_ptr(), _at(residual), y.data_ptr()
    task.codes, task.saved = _at(codes), saved.data_ptr()
    task.weight, task.bias = _at(weight), _at(bias)
    if sums is not task:
        sums.x, sums.saved, sums.bias = task.x, task.saved, task.bias
    sums.mean, sums.var = _at(mean), _at(var)
    _move(sums, running)
    run.forward()
    _keep(scratch)
    p.give_back(run)
    return y, mean, var, saved, codes


def measure(plan: Plan, x: Tensor) -> Tensor:
    """Return mean and 1 / √(biased variance + ε), float64 (2, C), of any x with the plan's layout.

    Args:
        plan: Whose ε is meant; nothing follows.
        x: (N, C, *), dense in the layout of the plan's family.
    """
    x = resolved(x)
    p = program(plan, x.shape, False, False)
    run = p.borrow()
    saved = torch.empty((3, x.shape[1]), dtype=torch.float64, device="cpu")
    scratch = _lend(run)
    task = run.sums
    task.x, task.saved = x.data_ptr(), saved.data_ptr()
    task.weight = task.bias = task.mean = task.var = 0
    _move(task, None)
    run.measure()
    _keep(scratch)
    p.give_back(run)
    return saved[:2]


def _move(task: Task, running: tuple[Tensor, Tensor, float, Tensor | None] | None) -> None:
    """Tell which running statistics are to be moved."""
    if running is None:
        task.running_mean = task.running_var = task.batches = 0
        return
    mean, var, task.momentum, batches = running
    task.running_mean, task.running_var = mean.data_ptr(), var.data_ptr()
    task.batches = _at(batches)


def backward(
    plan: Plan,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    residual: Tensor | None,
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
        residual: Where the codes do not stand for it.
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
    task.x, task.residual, task.codes = x.data_ptr(), _at(residual), _at(codes)
    task.dy, task.dx, task.dresidual = dy.data_ptr(), _at(dx), _at(dresidual)
    task.weight, task.saved = _at(weight), saved.data_ptr()
    task.dweight, task.dbias = _at(dweight), _at(dbias)
    if needs_x:
        (run.backward if reduces else run.spread)()
    elif reduces:
        run.reduce()
    _keep(scratch)
    p.give_back(run)
    return dx, dweight, dbias, dresidual


_scratch: list[Tensor] = []
"""Memory for sums and coefficients that no call uses now."""
_MOST_KEPT = 1 << 20
"""Numbers in such memory beyond which it is made anew for each call: 4 MiB."""


def _keep(scratch: Tensor) -> None:
    if scratch.numel() <= _MOST_KEPT:
        _scratch.append(scratch)


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


def _floats(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.float32, device="cpu")


def _at(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _like_output(plan: Plan, x: Tensor, task: Task) -> Tensor:
    if not plan.pool:
        return torch.empty_like(x)
    shape = x.shape[0], x.shape[1], task.out_height, task.out_width
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
