"""Decode many pictures into one array: in memory, or in a mapped cache file if they are too many.

The cache file is complete or absent: rows are written under a temporary name, flushed and renamed.
Its name is a digest of the folder, the image size and every file's relative path, size and time of
change, in order, so a changed file (or another split, which is another order) decodes anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import NonNegativeInt

from gammabeta.data.image import printable, read_image
from gammabeta.errors import DataError, RunError
from gammabeta.schema import parse

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from gammabeta.data.dataset import Progress

CHUNK = 64
CHUNK_BYTES = 2**28
"""Decoded images at most that wait for their turn, and how many bytes, but at least one."""
STALE_SECONDS = 24 * 3600
LAYOUT = b"gammabeta decoded images, 1"


@dataclass(frozen=True, eq=False)
class Decoded:
    """Decoded images and what could not be decoded.

    Args:
        images: uint8 (N, S, S, 3), the readable files in the order given; perhaps a read-only map.
        unreadable: Why each unreadable file failed, by its position in the order given.
        cache: The mapped file, or None if the images are in memory.
    """

    images: npt.NDArray[np.uint8]
    unreadable: dict[int, str]
    cache: Path | None = None


def decode_in_memory(
    files: Sequence[Path], image_size: int, progress: Progress | None = None
) -> Decoded:
    """Decode files into an array in memory; see :class:`Decoded`."""
    images = np.empty((len(files), image_size, image_size, 3), np.uint8)
    unreadable = _fill(images, files, progress)
    return Decoded(images[: len(files) - len(unreadable)], unreadable)


def decode_to_cache(
    files: Sequence[Path],
    image_size: int,
    *,
    root: Path,
    cache: Path,
    progress: Progress | None = None,
) -> Decoded:
    """Map the decoded images from a cache file, which is written first if it is not there.

    Args:
        files: Image files below ``root``.
        image_size: Side of the square images, in pixels.
        root: The folder that the digest's paths are relative to.
        cache: Folder of the cache file; created if need be.
        progress: Called after every image while decoding, never when the cache is found.

    Raises:
        DataError: If the cache cannot be written or the disk has too little room.
    """
    target = cache / f"{_digest(files, image_size, root)}.npy"
    found = _open(target, files, image_size)
    if found is not None:
        return found
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _make_room(cache, len(files) * image_size * image_size * 3)
        _write(target, files, image_size, progress)
    except OSError as error:
        why = error.strerror or str(error)
        raise DataError(f"cannot keep decoded images in {printable(cache)}: {why}") from error
    written = _open(target, files, image_size)
    if written is None:
        raise DataError(f"images changed while they were decoded from {printable(root)}; try again")
    return written


def read_images(files: Sequence[Path], image_size: int) -> Iterator[npt.NDArray[np.uint8] | str]:
    """Read pictures on all cores and yield them in order, without a decoder's warnings.

    Args:
        files: Image files.
        image_size: Side of the square images, in pixels.

    Yields:
        uint8 (S, S, 3), or the reason why the file cannot be read.
    """
    chunk = max(1, min(CHUNK, CHUNK_BYTES // (3 * image_size**2)))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(files), chunk):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # here, as the filters are shared by all threads
                part = files[start : start + chunk]
                read = list(pool.map(lambda path: _try(path, image_size), part))
            yield from read


def _fill(
    images: npt.NDArray[np.uint8], files: Sequence[Path], progress: Progress | None
) -> dict[int, str]:
    """Write the readable files into the first rows of ``images``; return what failed and why."""
    unreadable: dict[int, str] = {}
    for index, image in enumerate(read_images(files, images.shape[1])):
        if isinstance(image, str):
            unreadable[index] = image
        else:
            images[index - len(unreadable)] = image
        if progress is not None:
            progress("decoding images", index + 1, len(files))
    return unreadable


def _try(path: Path, size: int) -> npt.NDArray[np.uint8] | str:
    """Return the image, or the reason why it cannot be read."""
    try:
        return read_image(path, size)
    except DataError as error:
        return str(error).removeprefix(f"{printable(path)}: ")


def _digest(files: Sequence[Path], image_size: int, root: Path) -> str:
    """Name the content of a cache file without reading the images."""
    digest = hashlib.sha256(LAYOUT)
    digest.update(os.fsencode(root.resolve()) + b"\0%d" % image_size)
    for path in files:
        try:
            status = path.stat()
            stamp = b"\0%d\0%d\0" % (status.st_size, status.st_mtime_ns)
        except OSError:  # a dangling link; decoding says so
            stamp = b"\0missing\0"
        digest.update(stamp + os.fsencode(path.relative_to(root)))
    return digest.hexdigest()


def _open(target: Path, files: Sequence[Path], image_size: int) -> Decoded | None:
    """Map a finished cache file; None if there is none, or it is damaged or out of date."""
    try:
        skipped = parse(list[NonNegativeInt], target.with_suffix(".json").read_bytes(), target)
        images = np.load(target, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, RunError):
        return None
    if any(index >= len(files) for index in skipped):
        return None
    if images.dtype != np.uint8 or images.shape != (len(files), image_size, image_size, 3):
        return None
    # Mended permissions leave size and time as they were, so the few failures are tried again.
    failures = {index: _try(files[index], image_size) for index in skipped}
    unreadable = {index: why for index, why in failures.items() if isinstance(why, str)}
    if len(unreadable) < len(failures):
        return None
    return Decoded(images[: len(files) - len(unreadable)], unreadable, target)


def _write(target: Path, files: Sequence[Path], image_size: int, progress: Progress | None) -> None:
    """Decode into ``target``; the list of skipped files is in place before it appears."""
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        shape = (len(files), image_size, image_size, 3)
        images = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        unreadable = _fill(images, files, progress)
        images.flush()
        target.unlink(missing_ok=True)  # an older one must never meet the newer list
        _replace_text(target.with_suffix(".json"), json.dumps(list(unreadable)))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _replace_text(target: Path, text: str) -> None:
    """Write a small file so that it is whole or absent."""
    temporary = target.with_suffix(f".json.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)


def _make_room(cache: Path, needed: int) -> None:
    """Remove what killed runs left a day ago, and refuse early what the disk cannot hold."""
    for path in cache.glob("*.tmp"):
        if time.time() - path.stat().st_mtime > STALE_SECONDS:
            path.unlink(missing_ok=True)
    free = shutil.disk_usage(cache).free
    if needed > free:  # a full disk under a memory map kills the process
        raise OSError(f"{needed:,} bytes are needed and {free:,} are free")
