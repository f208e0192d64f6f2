"""The list of behaviours: each a short function, registered under the sentence it claims.

A new one is a function with a docstring in ``gammabeta.testing.behaviours`` and this decorator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from gammabeta.testing.case import Case

Check = Callable[[Case], None]

_PARTS = ("values", "statistics", "options", "inputs", "derivatives", "stateful", "tools")
_registered: dict[str, Behaviour] = {}


@dataclass(frozen=True)
class Behaviour:
    """One claim about a batch norm and the function that tests it.

    Args:
        name: The claim, a sentence about the layer.
        check: Returns if it holds for a case; else raises.
        needs: "training" or "statistics" for what a layer must have for the claim to concern it.
    """

    name: str
    check: Check
    needs: tuple[str, ...]


def behaviour(name: str, *, needs: tuple[str, ...] = ()) -> Callable[[Check], Check]:
    """Register the decorated function as the test of the behaviour of that name."""

    def register(check: Check) -> Check:
        _registered[name] = Behaviour(name, check, needs)
        return check

    return register


def behaviours() -> dict[str, Behaviour]:
    """Return every behaviour by name, in the order of the report."""
    homes = [import_module(f"gammabeta.testing.behaviours.{part}").__name__ for part in _PARTS]
    listed = sorted(_registered.items(), key=lambda item: homes.index(item[1].check.__module__))
    return dict(listed)


def names() -> list[str]:
    """Return the name of every behaviour, in the order of the report."""
    return list(behaviours())
