"""The constructor's options, by torch's names; a class that does not take one is not concerned."""

from __future__ import annotations

from typing import Any

from gammabeta.testing.behaviours.values import SMALL
from gammabeta.testing.case import Case, find
from gammabeta.testing.registry import behaviour


def _steps(case: Case, absent: tuple[str, ...] = (), **options: Any) -> None:
    """Compare a layer with such options in each mode, and see that it lacks some tensors."""
    for d in case.dims:
        for mode in case.modes:
            layer = case.layer(SMALL[d][1], mode, **options)
            x, dy = case.input(SMALL[d], mode), case.normal(SMALL[d])
            for name in absent:
                if find(layer, name) is not None:
                    case.fail(f"it still has {name}")
            want = case.expected(layer, x, dy, mode)
            case.all_close(case.step(layer, x, dy), want)


@behaviour("eps is added to the variance, inside the root")
def eps(case: Case) -> None:
    """With ``eps=0.5`` the place of it shows."""
    _steps(case, eps=0.5)


@behaviour("track_running_stats=False keeps none and uses the batch in eval", needs=("training",))
def untracked(case: Case) -> None:
    """Without running statistics, training and eval are the same."""
    _steps(case, ("running_mean", "running_var", "num_batches_tracked"), track_running_stats=False)


@behaviour("affine=False has no γ and no β", needs=("training",))
def plain(case: Case) -> None:
    """The output is the normalised input."""
    _steps(case, ("weight", "bias"), affine=False)


@behaviour("bias=False has γ and no β", needs=("training",))
def unbiased(case: Case) -> None:
    """The output is the normalised input times γ."""
    _steps(case, ("bias",), bias=False)
