"""The one door to all data sets."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from gammabeta.data import Split, default_root, load
from gammabeta.data.cifar_files import BINARY, PYTHON
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


@pytest.mark.parametrize(
    ("word", "known"),
    [
        *(("CIFAR10", "cifar10"), ("cifar-10", "cifar10"), ("Cifar_10", "cifar10")),
        *(("cifar", "cifar10"), ("/some/where/CIFAR10", "cifar10"), ("Digits", "digits")),
    ],
)
def test_another_spelling_of_a_known_name_gets_a_hint(word, known):
    with pytest.raises(DataError, match=rf"is no data set: .* of that name: --data {known}$"):
        load(word)


@pytest.mark.parametrize("word", ["cifar100", "cats", "cifar10.zip"])
def test_another_name_gets_none(word):
    with pytest.raises(DataError, match=r"folder of images that exists$"):
        load(word)


def official_names(form):
    return [*form.names], [form.archive], [form.names[0], "batches.meta"]


@pytest.mark.parametrize("place", ["", "cifar-10-batches-py", "some/where"])
@pytest.mark.parametrize("names", [*official_names(BINARY), *official_names(PYTHON)], ids=str)
def test_a_folder_of_cifars_own_files_gets_a_hint(tmp_path, place, names):
    folder = tmp_path / "my data"
    (folder / place).mkdir(parents=True)
    for name in names:
        (folder / place / name).write_bytes(b"x")
    message = rf"holds CIFAR-10's own files, not images: use --data cifar10 --root '{folder}'$"
    with pytest.raises(DataError, match=message):
        load(str(folder))


def test_a_folder_of_neither_keeps_its_own_error(tmp_path):
    with pytest.raises(DataError, match="has no class folders"):
        load(str(tmp_path))
