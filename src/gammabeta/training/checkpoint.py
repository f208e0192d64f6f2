"""The files of a checkpoint: the state, to continue from, and the model, for everybody.

``state.pt`` alone is the checkpoint: it appears whole, with the weights and the history in it, and
all else can be written anew from it. The one before it is kept. Both files carry a checksum
(:mod:`gammabeta.files`) that is checked when they are read; files without one stay readable: those
of others, and those of runs that were begun before there were any.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from gammabeta.errors import DamagedError, RunError
from gammabeta.files import NO_SEAL, is_intact, keep_as, seal, write_atomically
from gammabeta.training.torch_file import read_torch_file, write_torch_file

_METADATA = b'{"__metadata__":{'
_SEAL = _METADATA + b'"gammabeta":"sha256 '
_AT = 8 + len(_SEAL)
"""Where the seal of a safetensors file stands: its header follows the 8 bytes of its length."""
_HEAD = re.compile(re.escape(_SEAL) + rb"[0-9a-f]{64}(?: step (\d+))?\"")


def save_model(path: Path, model: nn.Module, step: int | None = None) -> None:
    """Write a model's state_dict as safetensors, sealed in its metadata.

    Args:
        path: The file.
        model: Whose tensors are written.
        step: After how many steps of its training, if that goes on.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    entry = f"sha256 {NO_SEAL.decode()}" + ("" if step is None else f" step {step}")
    parts = seal(save(tensors, {"gammabeta": entry}), _AT)  # one entry: their order is random
    write_atomically(path, lambda file: file.writelines(parts))


def check_safetensors(path: Path, *, ours: bool = False) -> int | None:
    """Check the seal of a safetensors file, if it has one.

    Args:
        path: The file; an absent one is left to whoever opens it.
        ours: Whether it is known to be ours: metadata that are no seal are a damaged one then.

    Returns:
        The step that it was saved at; None if that is not known.

    Raises:
        DamagedError: If the content is not what was sealed.
    """
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(8 + 512)[8:]
        found = _HEAD.match(head)
        if head.startswith(_METADATA if ours else _SEAL) and not (found and is_intact(file, _AT)):
            raise DamagedError(path)
    return int(found[1]) if found and found[1] else None


def save_state(path: Path, state: Mapping[str, Any], previous: Path | None = None) -> None:
    """Write a training state: tensors, numbers, strings, lists and dicts only.

    Args:
        path: The file; at every moment it is whole, the old one or the new one.
        state: What it holds.
        previous: Where the old one is kept.
    """
    if previous and path.exists():
        keep_as(path, previous)
    write_torch_file(path, state)


def load_state(path: Path) -> dict[str, Any]:
    """Read a training state without running any code in it.

    Raises:
        DamagedError: If its content is not what was written.
        RunError: If the file is missing, or holds anything but plain data.
    """
    state = read_torch_file(path)
    if not isinstance(state, dict):
        raise RunError(f"{path}: holds a {type(state).__name__}, but a dict was expected")
    return state
