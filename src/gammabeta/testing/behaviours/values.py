"""What a layer computes from plain inputs: output and gradients, in training and in eval."""

from __future__ import annotations

import inspect

import torch
from torch import nn
from torch.nn import functional as F

from gammabeta.testing.case import Case, NotApplicableError, state
from gammabeta.testing.oracle import HALVES
from gammabeta.testing.registry import behaviour

SHAPES: dict[int, list[tuple[int, ...]]] = {
    2: [(2, 1), (5, 3), (257, 5)],
    3: [(1, 1, 2), (5, 3, 7), (3, 17, 65)],
    4: [(2, 1, 1, 1), (1, 2, 1, 3), (4, 3, 5, 7), (9, 5, 33, 31)],
    5: [(2, 1, 1, 1, 1), (2, 3, 2, 3, 2), (3, 5, 7, 9, 11)],
}
"""By rank, from small to large: C = 1, two values a channel, odd sizes, several cache lines."""
SMALL: dict[int, tuple[int, ...]] = {2: (6, 3), 3: (4, 3, 5), 4: (4, 3, 3, 5), 5: (2, 3, 2, 3, 5)}


def shapes(case: Case) -> list[tuple[int, ...]]:
    """Return the shapes of the class's ranks, small ones first."""
    return sorted(
        (shape for d in case.dims for shape in SHAPES[d]), key=lambda s: torch.Size(s).numel()
    )


def _steps(case: Case, mode: str, names: tuple[str, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    """Compare the named results with the definition for each shape and dtype."""
    for shape in shapes(case):
        for dtype in dtypes:
            x = case.input(shape, mode, dtype)
            layer = case.layer(shape[1], mode, torch.float32 if dtype in HALVES else dtype)
            dy = case.normal(shape)
            want = case.expected(layer, x, dy, mode)
            got = case.step(layer, x, dy)
            if got["y"].dtype != dtype:
                case.fail(f"the output is {got['y'].dtype}, the input {dtype}")
            for name in names:
                if name in want:
                    case.close(got[name], want[name], name)


WIDE = (torch.float64, torch.float32)


@behaviour("training output is the definition's, with the biased variance", needs=("training",))
def training_output(case: Case) -> None:
    """That is γ (x - μ) / √(v + ε) + β with the batch's mean and biased variance."""
    _steps(case, "training", ("y",), WIDE)


@behaviour("training gradients of x, γ and β are the definition's", needs=("training",))
def training_gradients(case: Case) -> None:
    """For a random cotangent; a summed output would have a gradient of zero."""
    _steps(case, "training", ("dx", "dγ", "dβ"), WIDE)


@behaviour("eval output uses the running statistics", needs=("statistics",))
def eval_output(case: Case) -> None:
    """The running statistics are random, far from the batch's."""
    _steps(case, "eval", ("y",), WIDE)


@behaviour("eval gradients hold the running statistics constant", needs=("statistics",))
def eval_gradients(case: Case) -> None:
    """In eval the layer is affine, so dx = γ / √(v + ε) dy."""
    _steps(case, "eval", ("dx", "dγ", "dβ"), WIDE)


@behaviour("bfloat16 and float16 data keep their dtype and only round once")
def halves(case: Case) -> None:
    """Parameters stay float32, and so are their gradients, to the accuracy of float32."""
    for mode in case.modes:
        _steps(case, mode, ("y", "dx", "dγ", "dβ"), HALVES)


@behaviour("the default activation follows the normalisation")
def activation(case: Case) -> None:
    """Only for classes whose activation is turned off elsewhere, and by default is ReLU."""
    if not case.plain:
        raise NotApplicableError("it has no activation that can be turned off")
    default = inspect.signature(case.make).parameters[next(iter(case.plain))].default
    if default not in {"relu", nn.ReLU, F.relu, torch.relu}:
        raise NotApplicableError(f"its default activation is {default!r}, not ReLU")
    shape = SMALL[case.dims[0]]
    for mode in case.modes:
        x, dy = case.input(shape, mode), case.normal(shape)
        layer = case.layer(shape[1], mode, with_activation=True)
        want = Case(case.make, case.dims, relu=True).expected(layer, x, dy, mode)
        case.all_close(case.step(layer, x, dy), want)


@behaviour("eval leaves every buffer bit-identical", needs=("statistics",))
def eval_keeps_buffers(case: Case) -> None:
    """Neither the statistics nor the counter move."""
    shape = SMALL[case.dims[0]]
    layer = case.layer(shape[1], "eval")
    before = state(layer)
    layer(case.input(shape, "eval")).sum().backward()
    for name, tensor in state(layer).items():
        case.close(tensor, before[name], name, bound=0)
