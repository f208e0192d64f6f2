"""The two files of a checkpoint: the model, for everybody, and the state, to continue from.

Both are sealed with a checksum (:mod:`gammabeta.files`) that is checked when they are read. Files
without one stay readable: those of others, and those of runs that were begun before there were any.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from gammabeta.errors import DamagedError, RunError
from gammabeta.files import NO_SEAL, is_intact, seal, write_atomically
from gammabeta.training.torch_file import read_torch_file, write_torch_file

_KEY = "gammabeta_sha256"
_METADATA = b'{"__metadata__":{'
_SEAL = _METADATA + f'"{_KEY}":"'.encode()
_AT = 8 + len(_SEAL)
"""Where the seal of a safetensors file stands: its header follows the 8 bytes of its length."""


def save_model(path: Path, model: nn.Module) -> None:
    """Write a model's state_dict as safetensors, sealed by an entry of its metadata."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    parts = seal(save(tensors, {_KEY: NO_SEAL.decode()}), _AT)
    write_atomically(path, lambda file: file.writelines(parts))


def check_safetensors(path: Path, *, ours: bool = False) -> None:
    """Check the seal of a safetensors file, if it has one.

    Args:
        path: The file; an absent one is left to whoever opens it.
        ours: Whether we wrote it: then metadata without a seal are a damaged seal.

    Raises:
        DamagedError: If the content is not what was sealed.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        head = file.read(_AT)[8:]
        if head != _SEAL and not (ours and head.startswith(_METADATA)):
            return
        if head != _SEAL or not is_intact(file, _AT):
            raise DamagedError(path)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a training state: tensors, numbers, strings, lists and dicts only."""
    write_torch_file(path, state)


def load_state(path: Path) -> dict[str, Any]:
    """Read a training state without running any code in it.

    Raises:
        RunError: If the file is missing, damaged, or holds anything but plain data.
    """
    state = read_torch_file(path)
    if not isinstance(state, dict):
        raise RunError(f"{path}: holds a {type(state).__name__}, but a dict was expected")
    return state
