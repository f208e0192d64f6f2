"""Reading what ``torch.save`` wrote, whoever did: no code is run, nothing is read beyond its end.

Every ``.pt`` and ``.pth`` file is read here. A seal that :func:`write_torch_file` left is checked;
files of others have none and are read without.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from gammabeta.errors import DamagedError, RunError
from gammabeta.files import NO_SEAL, is_intact, seal, write_atomically
from gammabeta.training.beside import stand_ins

_SEAL = b"gammabeta sha256 "
_COMMENT = len(_SEAL) + len(NO_SEAL)
MAX_PICKLE_BYTES = 2**26
"""Of an archive's pickle, without its tensors: room for some 400,000 of them."""
_TAIL = 1024
"""Where a seal is looked for: in the last bytes, also if the very last ones were cut off."""


def write_torch_file(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain data as ``torch.save`` does, sealed by a comment of the zip.

    Raises:
        RunError: If the file cannot be written; ``path`` is as it was.
    """
    buffer = io.BytesIO()  # torch.save hides what a file raises: a full disk, a Ctrl-C
    torch.save(dict(content), buffer)
    buffer.seek(-2, io.SEEK_END)
    buffer.write(struct.pack("<H", _COMMENT) + _SEAL + NO_SEAL)
    parts = seal(buffer.getbuffer(), buffer.tell() - len(NO_SEAL))
    write_atomically(path, lambda file: file.writelines(parts))


def read_torch_file(path: Path) -> Any:
    """Read tensors and plain data onto the CPU (``weights_only=True``).

    Raises:
        RunError: If the file is missing, damaged, or holds anything but plain data.
    """
    try:
        if not path.is_file():
            reason = "is not a file" if path.exists() else "no such file"
            raise RunError(f"{path}: {reason}")
        with path.open("rb") as file:
            _check_seal(path, file)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a pickle's protocol, of typed storages
                if zipfile.is_zipfile(file):
                    _check_records(file)
                file.seek(0)
                with torch.serialization.safe_globals(stand_ins(path)):
                    return torch.load(file, map_location="cpu", weights_only=True)
    except RunError:
        raise
    except _BadRecordError as error:
        raise RunError(f"{path}: is not a whole file: {error}") from None
    except Exception as error:  # noqa: BLE001 - damaged pickles raise nearly anything
        raise RunError(f"{path}: {_reason(str(error))}") from None


class _BadRecordError(ValueError):
    """An archive's records are not what its pickle says."""


def _reason(message: str) -> str:
    """Say in our words why a file is refused: torch's own advice is to run the file's code."""
    if "TorchScript" in message:
        return "is a TorchScript program; save its state_dict() with torch.save instead"
    unread = re.search(r"must be imported to load ([\w ()]+)", message)
    if unread:
        return f"holds {unread[1]}, which are not read; save plain tensors"
    named = re.search(r"GLOBAL ([\w.]{1,80})", message)
    if named:
        return f"names {named[1]}, which is not run; save model.state_dict() alone"
    return "is damaged, cut off, or not what torch.save writes; copy or save it again"


def _check_seal(path: Path, file: BinaryIO) -> None:
    """Refuse a file whose seal is broken; one that has neither its seal nor its place has none."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _TAIL))
    tail = file.read()
    end = tail.rfind(b"PK\5\6")
    announced = end >= 0 and tail[end + 20 : end + 22] == struct.pack("<H", _COMMENT)
    if not announced and _SEAL not in tail:
        return
    if not tail[-_COMMENT:].startswith(_SEAL) or not is_intact(file, size - len(NO_SEAL)):
        raise DamagedError(path)


def _check_records(file: BinaryIO) -> None:
    """Refuse an archive with a record shorter than its tensor, of which torch reads beyond it."""
    with zipfile.ZipFile(file) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        if len({name.casefold() for name in sizes}) < len(archive.infolist()):
            raise _BadRecordError("two of its records have one name")
        root = archive.namelist()[0].split("/")[0]
        if sizes.get(f"{root}/data.pkl", 0) > MAX_PICKLE_BYTES:
            raise _BadRecordError(f"its pickle has more than {MAX_PICKLE_BYTES:,} bytes")
        storages = _storages(archive.read(f"{root}/data.pkl"))
    for key, needed in storages.items():
        found = sizes.get(f"{root}/data/{key}", 0)
        if found < needed:
            raise _BadRecordError(f"a tensor of {needed:,} bytes has {found:,}")


def _storages(pickled: bytes) -> dict[str, int]:
    """Return the bytes that each record must have, as the pickle of an archive says."""
    reader = _Storages(io.BytesIO(pickled))
    reader.load()
    return reader.needed


class _Inert:
    """Stands for every class and function in a pickle, and does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...
    def __setstate__(self, state: object) -> None: ...
    def __setitem__(self, key: object, value: object) -> None: ...
    def append(self, item: object) -> None: ...
    def extend(self, items: object) -> None: ...
    def add(self, item: object) -> None: ...


class _Storages(pickle.Unpickler):
    """Walks through a pickle without running anything, and notes the storages it asks for."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="utf-8")
        self.needed: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> type:  # noqa: ARG002 - pickle's signature
        """Return a class that does nothing and knows its size, if it is a storage's."""
        dtype = getattr(getattr(torch, name, None), "dtype", None) if "Storage" in name else None
        size = dtype.itemsize if isinstance(dtype, torch.dtype) else 1
        return type(name, (_Inert,), {"itemsize": size})

    def persistent_load(self, saved: Any) -> _Inert:
        """Note the size of ("storage", its class, its key, its device, its number of items)."""
        _, kind, key, _, count = saved
        if not isinstance(count, int) or count < 0:
            raise _BadRecordError(f"a tensor has {count!r} items")
        self.needed[str(key)] = max(self.needed.get(str(key), 0), count * kind.itemsize)
        return _Inert()
