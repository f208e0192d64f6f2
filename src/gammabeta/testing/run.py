"""Run every behaviour against one class and collect the report."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from gammabeta.errors import GammabetaError
from gammabeta.testing.case import BrokenError, Case, NotApplicableError, find
from gammabeta.testing.registry import Behaviour
from gammabeta.testing.registry import behaviours as registered
from gammabeta.testing.report import Report, Result

_PROBES = {2: (4, 3), 3: (4, 3, 2), 4: (4, 3, 2, 5), 5: (4, 3, 2, 5, 6)}


def check_batch_norm(
    cls: Callable[..., nn.Module],
    *,
    dims: Iterable[int] | None = None,
    make: Callable[..., nn.Module] | None = None,
    behaviours: Iterable[str] | None = None,
) -> Report:
    """Judge a batch norm class by the behaviours of PyTorch's contract, on the CPU.

    An activation that follows the normalisation is turned off for the comparison if the class takes
    ``activation`` or ``act_layer``; if it only has an attribute of such a name, ReLU is expected.
    A class without parameters that ignores the batch counts as frozen: what concerns training does
    not apply.

    The random generators, warnings and gradient mode of the process are as before; functions that
    ``torch.compile`` has compiled are forgotten, and compiled again when they are next called.

    Args:
        cls: A class or factory, called as ``cls(num_features, **options)`` with options of torch's
            names. Its layers take (N, C, *).
        dims: Ranks of input that it is meant for; by default those that it accepts.
        make: Called instead of ``cls``, which then only names the report.
        behaviours: Names of those to check (:func:`gammabeta.testing.names`); by default all.

    Returns:
        The report. An exception from the class under test is a failure, not an error.

    Raises:
        GammabetaError: If no layer can be made, none of the ranks is accepted, or a behaviour is
            not known.
    """
    make = make or cls
    known = registered()
    chosen = list(known) if behaviours is None else list(behaviours)
    if unknown := set(chosen) - set(known):
        raise GammabetaError(f"no behaviour is named {min(unknown)!r}; see testing.names()")
    name = f"{cls.__module__}.{getattr(cls, '__qualname__', type(cls).__name__)}"
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        warnings.simplefilter("ignore")
        facts = _inspect(name, make, dims)
        return Report(name, [_judge(known[one], Case(make, **facts)) for one in chosen])


def _inspect(
    name: str, make: Callable[..., nn.Module], dims: Iterable[int] | None
) -> dict[str, Any]:
    """Return what a :class:`Case` needs to know of the class."""
    try:
        layer = make(3)
    except Exception as error:
        raise GammabetaError(f"{name}(3) makes no layer: {_first_line(error)}") from error
    if not isinstance(layer, nn.Module):
        raise GammabetaError(f"{name}(3) is {type(layer).__name__}, expected a torch.nn.Module")
    accepted = tuple(sorted(dims or (d for d in _PROBES if _accepts(make(3).eval(), d))))
    if not accepted or not set(accepted) <= set(_PROBES):
        raise GammabetaError(f"{name} accepts no (N, C, *) input of 2 to 5 axes: {accepted}")
    plain = _activation_off(make)
    acts = any(hasattr(layer, attribute) for attribute in ("activation", "act_layer", "act"))
    return {
        "dims": accepted,
        "modes": ("eval",) if _is_frozen(layer, accepted[0]) else ("training", "eval"),
        "plain": plain,
        "relu": acts and not plain,
    }


def _accepts(layer: nn.Module, rank: int) -> bool:
    try:
        y = layer(torch.zeros(_PROBES[rank]))
    except Exception:  # noqa: BLE001 (any refusal will do)
        return False
    return bool(y.shape == _PROBES[rank])


def _is_frozen(layer: nn.Module, rank: int) -> bool:
    """Tell whether nothing is learned and the batch does not matter in training either."""
    x = torch.randn(_PROBES[rank])
    return not list(layer.parameters()) and torch.equal(layer.train()(x), layer.eval()(x))


def _activation_off(make: Callable[..., nn.Module]) -> dict[str, None]:
    """Return the option that turns the activation off, if there is one that works."""
    for name in ("activation", "act_layer"):
        if name in inspect.signature(make).parameters:
            try:
                make(3, **{name: None})
            except Exception:  # noqa: BLE001 (then it cannot be turned off)
                return {}
            return {name: None}
    return {}


def _judge(behaviour: Behaviour, case: Case) -> Result:
    """Run one behaviour; whatever the class under test raises is a failure of it."""
    try:
        _check_needs(behaviour, case)
        behaviour.check(case)
    except NotApplicableError as reason:
        return Result(behaviour.name, "not applicable", str(reason))
    except BrokenError as broken:
        return Result(behaviour.name, "failed", str(broken), case.error, case.where)
    except Exception as error:  # noqa: BLE001 (the subject's own, of any kind)
        return Result(behaviour.name, "failed", _first_line(error), None, case.where)
    return Result(behaviour.name, "passed", error=case.error)


def _check_needs(behaviour: Behaviour, case: Case) -> None:
    if "training" in behaviour.needs and "training" not in case.modes:
        raise NotApplicableError("it is frozen: it never trains")
    if "statistics" in behaviour.needs and find(case.layer(3), "running_mean") is None:
        raise NotApplicableError("it has no running statistics")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:140]
