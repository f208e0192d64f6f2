"""Data sets in memory and the batches made of them.

:func:`load` is the one door: it knows "cifar10", "digits" and folders of images.
"""

from __future__ import annotations

import os
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
        raise DataError(
            f"{data!r} is no data set: name cifar10, digits or a folder of images that exists"
        )
    from gammabeta.data.folder import load_folder

    return load_folder(
        Path(data),
        image_size=image_size,
        skip_unreadable=skip_unreadable,
        files=files,
        measure=measure,
        progress=progress,
    )
