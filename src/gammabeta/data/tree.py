"""Find the image files of each class in a folder tree, by names alone.

A class is a subfolder; its images may lie at any depth. Hidden entries do not exist here. A linked
class folder or file is followed, a linked folder further down is not: it may lead back up, and
then the pictures of one class would be read as another's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from gammabeta.data.image import EXTENSIONS, FORMAT_NAMES, printable
from gammabeta.errors import DataError


def subfolders(root: Path) -> dict[str, Path]:
    """Return the visible folders directly inside ``root`` by name, sorted.

    Raises:
        DataError: If ``root`` is missing, is a file or cannot be listed, or if a folder's name is
            not UTF-8.
    """
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"{printable(root)} {what}; give the folder that holds the images")
    found = {}
    for path in sorted(_listed(root)):
        if path.is_dir() and not root.resolve().is_relative_to(path.resolve()):
            _check_name(path)
            found[path.name] = path
    return found


def images_by_class(root: Path) -> tuple[dict[str, list[Path]], int]:
    """List the images of every class of one tree.

    Args:
        root: A folder with one subfolder a class.

    Returns:
        The sorted image files of each class, classes sorted by name, and how many visible files
        were passed over because they are no images or lie outside every class folder.

    Raises:
        DataError: If there are fewer than two classes, a class has no image, a folder cannot be
            listed, or a name is not UTF-8.
    """
    folders = subfolders(root)
    loose = [path for path in _listed(root) if path.is_file()]
    _check_classes(root, folders, loose)
    classes, ignored = {}, len(loose)
    for name, folder in folders.items():
        classes[name], others = _images_below(folder)
        ignored += others
    empty = [printable(folders[name]) for name, images in classes.items() if not images]
    if empty:
        raise DataError(f"no {FORMAT_NAMES} image in {', '.join(empty)}; add images or remove it")
    return classes, ignored


def _check_classes(root: Path, folders: dict[str, Path], loose: list[Path]) -> None:
    """Refuse a tree that cannot hold two classes."""
    where = printable(root)
    if not folders and any(_is_image(path.name) for path in loose):
        raise DataError(f"{where} holds images but no class; put each class in its own subfolder")
    if not folders:
        raise DataError(f"{where} has no class folders; put each class in its own subfolder")
    if len(folders) == 1:
        only = printable(next(iter(folders)))
        raise DataError(f"{where} has one class only, {only}/; at least two are needed")


def _images_below(folder: Path) -> tuple[list[Path], int]:
    """Return the sorted images at any depth below a class folder, and the count of other files."""
    images, others = [], 0
    for here, folders, names in os.walk(folder, onerror=_cannot_list):
        folders[:] = [name for name in folders if not name.startswith(".")]
        visible = [Path(here, name) for name in names if not name.startswith(".")]
        found = [path for path in visible if _is_image(path.name)]
        for path in (*found, *(Path(here, name) for name in folders)):
            _check_name(path)
        images += found
        others += len(visible) - len(found)
    return sorted(images), others


def _listed(root: Path) -> list[Path]:
    """Return the visible entries of a folder."""
    try:
        return [path for path in root.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        _cannot_list(error)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS  # noqa: PTH122 - a Path costs tenfold


def _cannot_list(error: OSError) -> NoReturn:
    where = printable(str(error.filename))
    raise DataError(f"cannot list {where}: {error.strerror}; check its permissions") from error


def _check_name(path: Path) -> None:
    """Refuse a name that could not be shown or saved; only its own part is looked at."""
    try:
        path.name.encode()
    except UnicodeEncodeError:
        raise DataError(f"the name {printable(path)} is not UTF-8; rename it") from None
