"""Weights of a network from a file of ours or of anybody else, and how they do not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gammabeta.errors import RunError
from gammabeta.training.checkpoint import check_safetensors, load_state


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a state_dict from safetensors, or from ``torch.save`` without running code in it.

    A training checkpoint that keeps the weights under "state_dict", "model_state_dict" or
    "model", and the "module." prefix of DataParallel, are understood.

    Raises:
        RunError: If the file is missing, damaged or holds no tensors.
    """
    weights: Mapping[str, Any]
    weights = _load_safetensors(path) if path.suffix == ".safetensors" else load_state(path)
    for key in ("state_dict", "model_state_dict", "model"):
        nested = weights.get(key)
        if isinstance(nested, dict):
            weights = nested
    named = {
        k.removeprefix("module."): v
        for k, v in weights.items()
        if isinstance(k, str) and isinstance(v, Tensor)
    }
    if not named:
        raise RunError(f"{path}: holds no tensors; a state_dict saved by torch.save was expected")
    return named


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        check_safetensors(path)
        return load_file(path)
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: is not a whole safetensors file: {error}") from None


def apply_weights(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Load a state_dict strictly; a checkpoint older than ``num_batches_tracked`` is accepted.

    Raises:
        RunError: Naming the file and each missing, unexpected or differently shaped entry.
    """
    wanted = model.state_dict()
    given = {k: v for k, v in wanted.items() if k.endswith("num_batches_tracked")} | dict(weights)
    wrong = [f"{key} is missing" for key in wanted if key not in given]
    wrong += [f"{key} is unknown" for key in given if key not in wanted]
    wrong += [
        f"{key} has shape {tuple(given[key].shape)}, expected {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in given and given[key].shape != value.shape
    ]
    if wrong:
        shown = "; ".join(wrong[:6]) + (f"; and {len(wrong) - 6} more" if len(wrong) > 6 else "")
        raise RunError(f"{source}: does not fit {type(model).__name__}: {shown}")
    model.load_state_dict(given)
