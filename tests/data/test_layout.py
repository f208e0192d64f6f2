"""The split of a folder that has none: each image's side follows from its own name alone."""

from __future__ import annotations

import random
import shutil
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from folder_helpers import colours, fill, picture, told
from gammabeta.data import Files
from gammabeta.data.folder import load_folder
from gammabeta.data.layout import held_out
from gammabeta.errors import DataError

NAMES = [f"cat/{i}.jpg" for i in range(10_000)]
EXPECTED = [1, 3, 5, 13, 17, 20, 32, 35]


def sides(data):
    return {*data.files.train}, {*data.files.test}


@pytest.fixture
def pets(tmp_path):
    return fill(tmp_path / "pets", cat=30, dog=30)


@pytest.fixture
def before(pets):
    return load_folder(pets)


def test_one_in_five_is_held_out():
    assert held_out(NAMES, 0).mean() == pytest.approx(0.2, abs=0.01)


def test_the_sides_are_the_same_on_every_machine():
    """Computed apart from the code: sha256("0\\0" + name), first 8 bytes, below 2**64 / 5."""
    assert np.flatnonzero(held_out(NAMES, 0))[:8].tolist() == EXPECTED


@given(
    st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=30, unique=True),
    st.integers(0, 2**32),
)
def test_every_class_is_on_both_sides(names, seed):
    held = held_out(names, seed)
    assert held.any()
    assert not held.all()


@given(st.sets(st.integers(0, 9_999), min_size=60), st.sets(st.integers(0, 9_999)))
def test_no_image_moves_when_others_come_and_go(some, others):
    both = sorted(some | others)
    alone = dict(zip(sorted(some), held_out([NAMES[i] for i in sorted(some)], 0), strict=True))
    together = dict(zip(both, held_out([NAMES[i] for i in both], 0), strict=True))
    assert all(together[i] == alone[i] for i in some)


def test_three_new_images_a_class_move_nothing(pets, before):
    for name, where in (("cat", 0), ("dog", 1)):
        for number in ("0", "015b", "zz"):
            picture(pets / name / f"{number}.png", (where, 90, 7))
    after = load_folder(pets)
    assert all(old <= new for old, new in zip(sides(before), sides(after), strict=True))


def test_removing_and_renaming_moves_no_other_image(pets, before):
    for path in random.Random(0).sample(sorted(pets.rglob("*.png")), 20):
        path.unlink()
    for path in random.Random(1).sample(sorted(pets.rglob("*.png")), 10):
        path.rename(path.with_name(f"new-{path.name}"))
    after = load_folder(pets)
    for old, new in zip(sides(before), sides(after), strict=True):
        assert {name for name in new if "new-" not in name} <= old


def test_the_spelling_of_an_accent_decides_nothing(tmp_path):
    names = [f"caf{chr(233)}-{i}" for i in range(20)]
    for form in ("NFC", "NFD"):
        fill(tmp_path / form, **{unicodedata.normalize(form, n): 2 for n in names})
    nfc, nfd = (load_folder(tmp_path / form, image_size=8) for form in ("NFC", "NFD"))
    assert nfc.classes == nfd.classes == tuple(sorted(names))
    assert sides(nfc) == sides(nfd)


def test_two_folders_that_read_the_same_are_refused(tmp_path):
    fill(tmp_path, **{unicodedata.normalize(form, "é"): 2 for form in ("NFC", "NFD")})
    with pytest.raises(DataError, match="two folders that read é; rename one"):
        load_folder(tmp_path)


def test_where_the_folder_lies_does_not_matter(pets, before, tmp_path):
    shutil.move(pets, tmp_path / "moved")
    assert sides(load_folder(tmp_path / "moved")) == sides(before)


# What a run began with


def test_a_run_gets_its_images_again_in_order_and_hears_what_is_new(pets, before):
    picture(pets / "cat" / "000a.png", (0, 90, 7))
    picture(pets / "eel" / "0.png")
    picture(pets / "eel" / "1.png")
    again = load_folder(pets, files=before.files)
    assert again.classes == ("cat", "dog")
    assert (again.train.images == before.train.images).all()
    assert (again.test.images == before.test.images).all()
    assert (again.train.labels == before.train.labels).all()
    assert again.files == before.files
    assert told(again, "3 images are not among those that the run", "cat/000a.png, eel/0.png")


def test_a_run_gets_its_images_again_also_from_folders_with_a_split(tmp_path):
    fill(tmp_path / "train", cat=3, dog=3)
    fill(tmp_path / "test", cat=2, dog=2)
    before = load_folder(tmp_path)
    picture(tmp_path / "train" / "cat" / "000a.png", (0, 90, 7))
    again = load_folder(tmp_path, files=before.files)
    assert (colours(again.train), again.files) == (colours(before.train), before.files)
    assert told(again, "1 images are not among", "train/cat/000a.png")


def test_images_that_are_gone_are_told(pets, before):
    (pets / before.files.train[3]).unlink()
    again = load_folder(pets, files=before.files)
    assert again.files.train == before.files.train[:3] + before.files.train[4:]
    assert told(again, "1 of the images that the run began with are gone", before.files.train[3])


def test_another_folder_is_refused(tmp_path, before):
    fill(tmp_path / "birds", owl=3, tit=3)
    with pytest.raises(DataError, match="birds no longer has the images that the run"):
        load_folder(tmp_path / "birds", files=before.files)


def test_a_list_names_no_file_outside_the_folder(pets, before, tmp_path):
    picture(tmp_path / "secret.png")
    listed = Files((*before.files.train, "../secret.png", str(tmp_path / "secret.png")), ("a",))
    with pytest.raises(DataError, match="no longer has the images"):
        load_folder(pets, files=listed)


def test_unreadable_files_are_not_on_the_list(pets):
    (pets / "cat" / "000.png").write_bytes(b"no picture")
    data = load_folder(pets, skip_unreadable=True)
    assert "cat/000.png" not in data.files.train + data.files.test
    assert len(data.files.train) == len(data.train)
    again = load_folder(pets, files=data.files)
    assert (again.train.images == data.train.images).all()


# Twins


def test_test_images_that_are_training_images_too_are_told(tmp_path):
    fill(tmp_path / "train", cat=3, dog=3)
    fill(tmp_path / "test", cat=2, dog=1, blue=9)
    assert not told(load_folder(tmp_path), "equal a training image")
    shutil.copy(tmp_path / "train" / "cat" / "001.png", tmp_path / "test" / "dog" / "z.png")
    data = load_folder(tmp_path)
    assert told(data, "1 of 4 test images equal a training image", "test/dog/z.png = train/cat/001")
