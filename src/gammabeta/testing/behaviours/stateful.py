"""Steps that overlap: recomputation, two forwards before a backward, threads, and compilation."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gammabeta.testing.behaviours.values import SMALL
from gammabeta.testing.case import Case, find, gradients, state
from gammabeta.testing.registry import behaviour


@behaviour("activation checkpointing updates the statistics once", needs=("training",))
def checkpointing(case: Case) -> None:
    """Reentrant and not: the forward runs again in the backward, with the same batch."""
    shape = SMALL[case.dims[0]]
    for reentrant in (False, True):
        x = case.input(shape, note=f"contiguous, use_reentrant={reentrant},")
        layer, dy = case.layer(shape[1]), case.normal(shape)
        twin = copy.deepcopy(layer)
        want = case.step(twin, x, dy)
        y = checkpoint(layer, x, use_reentrant=reentrant)
        y.backward(dy.float())
        case.close(y, want["y"], "y")
        case.close(torch.zeros_like(x) if x.grad is None else x.grad, want["dx"], "dx")
        case.all_close(state(layer), state(twin))


@behaviour("buffers may be overwritten between two forwards and a backward", needs=("training",))
def two_forwards(case: Case) -> None:
    """As DistributedDataParallel does when it broadcasts buffers before each forward."""
    shape = SMALL[case.dims[0]]
    layer = case.layer(shape[1])
    xs = [case.input(shape) for _ in range(2)]
    dys = [case.normal(shape) for _ in xs]
    want = [case.expected(layer, x, dy, "training") for x, dy in zip(xs, dys, strict=True)]
    ys = []
    for x in xs:
        ys.append(layer(x))
        with torch.no_grad():
            for buffer in layer.buffers():
                buffer.copy_(torch.full_like(buffer, 3))
    leaves = find(layer, "weight"), find(layer, "bias")
    for y, dy, x, one in zip(ys, dys, xs, want, strict=True):
        case.all_close(gradients(y, dy.float(), x, *leaves), one)


@behaviour("two Python threads with a layer each give the bits of a serial run")
def threads(case: Case) -> None:
    """Each thread does ten steps, in step with the other; nothing may leak between layers."""
    shape = (16, *SMALL[case.dims[-1]][1:])
    mode = case.modes[0]
    jobs = [
        (case.layer(3, mode), [case.input(shape, mode) for _ in range(10)], case.normal(shape))
        for _ in range(2)
    ]
    serial = [_train(*copy.deepcopy(job), Barrier(1)) for job in jobs]
    barrier = Barrier(2, timeout=60)
    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(_train, *job, barrier) for job in jobs]
        for got, want in zip(done, serial, strict=True):
            for a, b in zip(got.result(), want, strict=True):
                case.close(a, b, "a tensor", bound=0)


def _train(layer: nn.Module, inputs: list[Tensor], dy: Tensor, barrier: Barrier) -> list[Tensor]:
    found: list[Tensor] = []
    for x in inputs:
        barrier.wait()
        y = layer(x)
        barrier.wait()
        found += gradients(y, dy.float(), x, find(layer, "weight"), find(layer, "bias")).values()
    return [*found, *state(layer).values()]


def _compiled(case: Case, **options: Any) -> None:
    """Compare two steps with those of the layer that is not compiled."""
    shape = SMALL[case.dims[0]]
    for mode in case.modes:
        layer = case.layer(shape[1], mode, **options)
        twin = copy.deepcopy(layer)
        torch._dynamo.reset()
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for _ in range(2):
            x, dy = case.input(shape, mode, note="contiguous, compiled,"), case.normal(shape)
            want = case.step(twin, x, dy)
            leaves = find(layer, "weight"), find(layer, "bias")
            case.all_close(gradients(compiled(x), dy.float(), x, *leaves), want)
            case.all_close(state(layer), state(twin))


@behaviour("torch.compile(fullgraph=True) changes nothing")
def compiling(case: Case) -> None:
    """With the backend aot_eager, which traces forward and backward but generates no code."""
    _compiled(case)


@behaviour("torch.compile(fullgraph=True) with momentum=None changes nothing", needs=("training",))
def compiling_average(case: Case) -> None:
    """The weight 1 / count must not be read on the host, which would break the graph."""
    _compiled(case, momentum=None)
