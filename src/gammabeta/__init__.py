"""Batch Normalization for PyTorch: understand it, train with it, diagnose it, ship it.

The public names below are imported when they are first used, so that ``import gammabeta`` itself
costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gammabeta.errors import GammabetaError
    from gammabeta.models import Net
    from gammabeta.training.step import param_groups

__version__ = "0.1.0"
__all__ = ["GammabetaError", "Net", "__version__", "param_groups"]

_HOMES = {
    "GammabetaError": "gammabeta.errors",
    "Net": "gammabeta.models",
    "param_groups": "gammabeta.training.step",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'gammabeta' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
