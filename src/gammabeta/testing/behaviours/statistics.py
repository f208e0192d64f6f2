"""How the running statistics and their counter move."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from gammabeta.testing.behaviours.values import SMALL, shapes
from gammabeta.testing.case import Case, NotApplicableError, find, state
from gammabeta.testing.oracle import moments
from gammabeta.testing.registry import behaviour

NEEDS = ("training", "statistics")


def _follow(case: Case, momentum: float | None, given: bool) -> None:
    """Compare the statistics with the definition's over three batches of a shape."""
    for shape in shapes(case):
        options: Any = {"momentum": momentum} if given else {}
        layer = case.layer(shape[1], **options)
        want = {name: value.double() for name, value in state(layer).items()}
        for count in range(1, 4):
            x = case.input(shape, note=f"contiguous, momentum={momentum}, batch {count},")
            layer(x)
            weight = 1 / count if momentum is None else momentum
            new = moments(x.detach().double(), unbiased=True)
            for name, value in zip(("running_var", "running_mean"), new, strict=True):
                want[name] = (1 - weight) * want[name] + weight * value
                case.close(state(layer)[name], want[name], name)


@behaviour("running statistics move by momentum, with the unbiased variance", needs=NEEDS)
def momentum(case: Case) -> None:
    """Momentum weighs the new batch: the default 0.1, then 0.3, 0 (stays) and 1 (forgets)."""
    _follow(case, 0.1, given=False)
    for value in (0.3, 0.0, 1.0):
        _follow(case, value, given=True)


@behaviour("momentum=None keeps the plain average over all batches", needs=NEEDS)
def cumulative(case: Case) -> None:
    """The k-th batch weighs 1 / k."""
    _follow(case, None, given=True)


@behaviour("num_batches_tracked counts the training batches", needs=NEEDS)
def counter(case: Case) -> None:
    """It is an integer scalar that starts at zero."""
    shape = SMALL[case.dims[0]]
    layer = case.layer(shape[1])
    for count in range(3):
        found = find(layer, "num_batches_tracked")
        if found is None:
            raise NotApplicableError("it has no num_batches_tracked")
        if found.is_floating_point() or int(found) != count:
            case.fail(f"num_batches_tracked is {found} after {count} batches")
        layer(case.input(shape))


@behaviour("buffers are written in place", needs=NEEDS)
def addresses(case: Case) -> None:
    """Whoever holds a buffer (DDP, CUDA graphs, an average of weights) sees its new values."""
    shape = SMALL[case.dims[0]]
    layer = case.layer(shape[1])
    before = dict(layer.named_buffers())
    layer(case.input(shape))
    for name, buffer in layer.named_buffers():
        if before[name].data_ptr() != buffer.data_ptr():
            case.fail(f"{name} is another tensor after a step")


@behaviour("a batch of no samples leaves the running statistics alone", needs=NEEDS)
def empty(case: Case) -> None:
    """Whether it is counted is left open: torch does."""
    for d in case.dims:
        shape = (0, *SMALL[d][1:])
        layer = case.layer(shape[1])
        before = state(layer)
        y = layer(case.input(shape))
        if y.shape != shape:
            case.fail(f"the output has the shape {tuple(y.shape)}")
        for name in ("running_mean", "running_var"):
            case.close(state(layer)[name], before[name], name, bound=0)


LARGE = {2: (4096, 8), 3: (64, 8, 257), 4: (64, 8, 16, 16), 5: (16, 8, 4, 16, 16)}


def _large_mean(case: Case, mean: float, deviation: float) -> None:
    """Compare the batch's variance, read through momentum 1, with that of the rounded data."""
    for d in case.dims:
        for layout in ("contiguous", "channels_last"):
            case.where = f"{LARGE[d]} float32 {layout} training"
            x = (case.normal(LARGE[d]) * deviation + mean).float()
            if layout == "channels_last":
                x = channels_last(x)
            layer = case.layer(LARGE[d][1], momentum=1.0)
            layer(x)
            var, _ = moments(x.double(), unbiased=True)
            ratio = state(layer)["running_var"] / var
            case.close(ratio, torch.ones_like(var), "the variance, relatively,", bound=0.01)


def channels_last(x: Tensor) -> Tensor:
    """Return the same values with channels next to each other in memory, at any rank."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.dim() > 2 else x.t().contiguous().t()


@behaviour("float32 with mean 1e4 and deviation 1e-2 keeps its variance within 1 %", needs=NEEDS)
def mean_1e4(case: Case) -> None:
    """The variance of the data as rounded to float32, contiguous and channels-last."""
    _large_mean(case, 1e4, 1e-2)


@behaviour("float32 with mean 1e6 and deviation 1 keeps its variance within 1 %", needs=NEEDS)
def mean_1e6(case: Case) -> None:
    """The variance of the data as rounded to float32, contiguous and channels-last."""
    _large_mean(case, 1e6, 1.0)


@behaviour("torch.optim.swa_utils.update_bn recomputes its statistics", needs=NEEDS)
def swa(case: Case) -> None:
    """It looks for subclasses of torch's batch norm and sets their ``momentum`` to None."""
    shape = SMALL[case.dims[0]]
    batches = [case.input(shape, note="contiguous, 3 batches,").detach() for _ in range(3)]
    layer = case.layer(shape[1])
    update_bn(batches, nn.Sequential(layer))
    found = [moments(x.double(), unbiased=True) for x in batches]
    for i, name in enumerate(("running_var", "running_mean")):
        want = torch.stack([pair[i] for pair in found]).mean(0)
        case.close(state(layer)[name], want, name)
