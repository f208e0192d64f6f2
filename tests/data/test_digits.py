"""The bundled digits: real pixels, one fixed stratified split, never mirrored."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits as bundled_digits

from gammabeta.data.digits import load_digits
from gammabeta.errors import DataError


def test_the_split_has_the_promised_form():
    digits = load_digits()
    assert digits.train.images.shape == (1437, 32, 32, 3)
    assert digits.test.images.shape == (360, 32, 32, 3)
    assert digits.train.images.flags.c_contiguous
    assert digits.classes == tuple("0123456789")
    assert (digits.augmentation.padding, digits.augmentation.flip) == (4, False)


def test_at_size_8_every_original_picture_is_there_once():
    digits = load_digits(image_size=8)
    original = np.rint(bundled_digits().images * 255 / 16).astype(np.uint8)
    images = np.concatenate([digits.train.images, digits.test.images])
    labels = np.concatenate([digits.train.labels, digits.test.labels])
    got = sorted((one[..., 0].tobytes(), y) for one, y in zip(images, labels, strict=True))
    want = zip(original, bundled_digits().target, strict=True)
    assert got == sorted((one.tobytes(), y) for one, y in want)


def test_grey_fills_all_channels_and_the_full_range():
    images = load_digits(image_size=16).train.images
    assert (images == images[..., :1]).all()
    assert (images.min(), images.max()) == (0, 255)


def test_every_digit_is_on_both_sides_in_proportion():
    digits = load_digits(image_size=8)
    train, test = np.bincount(digits.train.labels), np.bincount(digits.test.labels)
    assert np.abs(test - (train + test) * 360 / 1797).max() < 1


def test_the_split_does_not_depend_on_global_random_state():
    first = load_digits(image_size=8)
    np.random.seed(5)  # noqa: NPY002 - the old global generator is what must not matter
    assert (load_digits(image_size=8).test.images == first.test.images).all()


@pytest.mark.parametrize("size", [0, -8, 12])
def test_a_size_that_cannot_be_halved_three_times_is_refused(size):
    with pytest.raises(DataError, match=f"positive multiple of 8 such as 32, got {size}$"):
        load_digits(image_size=size)
