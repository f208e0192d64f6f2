"""The one door to all data sets."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from gammabeta.data import Split, default_root, load
from gammabeta.errors import DataError


def test_a_word_that_is_neither_a_name_nor_a_folder_is_refused_with_the_choices():
    with pytest.raises(
        DataError, match=r"'cifar' is no data set: name cifar10, digits or a folder"
    ):
        load("cifar")


def test_a_folder_of_images_is_loaded(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (20, 10), "red").save(folder / "a.png")
    dataset = load(str(tmp_path), image_size=16)
    assert (dataset.classes, dataset.image_size, len(dataset.test)) == (("cat", "dog"), 16, 2)


def test_the_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("GAMMABETA_DATA", str(tmp_path))
    assert default_root() == tmp_path
    monkeypatch.delenv("GAMMABETA_DATA")
    assert default_root().name == "gammabeta"


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), np.zeros(2, np.int64), "images must be uint8"),
        (np.zeros((2, 3, 8, 8), np.uint8), np.zeros(2, np.int64), "images must be uint8"),
        (np.zeros((2, 8, 8, 3), np.uint8), np.zeros(3, np.int64), "labels must be int64"),
    ],
    ids=["floats", "channels first", "a label too many"],
)
def test_a_split_refuses_arrays_of_another_form(images, labels, message):
    with pytest.raises(DataError, match=message):
        Split(images, labels)
