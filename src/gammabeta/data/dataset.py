"""What every data source returns: two splits of uint8 images in memory, and how to scale them.

Images stay bytes until a batch needs them: 50,000 CIFAR images take 154 MB so, four times less
than as float32. The pixel order is (N, H, W, 3), the memory order of a channels-last batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from gammabeta.errors import DataError
from gammabeta.schema import STRICT

Progress = Callable[[str, int, int], None]
"""Called during long work with what is being done, how much is done, and the total."""

MEASURES = ("own", "train", "test", "all")
"""What may be measured: the data's own test split (all of data that has none), or the one named."""


@dataclass(frozen=True, eq=False)
class Split:
    """One split of a data set: images and their class indices.

    Args:
        images: uint8, (N, H, W, 3), C-contiguous; may be a read-only memory map.
        labels: int64, (N,), each in ``range(len(dataset.classes))``.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[3] != 3:
            got = f"{self.images.dtype} {self.images.shape}"
            raise DataError(f"images must be uint8 (N, H, W, 3), got {got}")
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            got = f"{self.labels.dtype} {self.labels.shape}"
            raise DataError(f"labels must be int64 ({len(self.images)},), got {got}")

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Augmentation:
    """Random changes to a training image, each drawn anew every epoch.

    Args:
        padding: The image is padded by this many black pixels a side, then a window of its own
            size is cut out at random. 0 leaves the image where it is.
        flip: Mirror left and right with probability one half. Wrong for digits and text.
    """

    padding: int = 4
    flip: bool = True


@dataclass(frozen=True)
class Normalization:
    """Pixel scaling: ``(byte / 255 - mean) / std`` for each of the three channels."""

    __pydantic_config__ = STRICT

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Files:
    """Which images of a folder make up its splits, for a run to find them again.

    Args:
        train: The training images' paths relative to the folder, with slashes, in order.
        test: The same for the test images.
        drawn: Whether the split was drawn by the program, not made by the folder.
    """

    __pydantic_config__ = STRICT

    train: tuple[str, ...]
    test: tuple[str, ...]
    drawn: bool = False


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set with a training and a test split.

    Args:
        name: "cifar10", "digits", or the folder's name.
        train: The split to learn from.
        test: The split to measure on; never augmented.
        classes: Class names; ``classes[label]`` names an image's class.
        augmentation: What may be done to this data's training images.
        normalization: How bytes become the network's input.
        notes: Sentences for the user about how the data was found or split.
        files: The images of a folder by name; None for data that never changes.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    augmentation: Augmentation = Augmentation()
    normalization: Normalization = Normalization()
    notes: tuple[str, ...] = ()
    files: Files | None = None

    @property
    def image_size(self) -> int:
        """Height and width of every image, in pixels."""
        return int(self.train.images.shape[1])


def only(dataset: Dataset, measure: str) -> Dataset:
    """Return a data set with the images of one choice as its test split, and none to train on.

    Args:
        dataset: Data with a split of its own.
        measure: "own" or "test", "train", or "all".

    Raises:
        DataError: For another choice.
    """
    check_measure(dataset.name, measure)
    train, test = dataset.train, dataset.test
    both = Split(
        np.concatenate([train.images, test.images]), np.concatenate([train.labels, test.labels])
    )
    chosen = {"train": train, "all": both}.get(measure, test)
    none = Split(train.images[:0], train.labels[:0])
    return replace(dataset, train=none, test=chosen)


def check_measure(name: str, measure: str) -> None:
    """Refuse a split that data of a fixed form do not have.

    Raises:
        DataError: With those that they have.
    """
    if measure not in MEASURES:
        raise DataError(f"{name} has no split {measure!r}; its splits are train, test or all")
