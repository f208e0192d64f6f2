"""Crops and flips against torchvision's own, given the same choices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from gammabeta.data.augment import Draw, crop_flip, draw
from gammabeta.data.dataset import Augmentation


def noise(count, height, width):
    return np.random.default_rng(0).integers(1, 256, (count, height, width, 3), dtype=np.uint8)


def reference(image, top, left, flip, padding):
    """What torchvision's RandomHorizontalFlip, then RandomCrop, do once they have drawn."""
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    height, width = tensor.shape[1:]
    padded = tv.pad(tv.horizontal_flip(tensor) if flip else tensor, [padding] * 4)
    cropped = tv.crop(padded, int(top) + padding, int(left) + padding, height, width)
    return cropped.permute(1, 2, 0).numpy()


@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    padding=st.integers(0, 6),
    seed=st.integers(0, 99),
)
def test_windows_equal_torchvisions_for_the_same_choices(height, width, padding, seed):
    images = noise(5, height, width)
    drawn = draw(Augmentation(padding), 5, np.random.default_rng(seed))
    index = np.array([4, 0, 2, 2])
    got = crop_flip(images, index, drawn)
    for row, i in zip(got, index, strict=True):
        want = reference(images[i], drawn.top[i], drawn.left[i], drawn.flip[i], padding)
        np.testing.assert_array_equal(row, want)


def test_every_window_and_both_mirrorings_are_drawn_equally_often():
    drawn = draw(Augmentation(padding=1), 18_000, np.random.default_rng(0))
    cells, counts = np.unique(
        np.stack([drawn.top, drawn.left, drawn.flip]), axis=1, return_counts=True
    )
    assert cells.shape[1] == 18
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)  # five standard deviations


def test_digits_are_never_mirrored():
    assert not draw(Augmentation(flip=False), 1000, np.random.default_rng(0)).flip.any()


def test_a_memory_mapped_data_set_is_read_in_place(tmp_path):
    np.save(tmp_path / "images.npy", noise(3, 8, 8))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    still = Draw(np.zeros(3, np.int64), np.zeros(3, np.int64), np.zeros(3, bool))
    np.testing.assert_array_equal(crop_flip(mapped, np.array([2, 1]), still), mapped[[2, 1]])


@pytest.mark.parametrize("side", ["top", "left"])
def test_what_lies_outside_the_image_is_black(side):
    zero = np.zeros(1, np.int64)
    shift = {"top": zero, "left": zero} | {side: zero + 3}
    window = crop_flip(noise(1, 8, 8), zero, Draw(**shift, flip=np.zeros(1, bool)))[0]
    outside = window[5:] if side == "top" else window[:, 5:]
    assert not outside.any()
    assert window.any(axis=2).sum() == 8 * 5
