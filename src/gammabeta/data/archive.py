"""Taking named files out of a tar.gz archive that nobody vouches for.

Only regular files with the wanted names are written, under those names and into a new folder, so
that no member can choose where it lands, what it links to or which rights it has. An archive that
holds anything but plain files and folders with relative paths is refused as a whole all the same:
it is not the official one. The folder appears complete or not at all.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import uuid
import zlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from gammabeta.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection

CHUNK = 1 << 20
MARGIN = 1 << 20
"""What headers and padding may add to the members' sizes."""


class _Bounded:
    """A stream that refuses to give more than ``limit`` bytes: headers can be bombs too."""

    def __init__(self, stream: gzip.GzipFile, limit: int) -> None:
        self.stream, self.left = stream, limit

    def read(self, size: int = CHUNK) -> bytes:
        """Read as the stream does, and count."""
        chunk = self.stream.read(size)
        self.left -= len(chunk)
        if self.left < 0:
            raise tarfile.ReadError("it unpacks to more than it may")
        return chunk


def unpack(archive: Path, target: Path, names: Collection[str], *, max_bytes: int) -> None:
    """Unpack the files called ``names`` from a tar.gz archive into a new folder.

    Two processes may do this at once: each works in a hidden folder of its own beside ``target``,
    the first to finish renames it, and the other drops its copy.

    Args:
        archive: The tar.gz file. Left unchanged.
        target: The folder to make; its parent exists. Whatever folders the archive has, the
            files lie directly in ``target``.
        names: File names, without folders; all of them must be in the archive.
        max_bytes: How much the archive may hold when unpacked, wanted or not.

    Raises:
        DataError: If the archive is damaged, lacks a file or holds it twice, unpacks to more than
            ``max_bytes``, or has a link, a device, an absolute path or one with ``..`` in it.
        OSError: If the folder cannot be written, or ``target`` holds something else already.
    """
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        _extract(archive, temporary, names, max_bytes)
        _publish(temporary, target, names)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise DataError(
            f"{archive}: cannot be unpacked ({error}); delete it and get the official archive again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract(archive: Path, folder: Path, names: Collection[str], max_bytes: int) -> None:
    with gzip.open(archive) as stream:
        bounded = _Bounded(stream, max_bytes + MARGIN)
        # of a file object, a stream archive needs read() alone
        with tarfile.open(fileobj=bounded, mode="r|") as tar:  # type: ignore[call-overload]
            found = _extract_members(tar, folder, names, max_bytes)
        while bounded.read():  # to the end, where gzip keeps its checksum
            pass
    if missing := sorted(set(names) - found):
        raise tarfile.ReadError(f"it lacks {', '.join(missing)}")


def _extract_members(
    tar: tarfile.TarFile, folder: Path, names: Collection[str], max_bytes: int
) -> set[str]:
    found: set[str] = set()
    total = 0
    for member in tar:
        _check(member)
        total += member.size
        if total > max_bytes:
            raise tarfile.ReadError(f"it unpacks to more than {max_bytes} bytes")
        name = PurePosixPath(member.name).name
        if member.isfile() and name in names:
            if name in found:
                raise tarfile.ReadError(f"it holds {name} twice")
            found.add(name)
            _write(tar, member, folder / name)
    return found


def _check(member: tarfile.TarInfo) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise tarfile.ReadError(f"the path {member.name!r} leads out of the folder")
    if not (member.isfile() or member.isdir()) or member.issparse():
        raise tarfile.ReadError(f"{member.name!r} is neither a plain file nor a folder")


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    source = tar.extractfile(member)
    assert source is not None  # noqa: S101 (regular files have content)
    with source, path.open("xb") as file:
        shutil.copyfileobj(source, file, CHUNK)
        file.flush()
        os.fsync(file.fileno())


def _publish(temporary: Path, target: Path, names: Collection[str]) -> None:
    try:
        temporary.rename(target)
    except OSError:
        if not all((target / name).is_file() for name in names):
            raise
