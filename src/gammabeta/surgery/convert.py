"""Exchanging torch's batch norm layers for gammabeta's, and back, with nothing lost.

The two have the same attributes, so a layer is converted by giving the object its twin's class.
All it holds stays where it is: parameters, buffers, hooks, mode, frozen state, who shares it.
"""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import is_parametrized

from gammabeta.errors import GammabetaError
from gammabeta.norm import layers
from gammabeta.surgery.accelerate import restore
from gammabeta.surgery.report import Entry, Report

M = TypeVar("M", bound=nn.Module)

_NAMES = [f"{lazy}BatchNorm{d}d" for lazy in ("", "Lazy") for d in (1, 2, 3)]
_TWINS: dict[str, dict[type, type]] = {
    "gammabeta": {getattr(nn, name): getattr(layers, name) for name in _NAMES},
    "torch": {getattr(layers, name): getattr(nn, name) for name in _NAMES},
}


def convert(model: M, to: str = "gammabeta", *, inplace: bool = False) -> M:
    """Exchange every batch norm layer for its twin.

    Only layers of exactly torch's or gammabeta's classes are converted; a subclass may do more
    than its parent, and is left alone with the reason in ``model.gammabeta_report``.

    Args:
        model: The model, or a single layer.
        to: "gammabeta" or "torch". To "torch" also undoes :func:`gammabeta.accelerate`.
        inplace: Convert the given model instead of a deep copy.

    Returns:
        The converted model.

    Raises:
        GammabetaError: For another target, or a layer that uses what torch's has not (ghost
            batches) when ``to`` is "torch".

    Example:
        >>> model = convert(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
        >>> type(model[1]).__module__
        'gammabeta.norm.layers'
        >>> print(model.gammabeta_report)
        done  1: torch.nn.BatchNorm1d to gammabeta.BatchNorm1d
    """
    if to not in _TWINS:
        raise GammabetaError(f"to is {to!r}, but must be {' or '.join(_TWINS)}")
    if to == "torch":
        _refuse_ghosts(model)
    model = model if inplace else copy.deepcopy(model)
    report = Report()
    if to == "torch" and sum(map(restore, model.modules())):
        report.done.append(Entry("", "the original forward runs again"))
    convert_layers(model, to, report)
    model.gammabeta_report = report  # type: ignore[assignment]
    return model


def convert_layers(model: nn.Module, to: str, report: Report) -> None:
    """Do the work of :func:`convert`, in place, and add to a report."""
    for path, module in model.named_modules():
        if isinstance(module, _NormBase):
            _convert_layer(path, module, to, report)


def _convert_layer(path: str, module: nn.Module, to: str, report: Report) -> None:
    kind = type(module)
    parametrized = is_parametrized(module)
    plain = kind.__bases__[0] if parametrized else kind
    twin = _TWINS[to].get(plain)
    if twin is None:
        already = plain in _TWINS[to].values()
        why = f"is {to}'s already" if already else f"{plain.__name__} has no twin"
        report.left.append(Entry(path, why))
        return
    # A parametrized module is of a class of its own, which torch derived from the plain one.
    module.__class__ = type(kind.__name__, (twin,), dict(vars(kind))) if parametrized else twin
    report.done.append(Entry(path, f"{_title(plain)} to {_title(twin)}"))


def _title(kind: type) -> str:
    home = "gammabeta" if kind.__module__.startswith("gammabeta") else "torch.nn"
    return f"{home}.{kind.__name__}"


def _refuse_ghosts(model: nn.Module) -> None:
    ghosts = [
        path or type(module).__name__
        for path, module in model.named_modules()
        if isinstance(module, layers._Layer) and module.virtual_batch_size is not None
    ]
    if ghosts:
        raise GammabetaError(
            f"torch has no ghost batches, which {', '.join(ghosts)} use; set their "
            "virtual_batch_size to None first"
        )
