"""What a file of weights holds, whoever wrote it and whatever it is called.

A file is untrusted: it must be a regular file, its content decides how it is read, and a header of
safetensors is bounded before it is parsed. What ``torch.save`` wrote is left to
:mod:`gammabeta.training.torch_file`.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from gammabeta.errors import RunError
from gammabeta.training.checkpoint import check_safetensors
from gammabeta.training.torch_file import read_torch_file

MAX_HEADER_BYTES = 16 * 2**20
"""Of a safetensors file: room for more than 100,000 tensors. The format itself allows 100 MB."""
ENDINGS = frozenset({".safetensors", ".pth", ".pt", ".ckpt", ".bin"})
MAX_SHOWN = 60
_KINDS = "neither safetensors nor what torch.save writes"


def read_file(path: Path) -> Mapping[Any, Any]:
    """Return what a file holds: a mapping in which, at some depth, tensors lie by name.

    Args:
        path: A safetensors file, or one that ``torch.save`` wrote, under any name.

    Raises:
        RunError: If it is missing, no regular file, damaged, or holds objects that cannot be had
            without running code.
    """
    start, size = _look(path)
    header = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and len(start) > 8:
        return _read_safetensors(path, header, size)
    if start.startswith((b"PK", b"\x80")):
        return _read_torch(path)
    raise RunError(f"{path}: is {'empty' if not size else _KINDS}")


def shown(name: object) -> str:
    r"""Return a name out of a file, fit for one line: short, without control characters.

    Example:
        >>> shown("fc.weight"), shown("a\nb" + 100 * "c")[:8]
        ('fc.weight', 'a\\nbcccc')
    """
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(name)[: MAX_SHOWN + 1])
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def _look(path: Path) -> tuple[bytes, int]:
    """Return a file's first bytes and its size; refuse what would block or never end."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            inside = next((f for f in sorted(path.iterdir()) if f.suffix in ENDINGS), None)
            hint = f", such as {inside}" if inside else ""
            raise RunError(f"{path}: is a folder, but a file of weights was expected{hint}")
        if not stat.S_ISREG(status.st_mode):
            raise RunError(f"{path}: is a pipe or a device, but a file of weights was expected")
        with path.open("rb") as file:
            return file.read(16), status.st_size
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"{path}: cannot be read: {reason}") from None


def _read_safetensors(path: Path, header: int, size: int) -> Mapping[Any, Any]:
    if header + 8 > size:
        raise RunError(f"{path}: is not a whole safetensors file: cut off in its header")
    if header > MAX_HEADER_BYTES:
        raise RunError(
            f"{path}: has a safetensors header of {header / 1e6:.0f} MB, more than the "
            f"{MAX_HEADER_BYTES / 1e6:.0f} MB that are read"
        )
    check_safetensors(path)
    try:
        return load_file(path)
    except Exception as error:  # noqa: BLE001 - unknown dtypes raise nearly anything
        raise RunError(
            f"{path}: is not a whole safetensors file: {shown(error)}; copy or save it again"
        ) from None


def _read_torch(path: Path) -> Mapping[Any, Any]:
    read = read_torch_file(path)
    if not isinstance(read, Mapping):
        raise RunError(
            f"{path}: holds a {shown(type(read).__name__)}, but a state_dict was expected: tensors "
            "by name"
        )
    return read
