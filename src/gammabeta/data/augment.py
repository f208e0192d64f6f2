"""Random crops and flips as index arithmetic: drawn once an epoch, applied in one gather a batch.

What happens to an image depends on the seed, the epoch and the image's index alone. It does not
depend on the batch that the image falls into, nor on who prepares that batch or when.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gammabeta.data.dataset import Augmentation

_PIXEL = np.dtype("V3")  # three colour bytes that a gather moves as one item


@dataclass(frozen=True, eq=False)
class Draw:
    """The window and the mirroring of every image in one epoch.

    Args:
        top: int64, (N,), the window's first row relative to the image's, in -padding..padding.
        left: int64, (N,), the same for columns.
        flip: bool, (N,), whether the window is mirrored left to right.
    """

    top: npt.NDArray[np.int64]
    left: npt.NDArray[np.int64]
    flip: npt.NDArray[np.bool_]


def draw(augmentation: Augmentation, count: int, rng: np.random.Generator) -> Draw:
    """Draw the changes of ``count`` images: uniform windows, mirrored with probability one half."""
    padding = augmentation.padding
    top, left = rng.integers(-padding, padding, size=(2, count), endpoint=True)
    flip = rng.random(count) < 0.5 if augmentation.flip else np.zeros(count, dtype=bool)
    return Draw(top, left, flip)


def crop_flip(
    images: npt.NDArray[np.uint8], index: npt.NDArray[np.int64], drawn: Draw
) -> npt.NDArray[np.uint8]:
    """Cut the drawn windows out of the images and mirror them; outside an image is black.

    Equals torchvision's ``RandomCrop(size, padding)`` after ``RandomHorizontalFlip`` where both
    are given the same choices.

    Args:
        images: uint8, (N, H, W, 3), C-contiguous.
        index: int64, (B,), which images to take; ``drawn`` is indexed with it too.
        drawn: Choices for all N images.

    Returns:
        uint8, (B, H, W, 3).
    """
    height, width = images.shape[1:3]
    row = drawn.top[index, None] + np.arange(height)
    column = drawn.left[index, None] + np.arange(width)
    column = np.where(drawn.flip[index, None], width - 1 - column, column)
    inside = _within(row, height)[:, :, None] & _within(column, width)[:, None, :]
    start = index[:, None] * height + row.clip(0, height - 1)
    pixel = start[:, :, None] * width + column.clip(0, width - 1)[:, None, :]
    flat = images.reshape(-1).view(_PIXEL)
    windows: npt.NDArray[np.uint8] = flat.take(pixel).view(np.uint8).reshape(*pixel.shape, 3)
    windows[~inside] = 0
    return windows


def _within(position: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.bool_]:
    return (position >= 0) & (position < size)
