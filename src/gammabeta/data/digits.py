"""The data set that needs no download: scikit-learn's 1,797 handwritten digits.

They are real scans, 8 by 8 pixels in 17 shades, and small enough that a network learns them in
seconds on one core; so they serve first runs, tests and demonstrations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from gammabeta.data.dataset import Augmentation, Dataset, Split
from gammabeta.data.image import check_image_size
from gammabeta.memory import require

if TYPE_CHECKING:
    import numpy.typing as npt

TEST_IMAGES = 360
SHADES = 16
BYTES_PER_PIXEL = 8
"""Resized, stacked, repeated for three channels, and copied into the splits."""


def load_digits(image_size: int = 32) -> Dataset:
    """Load the digits as 1,437 training and 360 test images.

    The split is stratified and always the same, so accuracies can be compared between runs.

    Args:
        image_size: Side of the images, a positive multiple of 8; 8 keeps the original pixels.

    Returns:
        Images uint8 (N, image_size, image_size, 3), grey repeated in the three channels, resized
        bilinearly; labels are the digits. Augmentation never mirrors: a mirrored digit is
        another sign.

    Raises:
        GammabetaError: If ``image_size`` is not a positive multiple of 8, or memory is short.

    References:
        Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
        Repository, 1998; the copy that ships with scikit-learn.

    Example:
        >>> digits = load_digits(image_size=8)
        >>> digits.train.images.shape, len(digits.test)
        ((1437, 8, 8, 3), 360)
    """
    from sklearn.datasets import load_digits as bundled_digits
    from sklearn.model_selection import train_test_split

    check_image_size(image_size)
    grey, target = bundled_digits(return_X_y=True)
    require(
        len(target) * image_size**2 * BYTES_PER_PIXEL,
        f"{len(target)} digits of {image_size}x{image_size} pixels",
        "choose a smaller --image-size",
    )
    images = _enlarge(grey.reshape(-1, 8, 8), image_size)
    labels = target.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_IMAGES, stratify=labels, random_state=0
    )
    return Dataset(
        name="digits",
        train=Split(images[train], labels[train]),
        test=Split(images[test], labels[test]),
        classes=tuple("0123456789"),
        augmentation=Augmentation(padding=4, flip=False),
        notes=("1437 training and 360 test images in a fixed split, the same in every run",),
    )


def _enlarge(shades: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.uint8]:
    """Turn (N, 8, 8) shades in 0..16 into (N, size, size, 3) bytes."""
    grey = np.rint(shades * (255 / SHADES)).astype(np.uint8)
    resized = [Image.fromarray(one).resize((size, size), Image.Resampling.BILINEAR) for one in grey]
    return np.repeat(np.stack([np.asarray(one) for one in resized])[..., None], 3, axis=3)
