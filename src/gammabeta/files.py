"""Files of ours: whole or absent on the disk, sealed with a checksum, swept up after a kill.

A file is written under a temporary name in the same folder, flushed to the disk and renamed, so
that a crash, a kill or a full disk leaves the previous file as it was. The writer holds a lock on
the temporary file; one that nobody holds was left behind by a kill, and :func:`sweep` removes it.

A sealed file carries its own SHA-256 as 64 hexadecimal digits somewhere in it, computed as if
these digits were zeros. The format decides where: a field of a JSON document, a comment of a zip.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from gammabeta.errors import RunError

try:
    import fcntl
except ImportError:  # not a POSIX system: temporary files are left to their owners
    fcntl = None  # type: ignore[assignment]

NO_SEAL = b"0" * 64
"""What stands where the digits of a seal will be."""
_CHUNK = 1 << 20


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it to ``path``.

    Raises:
        RunError: If the file cannot be written (a full disk, say); ``path`` is as it was.
    """
    try:
        with temporary_beside(path) as (file, temporary):
            write(file)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        flush_folder(path.parent)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise RunError(
            f"{path}: cannot be written ({reason}); what was saved before is untouched. "
            "Free some space or choose another place"
        ) from error


@contextmanager
def temporary_beside(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Yield a new file in the folder of ``path`` and its name; what is left of it is removed."""
    file, temporary = _create(path.parent)
    try:
        with file:
            yield file, temporary
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _create(folder: Path) -> tuple[BinaryIO, Path]:
    """Make and lock a file; anew, should :func:`sweep` have taken it for a leftover before."""
    while True:
        path = _temporary_name(folder)
        file = path.open("xb")
        with suppress(OSError):  # swept: gone, or without a lock: no sweep can happen
            if not _lock(file.fileno()) or os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file, path
        file.close()


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path``, to be filled and renamed; what is left is removed."""
    folder = _temporary_name(path.parent)
    folder.mkdir(parents=True)
    held = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        if held is not None:
            _lock(held)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


def keep_as(path: Path, other: Path) -> None:
    """Give a file a second name, which outlives that the first is written anew; or copy it.

    Where neither can be done, ``other`` stays as it was.
    """
    temporary = _temporary_name(other.parent)
    with suppress(OSError):
        try:
            os.link(path, temporary)
        except OSError:  # a file system on which a file has one name
            shutil.copyfile(path, temporary)
        temporary.replace(other)
    with suppress(OSError):  # renaming does nothing where both are names of one file already
        temporary.unlink()


def _temporary_name(folder: Path) -> Path:
    """Return a name that :func:`sweep` knows as ours."""
    return folder / f".gammabeta-{secrets.token_hex(8)}.tmp"


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes left in ``folder``.

    Only our own names are looked at, and only those that no process holds.
    """
    for path in leftovers(folder):
        with suppress(OSError):
            if path.is_symlink() or not fcntl:
                continue
            held = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                os.close(held)


def leftovers(folder: Path) -> list[Path]:
    """Return the temporary files and folders of ours in ``folder``, held or not."""
    return sorted(folder.glob(f".gammabeta-{'[0-9a-f]' * 16}.tmp"))


def flush_folder(folder: Path) -> None:
    """Write a folder's names to the disk, where the system can; a rename is safe only then."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock a file just made, for as long as it is open; False where files have no locks."""
    if not fcntl:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def seal(content: bytes | memoryview, at: int) -> tuple[memoryview, bytes, memoryview]:
    """Return ``content`` in three parts, the middle one its seal.

    Args:
        content: With 64 zeros at ``at``.
        at: Where the seal stands.

    Example:
        >>> import io
        >>> before, digits, after = seal(b"a" + NO_SEAL + b"z", at=1)
        >>> is_intact(io.BytesIO(b"a" + digits + b"z"), at=1)
        True
        >>> is_intact(io.BytesIO(b"b" + digits + b"z"), at=1)
        False
    """
    view = memoryview(content)
    end = at + len(NO_SEAL)
    digest = hashlib.sha256(view)
    return view[:at], digest.hexdigest().encode(), view[end:]


def is_intact(file: BinaryIO, at: int) -> bool:
    """Tell whether the 64 digits at ``at`` are the checksum of the whole file without them."""
    digest = hashlib.sha256()
    file.seek(0)
    _feed(digest, file, at)
    found = file.read(len(NO_SEAL))
    digest.update(NO_SEAL)
    _feed(digest, file)
    return digest.hexdigest().encode() == found


def _feed(digest: hashlib._Hash, file: BinaryIO, size: float = math.inf) -> None:
    while chunk := file.read(int(min(_CHUNK, size))):
        digest.update(chunk)
        size -= len(chunk)


def to_json(value: Any, indent: int | None = None) -> str:
    """Return JSON in which null stands for NaN and infinity, which JSON does not know.

    Example:
        >>> to_json({"loss": float("nan"), "steps": (1, 2)})
        '{"loss": null, "steps": [1, 2]}'
    """
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def finite(value: Any) -> Any:
    """Return a copy of a JSON-able value in which None stands for what JSON cannot say."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
