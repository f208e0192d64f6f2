"""Data sets in memory and the batches made of them.

:func:`load` is the one door: it knows "cifar10", "digits" and folders of images.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from gammabeta.data.dataset import (
    Augmentation,
    Dataset,
    Files,
    Normalization,
    Progress,
    Split,
    only,
)
from gammabeta.errors import DataError

__all__ = [
    "Augmentation",
    "Dataset",
    "Files",
    "Normalization",
    "Progress",
    "Split",
    "default_root",
    "load",
]

ROOT_VARIABLE = "GAMMABETA_DATA"
DATA_SETS = ("cifar10", "digits")
"""Names of data sets that are the same everywhere."""


def default_root() -> Path:
    """Return where data sets are kept: ``$GAMMABETA_DATA``, else the user's cache directory."""
    import platformdirs

    return Path(os.environ.get(ROOT_VARIABLE) or platformdirs.user_cache_path("gammabeta"))


def load(
    data: str = "cifar10",
    *,
    root: str | os.PathLike[str] | None = None,
    image_size: int = 32,
    skip_unreadable: bool = False,
    files: Files | None = None,
    measure: str | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Read a data set into memory, downloading CIFAR-10 where it is not yet on the disk.

    Args:
        data: "cifar10", "digits", or a folder of images with one subfolder a class.
        root: Where CIFAR-10 lies or will be put; by default :func:`default_root`.
        image_size: Height and width that digits and folder images are resized to.
        skip_unreadable: Leave out unreadable image files instead of refusing the folder.
        files: Of a folder, use these images and no others: a run's, to continue or measure it.
        measure: Read only what is to be measured, as the test split, and nothing to train on:
            "own", the data's own test split, or all images of a folder that has none; "train",
            "test" or "all"; of a folder also "val", "dev" or "eval". None reads both splits.
        progress: Called during downloads and decoding.

    Raises:
        DataError: If the data cannot be had or is damaged; the message says what to do.

    Example:
        >>> digits = load("digits")
        >>> len(digits.train), len(digits.test), digits.classes[:3]
        (1437, 360, ('0', '1', '2'))
    """
    if data == "cifar10":
        if image_size != 32:
            raise DataError(f"image size is {image_size}, but CIFAR-10's images are 32x32")
        from gammabeta.data.cifar import load_cifar10

        place = Path(root) if root else default_root()
        return load_cifar10(place, measure=measure, progress=progress)
    if data == "digits":
        from gammabeta.data.digits import load_digits

        digits = load_digits(image_size)
        return only(digits, measure) if measure else digits
    if not Path(data).exists():
        hint = f"; for the data set of that name: --data {known}" if (known := _known(data)) else ""
        raise DataError(
            f"{data!r} is no data set: name cifar10, digits or a folder of images that exists{hint}"
        )
    from gammabeta.data.folder import load_folder

    try:
        return load_folder(
            Path(data),
            image_size=image_size,
            skip_unreadable=skip_unreadable,
            files=files,
            measure=measure,
            progress=progress,
        )
    except DataError as error:
        _hint_at_cifar(Path(data), error)
        raise


def _known(data: str) -> str | None:
    """Return the data set that a name means in another spelling: CIFAR10, cifar-10, Digits."""
    name = "".join(c for c in Path(data).name.casefold() if c.isalnum())
    return {"cifar": "cifar10", "digit": "digits"}.get(name, name if name in DATA_SETS else None)


def _hint_at_cifar(folder: Path, error: DataError) -> None:
    """Raise in place of an error about class folders where the folder holds CIFAR-10's files."""
    from gammabeta.data.cifar import holds_cifar10
    from gammabeta.data.image import printable

    if holds_cifar10(folder):
        raise DataError(
            f"{printable(folder)} holds CIFAR-10's own files, not images: "
            f"use --data cifar10 --root {shlex.quote(printable(folder))}"
        ) from error
