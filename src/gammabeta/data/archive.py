"""Taking named files out of a tar.gz archive that nobody vouches for.

Only regular files with the wanted names are written, under those names and into a new folder, so
that no member can choose where it lands, what it links to or which rights it has. An archive that
holds anything but plain files and folders with relative paths is refused as a whole all the same:
it is not the official one. The folder appears complete or not at all.

Members are read one header after the other, in constant memory and with every number bounded;
``tarfile`` itself would follow extension headers into recursion and read them whole.
"""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from gammabeta.data.gunzip import CHUNK, Gunzip, UnpackError
from gammabeta.errors import DataError
from gammabeta.files import folder_beside, sweep

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

BLOCK = tarfile.BLOCKSIZE
MARGIN = 1 << 20
"""What headers and padding may add to the members' sizes."""
MAX_HEADERS = 10_000
MAX_EXTENSION = 1 << 16
"""Members and extension headers in an archive, and bytes of one extension, at most."""

PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)
PASSED_OVER = (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK)
"""Extensions that say nothing of a plain file's name or size."""


@dataclass(frozen=True)
class _Member:
    """A header's name, size in bytes, and whether it is a file or a folder."""

    name: str
    size: int
    is_file: bool


def unpack(archive: Path, target: Path, names: Collection[str], *, max_bytes: int) -> None:
    """Unpack the files called ``names`` from a tar.gz archive into a new folder.

    Two processes may do this at once: each works in a hidden folder of its own beside ``target``,
    the first to finish renames it, and the other drops its copy. What a killed process left there
    is removed first.

    Args:
        archive: The tar.gz file. Left unchanged.
        target: The folder to make; its parent exists. Whatever folders the archive has, the
            files lie directly in ``target``.
        names: File names, without folders; all of them must be in the archive.
        max_bytes: How much the archive may hold when unpacked, wanted or not.

    Raises:
        DataError: If the archive is damaged, lacks a file or holds it twice, unpacks to more than
            ``max_bytes``, has too many or too long headers, or has a link, a device, an absolute
            path or one with ``..`` in it.
        OSError: If the folder cannot be written, or ``target`` holds something else already.
    """
    sweep(target.parent)
    try:
        with folder_beside(target) as folder, archive.open("rb") as file:
            stream = Gunzip(file, max_bytes + MARGIN)
            found = _extract(_members(stream, max_bytes), stream, folder, names)
            while stream.read(CHUNK):  # to the end, where gzip keeps its checksum
                pass
            if missing := sorted(set(names) - found):
                raise UnpackError(f"it lacks {', '.join(missing)}")
            _publish(folder, target, names)
    except UnpackError as error:
        raise DataError(
            f"{archive}: cannot be unpacked ({error}); delete it and get the official archive again"
        ) from error


def _extract(
    members: Iterator[_Member], stream: Gunzip, folder: Path, names: Collection[str]
) -> set[str]:
    found: set[str] = set()
    for member in members:
        name = PurePosixPath(member.name).name
        if not (member.is_file and name in names):
            _copy(stream, member.size, None)
            continue
        if name in found:
            raise UnpackError(f"it holds {name} twice")
        found.add(name)
        _copy(stream, member.size, folder / name)
    return found


def _members(stream: Gunzip, max_bytes: int) -> Iterator[_Member]:
    """Yield plain files and folders; whoever takes one reads its content before the next."""
    name, left = None, max_bytes
    for _ in range(MAX_HEADERS):
        header = _header(stream)
        if header is None:
            return
        if header.type in PASSED_OVER:
            _extension(stream, header)
        elif header.type == tarfile.GNUTYPE_LONGNAME:
            name = _extension(stream, header).rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif header.type == tarfile.XHDTYPE:
            name = _pax_path(_extension(stream, header)) or name
        else:
            member = _checked(header, name or header.name)
            name, left = None, left - member.size
            if left < 0:
                raise UnpackError(f"it unpacks to more than {max_bytes} bytes")
            yield member
    raise UnpackError(f"it has more than {MAX_HEADERS} members")


def _header(stream: Gunzip) -> tarfile.TarInfo | None:
    """Read one header; None at the end of the archive."""
    block = stream.read(BLOCK)
    if not block.strip(b"\0"):
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError) as error:
        raise UnpackError(f"a header is damaged: {error}") from None


def _checked(header: tarfile.TarInfo, name: str) -> _Member:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise UnpackError(f"the path {name[:100]!r} leads out of the folder")
    if header.type not in (*PLAIN, tarfile.DIRTYPE):
        raise UnpackError(f"{name[:100]!r} is neither a plain file nor a folder")
    if header.size < 0:
        raise UnpackError(f"{name[:100]!r} has a negative size")
    return _Member(name, header.size if header.isfile() else 0, header.isfile())


def _extension(stream: Gunzip, header: tarfile.TarInfo) -> bytes:
    """Read what an extension header says."""
    if not 0 <= header.size <= MAX_EXTENSION:
        raise UnpackError(f"a header of {header.size} bytes")
    content = stream.read(_padded(header.size))
    return content[: header.size]


def _pax_path(content: bytes) -> str | None:
    """Return the path among pax records, each ``LENGTH KEY=VALUE``, or None.

    A record that changes the member's size or makes it sparse is refused.
    """
    path = None
    while content.strip(b"\0"):
        length, _, _ = content.partition(b" ")
        if not length.isdigit() or not len(length) < int(length[:9]) <= len(content):
            raise UnpackError("a pax header is damaged")
        record, content = content[: int(length)], content[int(length) :]
        key, _, value = record[len(length) + 1 : -1].partition(b"=")
        if key == b"size" or key.startswith(b"GNU.sparse"):
            raise UnpackError(f"a pax header with {key.decode('ascii', 'replace')}")
        if key == b"path":
            path = value.decode("utf-8", "surrogateescape")
    return path


def _copy(stream: Gunzip, size: int, path: Path | None) -> None:
    """Write the content of a member to a new file, or pass over it."""
    with Path(path or os.devnull).open("xb" if path else "wb") as file:
        left = size
        while left:
            chunk = stream.read(min(left, CHUNK))
            if not chunk:
                raise UnpackError("it is cut short")
            left -= file.write(chunk)
        stream.read(_padded(size) - size)
        if path:
            file.flush()
            os.fsync(file.fileno())


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _publish(folder: Path, target: Path, names: Collection[str]) -> None:
    try:
        folder.rename(target)
    except OSError:
        if not all((target / name).is_file() for name in names):
            raise
