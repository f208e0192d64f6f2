"""CIFAR-10: found in a folder in any official form, or downloaded into it.

Complete folders are taken first, then the authors' archives, then their web server. What is
damaged or incomplete is reported and never mended in silence: it may be someone's work.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.error import URLError

from gammabeta.data.archive import unpack
from gammabeta.data.cifar_files import BINARY, CLASSES, PYTHON, TEST, TRAIN, Form, read_split
from gammabeta.data.dataset import Dataset, Progress, check_measure
from gammabeta.data.download import Remote, fetch, md5_of
from gammabeta.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    Files = tuple[Path, Form, tuple[str, ...]]
    """The folder of the six files, their form, and what to tell about them."""

OFFICIAL = Remote(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5=BINARY.md5,
    size=170_052_171,
)
DEPTH = 2
MAX_UNPACKED = 400_000_000
FORMS = (BINARY, PYTHON)
DIGITS = "--data digits needs no download"


def load_cifar10(
    root: Path,
    *,
    download: bool = True,
    measure: str | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Load CIFAR-10, from disk if it is there.

    Looks in ``root`` and two levels of folders below it, at each level under the official names
    first, for the six binary files, the six Python files, and the archive of either, which is
    unpacked beside itself. Python files are read without running what they name.

    Args:
        root: The folder to look in and to download to.
        download: Whether to fetch the archive (170 MB) if nothing is found.
        measure: Read the images of "test", "train" or "all" alone, as the test split.
        progress: Called during a download with a text, the bytes that are here, and all bytes.

    Returns:
        The data set "cifar10": 50,000 training and 10,000 test images, uint8 (N, 32, 32, 3), in
        the files' order. A note tells if they were unpacked from another archive than the
        official one.

    Raises:
        DataError: If the data is missing, incomplete or damaged, ``root`` cannot be used, or the
            download fails. The message names the file or folder and what to do.
    """
    return load_from(root, OFFICIAL if download else None, measure=measure, progress=progress)


def load_from(
    root: Path,
    remote: Remote | None,
    *,
    records: int = 10_000,
    measure: str | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Do what :func:`load_cifar10` does, with another server or other files.

    Args:
        root: The folder to look in and to download to.
        remote: The binary archive to download if nothing is found, or None.
        records: Images in each of the six files.
        measure: As for :func:`load_cifar10`.
        progress: As for :func:`load_cifar10`.

    Returns:
        The data set.

    Raises:
        DataError: As for :func:`load_cifar10`.
    """
    parts = _parts(measure)
    try:
        found = _look(root)
        files = _complete(found) or _unpacked(found) or _downloaded(root, remote, progress)
        folder, form, notes = files
        train, test = (read_split(folder, form, part, records) for part in parts)
    except URLError as error:
        raise DataError(
            f"CIFAR-10 is not in {root} and its server cannot be reached ({error.reason}); "
            f"go online, name the folder that has it with --root, or put {BINARY.archive} here; "
            f"{DIGITS}"
        ) from error
    except OSError as error:
        raise DataError(
            f"{root}: cannot be used for CIFAR-10 ({error}); choose a folder you may write to"
        ) from error
    read = f"Read from the {form.title} files in {folder}."
    return Dataset("cifar10", train, test, CLASSES, notes=(read, *notes))


def _parts(measure: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the files of the training and of the test split."""
    if measure is None:
        return TRAIN, TEST
    check_measure("cifar10", measure)
    return (), {"train": TRAIN, "all": TRAIN + TEST}.get(measure, TEST)


def holds_cifar10(folder: Path) -> bool:
    """Return whether a folder, or one of those below it, has an official file of CIFAR-10."""
    names = {name for form in FORMS for name in (*form.names, form.archive)}
    try:
        return any(names & files for files in _look(folder).values())
    except OSError:
        return False


def _look(root: Path) -> dict[Path, set[str]]:
    """Map ``root`` and folders below it to their files' names, in the order of search."""
    found: dict[Path, set[str]] = {}
    level = [root] if root.exists() else []
    for _ in range(DEPTH + 1):
        below: list[Path] = []
        for folder in level:
            try:
                with os.scandir(folder) as entries:
                    is_folder = {entry.name: entry.is_dir() for entry in entries}
            except PermissionError:
                if folder == root:
                    raise
                continue
            found[folder] = {name for name, is_dir in is_folder.items() if not is_dir}
            below += [folder / name for name, is_dir in is_folder.items() if is_dir]
        level = sorted((path for path in below if path.name[0] != "."), key=_rank)
    return found


def _rank(folder: Path) -> tuple[bool, Path]:
    return folder.name not in {form.folder for form in FORMS}, folder


def _complete(found: dict[Path, set[str]]) -> Files | None:
    """Find a folder with all six files of a form; complain if there are only some."""
    places = [(folder, form) for form in FORMS for folder in found]
    for folder, form in places:
        if found[folder].issuperset(form.names):
            return folder, form, ()
    for folder, form in places:
        missing = [name for name in form.names if name not in found[folder]]
        if len(missing) < len(form.names):
            raise DataError(
                f"{folder}: CIFAR-10 is incomplete, {', '.join(missing)} missing; "
                "add what is missing, or delete the other files too to get all anew"
            )
    return None


def _unpacked(found: dict[Path, set[str]]) -> Files | None:
    """Find the archive of a form and unpack it beside itself; tell if it is not the official."""
    for form in FORMS:
        for folder, files in found.items():
            if form.archive in files:
                archive = folder / form.archive
                return _unpack(archive, form, _strange_archive(archive, form))
    return None


def _strange_archive(archive: Path, form: Form) -> tuple[str, ...]:
    with archive.open("rb") as file:
        md5 = md5_of(file)
    if md5 == form.md5:
        return ()
    return (
        f"{archive} is not the official archive (its MD5 is {md5}, published is {form.md5}): if "
        "nobody packed it anew, its images may be damaged; delete it and the folder beside it to "
        "get all anew",
    )


def _downloaded(root: Path, remote: Remote | None, progress: Progress | None) -> Files:
    if remote is None:
        raise DataError(
            f"CIFAR-10 is not in {root}; allow the download, or put {BINARY.archive} into it; "
            f"{DIGITS}"
        )
    return _unpack(fetch(remote, root, progress=progress), BINARY)


def _unpack(archive: Path, form: Form, notes: tuple[str, ...] = ()) -> Files:
    target = archive.with_name(form.folder)
    unpack(archive, target, form.names, max_bytes=MAX_UNPACKED)
    return target, form, notes
