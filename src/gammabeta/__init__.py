"""Batch Normalization for PyTorch: understand it, train with it, diagnose it, ship it.

The public names below are imported when they are first used, so that ``import gammabeta`` itself
costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gammabeta.deploy.export import export
    from gammabeta.errors import GammabetaError
    from gammabeta.insight.compare import compare
    from gammabeta.insight.explain import explain
    from gammabeta.models import Net
    from gammabeta.norm.act import BatchNormAct1d, BatchNormAct2d, BatchNormAct3d
    from gammabeta.norm.functional import batch_norm, batch_norm_and_stats
    from gammabeta.norm.layers import (
        BatchNorm1d,
        BatchNorm2d,
        BatchNorm3d,
        LazyBatchNorm1d,
        LazyBatchNorm2d,
        LazyBatchNorm3d,
    )
    from gammabeta.norm.renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
    from gammabeta.norm.updates import no_stats_update
    from gammabeta.population import recalibrate
    from gammabeta.surgery.accelerate import accelerate
    from gammabeta.surgery.convert import convert
    from gammabeta.surgery.fold import fold
    from gammabeta.surgery.freeze import freeze, unfreeze
    from gammabeta.training.step import param_groups

__version__ = "0.1.0"
__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormAct1d",
    "BatchNormAct2d",
    "BatchNormAct3d",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "GammabetaError",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "Net",
    "__version__",
    "accelerate",
    "batch_norm",
    "batch_norm_and_stats",
    "compare",
    "convert",
    "explain",
    "export",
    "fold",
    "freeze",
    "no_stats_update",
    "param_groups",
    "recalibrate",
    "unfreeze",
]

_NAMES_OF = {
    "gammabeta.deploy": ["export"],
    "gammabeta.errors": ["GammabetaError"],
    "gammabeta.insight.compare": ["compare"],
    "gammabeta.insight.explain": ["explain"],
    "gammabeta.models": ["Net"],
    "gammabeta.norm.act": [f"BatchNormAct{d}d" for d in (1, 2, 3)],
    "gammabeta.norm.functional": ["batch_norm", "batch_norm_and_stats"],
    "gammabeta.norm.layers": [f"{lazy}BatchNorm{d}d" for lazy in ("", "Lazy") for d in (1, 2, 3)],
    "gammabeta.norm.renorm": [f"BatchRenorm{d}d" for d in (1, 2, 3)],
    "gammabeta.norm.updates": ["no_stats_update"],
    "gammabeta.population": ["recalibrate"],
    "gammabeta.surgery.accelerate": ["accelerate"],
    "gammabeta.surgery.convert": ["convert"],
    "gammabeta.surgery.fold": ["fold"],
    "gammabeta.surgery.freeze": ["freeze", "unfreeze"],
    "gammabeta.training.step": ["param_groups"],
}
_HOMES = {name: home for home, names in _NAMES_OF.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'gammabeta' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
