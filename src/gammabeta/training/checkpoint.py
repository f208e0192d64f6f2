"""Files that are either whole or absent, and the two that hold a model.

Everything is written under a temporary name in the same folder, flushed to the disk and renamed,
so that a crash, a kill or a full disk leaves the previous file as it was.
"""

from __future__ import annotations

import io
import os
import pickle
import secrets
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from gammabeta.errors import RunError


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it to ``path``.

    Raises:
        RunError: If the file cannot be written (a full disk, say); ``path`` is as it was.
    """
    temporary = path.parent / f".{secrets.token_hex(8)}"
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise RunError(
            f"{path}: cannot be written ({reason}); what was saved before is untouched. "
            "Free some space or choose another place"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def save_model(path: Path, model: nn.Module) -> None:
    """Write a model's state_dict as safetensors."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    content = save(tensors)
    write_atomically(path, lambda file: file.write(content))


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a training state: tensors, numbers, strings, lists and dicts only."""
    buffer = io.BytesIO()  # torch.save hides what a file raises: a full disk, a Ctrl-C
    torch.save(dict(state), buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def load_state(path: Path) -> dict[str, Any]:
    """Read a training state without running any code in it (``weights_only=True``).

    Raises:
        RunError: If the file is missing, damaged, or holds anything but plain data.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle's protocol, of TorchScript
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except pickle.UnpicklingError:
        raise RunError(
            f"{path}: is damaged, or holds more than tensors and plain data, which is not run; "
            "save a model's state_dict() instead"
        ) from None
    except Exception as error:  # noqa: BLE001 - damaged pickles raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RunError(f"{path}: is not a whole file of tensors and plain data: {reason}") from None
    if not isinstance(state, dict):
        raise RunError(f"{path}: holds a {type(state).__name__}, but a dict was expected")
    return state


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
