"""Inputs out of the ordinary: memory layouts, values that are no numbers, and what is refused."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gammabeta.testing.behaviours.statistics import channels_last
from gammabeta.testing.behaviours.values import SMALL
from gammabeta.testing.case import Case, eps_of, find, state
from gammabeta.testing.registry import behaviour


def layouts(x: Tensor) -> dict[str, Tensor]:
    """Return tensors with unusual strides; the expanded ones repeat some of the values."""
    spaced = torch.stack([x, x + 1], -1).flatten(-2)[..., ::2]
    inner = torch.cat([x + 1, x, x - 1], 1)[:, x.shape[1] : 2 * x.shape[1]]
    found = {
        "channels_last": channels_last(x),
        "every other element": spaced,
        "slice of channels": inner,
        "channels expanded": x[:, :1].expand_as(x),
    }
    if x.dim() > 2:
        found["batch expanded"] = x[:1].expand_as(x)
        found["reversed axes"] = (
            x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))
        )
    return found


@behaviour("memory layout does not change the result")
def strides(case: Case) -> None:
    """Output and gradients are those of a contiguous copy; cotangents have odd strides as well."""
    for d in case.dims:
        for mode in case.modes:
            for note, x in layouts(case.input(SMALL[d], mode).detach()).items():
                case.where = f"{SMALL[d]} float32 {note} {mode}"
                layer = case.layer(SMALL[d][1], mode)
                x.requires_grad_()
                for dy in (case.normal(SMALL[d]), channels_last(case.normal(SMALL[d]))):
                    want = case.expected(layer, x, dy, mode)
                    case.all_close(case.step(layer, x, dy), want)


@behaviour("NaN and infinity spread through their channel, as in torch.nn")
def not_numbers(case: Case) -> None:
    """One such value: the others of its channel become NaN in training, other channels do not."""
    for bad in (float("nan"), float("inf"), float("-inf")):
        for mode in case.modes:
            shape = SMALL[case.dims[0]]
            x = case.input(shape, mode, note=f"contiguous, one {bad},").detach()
            x[1, 1] = bad
            layer = case.layer(shape[1], mode)
            running = state(layer)
            mean, var = running.get("running_mean"), running.get("running_var")
            weight, bias = find(layer, "weight"), find(layer, "bias")
            want = F.batch_norm(x, mean, var, weight, bias, mode == "training", eps=eps_of(layer))
            want = want.relu() if case.relu else want
            case.close(layer(x), want, "y")
            for name, tensor in running.items():
                if name.startswith("running"):
                    # NaN or infinity, and which of them, depends on the order of sums.
                    found = state(layer)[name].isfinite()
                    case.close(found, tensor.isfinite(), f"where {name} is finite")


@behaviour("one value per channel in training raises ValueError", needs=("training",))
def one_value(case: Case) -> None:
    """Its variance is zero, and the output would not depend on the input."""
    for d in case.dims:
        shape = (1, 3, *[1] * (d - 2))
        _refuses(case, shape)


@behaviour("an input of the wrong rank raises ValueError")
def wrong_rank(case: Case) -> None:
    """Broadcasting must not let it through."""
    for d in set(range(1, 7)) - set(case.dims):
        _refuses(case, (4, 3, 2, 5, 6, 2)[:d])


def _refuses(case: Case, shape: tuple[int, ...]) -> None:
    mode = case.modes[0]
    layer = case.layer(3, mode)
    case.where = f"{shape} float32 contiguous {mode}"
    try:
        y = layer(torch.ones(shape))
    except ValueError:
        return
    case.fail(f"it returns a tensor of shape {tuple(y.shape)}")
