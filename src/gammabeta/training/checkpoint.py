"""Files that are either whole or absent, and the two that a training saves.

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
from safetensors.torch import save
from torch import nn

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
