"""Stand-ins for the objects that lie beside the weights in people's checkpoints.

Command line arguments, NumPy numbers and paths would keep ``torch.load`` from reading the tensors,
for their classes might run code. Here they are read as something empty: no class is imported.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

BESIDE_WEIGHTS = frozenset(
    {
        *("argparse", "collections", "datetime", "numpy", "pathlib", "types"),
        *("lightning", "lightning_fabric", "omegaconf", "pytorch_lightning", "yacs"),
    }
)
"""Packages whose objects lie beside the weights in checkpoints; none is imported for it."""
FACTORIES = frozenset(f"builtins.{name}" for name in ("dict", "float", "int", "list", "str"))
"""What a defaultdict fills itself with."""


def stand_ins(path: Path) -> list[Any]:
    """Return what ``torch.serialization.safe_globals`` needs to pass over harmless objects.

    Args:
        path: What ``torch.save`` wrote; of the format before torch 1.6, or damaged, there are none.
    """
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # noqa: BLE001 - torch.load will tell what is wrong with it
        return []
    return [
        (_NoDict if name.lower().endswith("dict") else _NoObject, name)
        for name in named
        if name in FACTORIES or name.partition(".")[0] in BESIDE_WEIGHTS
    ]


class _NoObject:
    """Stands for an object whose class is not imported; whatever it is made of is dropped."""

    def __new__(cls, *_: object) -> _NoObject:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None: ...
    def __setstate__(self, _: object) -> None: ...


class _NoDict:
    """Stands for a class of dictionaries: makes plain ones, which torch lets a file fill."""

    def __new__(cls, *_: object) -> Any:
        return OrderedDict()
