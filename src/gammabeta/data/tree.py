"""Find the image files of each class in a folder tree, by names alone.

A class is a subfolder; its images may lie at any depth. Hidden entries and what systems leave
behind (``__MACOSX``, ``Thumbs.db``) do not exist here. Linked folders and files are followed, but
not a link that leads back to where the walk comes from: it would find the same pictures again, or
those of another class. Training and ``predict`` both look through :func:`visible_files`.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from gammabeta.data.image import EXTENSIONS, FORMAT_NAMES, printable
from gammabeta.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

LEFT_BEHIND = (
    *("__macosx", "@eadir", "#recycle", "@recycle", "@recently-snapshot", "$recycle.bin"),
    *("system volume information", "lost+found", "thumbs.db", "desktop.ini"),
)
"""Names in lower case that systems and network drives put among people's files."""


def subfolders(root: Path) -> dict[str, Path]:
    """Return the visible folders directly inside ``root`` by name (NFC), sorted.

    Raises:
        DataError: If ``root`` is missing, is a file or cannot be listed, or if a folder's name is
            not UTF-8 or differs from another's in its encoding alone.
    """
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"{printable(root)} {what}; give the folder that holds the images")
    found: dict[str, Path] = {}
    for path in sorted(_listed(root)):
        if path.is_dir() and not root.resolve().is_relative_to(path.resolve()):
            _check_name(path)
            name = unicodedata.normalize("NFC", path.name)
            if name in found:
                raise DataError(f"{printable(root)} has two folders that read {name}; rename one")
            found[name] = path
    return dict(sorted(found.items()))


def images_by_class(root: Path) -> tuple[dict[str, list[Path]], Counter[str]]:
    """List the images of every class of one tree.

    Args:
        root: A folder with one subfolder a class.

    Returns:
        The sorted image files of each class, classes sorted by name, and how many visible files
        of each ending were passed over, as no images or outside every class folder.

    Raises:
        DataError: If there are fewer than two classes, a class has no image, a folder cannot be
            listed, or a name is not UTF-8.
    """
    folders = subfolders(root)
    loose = [path for path in _listed(root) if path.is_file()]
    _check_classes(root, folders, loose)
    classes, ignored = {}, Counter(map(_ending, loose))
    for name, folder in folders.items():
        classes[name], others = images_below(folder)
        ignored += others
    empty = [printable(folders[name]) for name, images in classes.items() if not images]
    if empty:
        raise DataError(f"no {FORMAT_NAMES} image in {', '.join(empty)}; add images or remove it")
    return classes, ignored


def images_below(folder: Path) -> tuple[list[Path], Counter[str]]:
    """Return the sorted images at any depth below a folder, and other files by their ending.

    Raises:
        DataError: If a folder cannot be listed, or a name is not UTF-8.
    """
    images, others = [], Counter[str]()
    for path in visible_files(folder):
        if is_image(path):
            images.append(path)
        else:
            others[_ending(path)] += 1
    for path in images:
        _check_name(path, above=len(str(folder)))
    return sorted(images), others


def visible_files(folder: Path) -> Iterator[Path]:
    """Yield the visible files at any depth below a folder, in no order.

    Raises:
        DataError: If a folder cannot be listed.
    """
    entered = [folder.resolve()]
    for here, folders, names in os.walk(folder, onerror=_cannot_list, followlinks=True):
        folders[:] = [n for n in folders if _is_visible(n) and _enter(Path(here, n), entered)]
        yield from (Path(here, name) for name in names if _is_visible(name))


def is_image(path: Path) -> bool:
    """Return whether a file's name ends like an image's."""
    return os.path.splitext(path.name)[1].lower() in EXTENSIONS  # noqa: PTH122 - twice as fast


def holds_images(folder: Path) -> bool:
    """Return whether images lie directly inside a folder."""
    return any(is_image(path) and path.is_file() for path in _listed(folder))


def relative_name(path: Path, root: Path) -> str:
    """Name a file below ``root`` alike on every system: with slashes, in Unicode's NFC."""
    return unicodedata.normalize("NFC", path.relative_to(root).as_posix())


def _enter(path: Path, entered: list[Path]) -> bool:
    """Return whether to walk into a folder: a linked one only if the walk was not there yet."""
    if not path.is_symlink():
        return True
    real = path.resolve()
    if any(real.is_relative_to(other) or other.is_relative_to(real) for other in entered):
        return False
    entered.append(real)
    return True


def _check_classes(root: Path, folders: dict[str, Path], loose: list[Path]) -> None:
    """Refuse a tree that cannot hold two classes."""
    where = printable(root)
    if not folders and any(is_image(path) for path in loose):
        raise DataError(f"{where} holds images but no class; put each class in its own subfolder")
    if not folders:
        raise DataError(f"{where} has no class folders; put each class in its own subfolder")
    if len(folders) == 1:
        name, only = next(iter(folders.items()))
        inside = len(subfolders(only)) > 1
        hint = f"; if the classes lie inside it, give {printable(only)}" if inside else ""
        raise DataError(
            f"{where} has one class only, {printable(name)}/; at least two are needed{hint}"
        )


def _listed(root: Path) -> list[Path]:
    """Return the visible entries of a folder."""
    try:
        return [path for path in root.iterdir() if _is_visible(path.name)]
    except OSError as error:
        _cannot_list(error)


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name.casefold() not in LEFT_BEHIND


def _ending(path: Path) -> str:
    return path.suffix.lower() or path.name


def _cannot_list(error: OSError) -> NoReturn:
    where = printable(str(error.filename))
    raise DataError(f"cannot list {where}: {error.strerror}; check its permissions") from error


def _check_name(path: Path, above: int | None = None) -> None:
    """Refuse a name that could not be shown or saved; what leads to it is not looked at."""
    try:
        (path.name if above is None else str(path)[above:]).encode()
    except UnicodeEncodeError:
        raise DataError(f"the name {printable(path)} is not UTF-8; rename it") from None
