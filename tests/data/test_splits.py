"""Which folders are splits: by any usual name, never silently classes, and doubt is an error."""

from __future__ import annotations

import pytest
from PIL import Image

from folder_helpers import colours, fill, picture, told
from gammabeta.data.folder import load_folder
from gammabeta.data.splits import split_name
from gammabeta.errors import DataError

TRAIN_NAMES = [
    *("train", "Train", "TRAINING", "training_set", "training-set", "trainset", "TrainSet"),
    *("train_data", "train images", "TrainingData", "trn", "训练集"),
]
TEST_NAMES = [
    *("test", "TEST", "testing", "test_set", "Test Set", "testset", "test_images", "测试集"),
    *("val", "Valid", "validation", "validation_set", "ValidationSet", "dev", "eval", "evaluation"),
]
CLASSES = ["cat", "train station", "test tube", "valid1 x2", "device", "latest", "restraint"]


def two(root, train, test, **counts):
    fill(root / train, **(counts or {"cat": 3, "dog": 2}))
    fill(root / test, blue=9, **(counts or {"cat": 1, "dog": 2}))
    return root


@pytest.mark.parametrize("train", TRAIN_NAMES)
def test_a_training_folder_is_known_by_any_usual_name(tmp_path, train):
    data = load_folder(two(tmp_path, train, "test"))
    assert (data.classes, len(data.train), len(data.test)) == (("cat", "dog"), 5, 3)


@pytest.mark.parametrize("test", TEST_NAMES)
def test_a_held_out_folder_is_known_by_any_usual_name(tmp_path, test):
    data = load_folder(two(tmp_path, "Training", test))
    assert (data.classes, len(data.train), len(data.test)) == (("cat", "dog"), 5, 3)
    assert told(data, f"{test}/ is used as the test split") == (test.lower() != "test")


@pytest.mark.parametrize(
    ("train", "test"), [("seg_train", "seg_test"), ("train2017", "val2017"), ("x_train", "x_val")]
)
def test_what_both_names_share_does_not_matter(tmp_path, train, test):
    assert load_folder(two(tmp_path, train, test)).classes == ("cat", "dog")


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_whose_name_has_such_letters_stays_a_class(tmp_path, name):
    fill(tmp_path, **{name: 9, "other": 9})
    assert load_folder(tmp_path).classes == tuple(sorted([name, "other"]))


def test_train_is_a_class_among_vehicles(tmp_path):
    fill(tmp_path, bus=9, car=9, train=9)
    assert load_folder(tmp_path).classes == ("bus", "car", "train")


def test_valid_and_invalid_are_classes(tmp_path):
    fill(tmp_path, valid=9, invalid=9)
    assert load_folder(tmp_path).classes == ("invalid", "valid")


def flat(root, *names):
    for name in names:
        for number in range(3):
            picture(root / name / f"{number}.png")


DOUBTFUL = {
    "two classes called like splits": (lambda r: flat(r, "Training", "Validation"), "no class fo"),
    "training without test": (lambda r: fill(r / "Training", a=2, b=2), "no test/ beside it"),
    "test without training": (lambda r: fill(r / "Test", a=2, b=2), "no train/ beside it"),
    "val and test without training": (
        lambda r: (fill(r / "val", a=2, b=2), fill(r / "test", a=2, b=2)),
        r"test/, val/ but no train/ beside it",
    ),
    "two training folders": (
        lambda r: (two(r, "train", "test"), fill(r / "training", a=2, b=2)),
        r"train/, training/ all look like the training split",
    ),
    "two test folders": (
        lambda r: (two(r, "train", "Test"), fill(r / "testing", a=2, b=2)),
        r"Test/, testing/ all look like the same split",
    ),
    "another series": (lambda r: two(r, "train_2016", "val_2017"), "do not belong together"),
    "training beside an unknown split": (
        lambda r: two(r, "train", "unknown"),
        r"train/ may be a split or a class, and there is no test/ or val/ beside it; rename "
        r"unknown/",
    ),
    "test beside an unknown split": (lambda r: two(r, "learning", "test"), "no train/ beside it"),
    "folds": (lambda r: two(r, "fold1", "fold2"), "fold1/, fold2/ hold the same folders"),
    "unlabelled test alone": (
        lambda r: (fill(r / "train", a=2, b=2), flat(r, "test")),
        r"test/ has no class folders, so nothing can be measured with it",
    ),
}


@pytest.mark.parametrize(("make", "message"), DOUBTFUL.values(), ids=DOUBTFUL)
def test_what_may_be_a_split_is_never_taken_for_classes(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        load_folder(tmp_path)
    assert "\n" not in str(caught.value)


def unlabelled_flat(root):
    flat(root, "test")


def unlabelled_nested(root):
    flat(root / "test", "unknown")


def unlabelled_twice(root):
    flat(root / "test", "test")


@pytest.mark.parametrize("make", [unlabelled_flat, unlabelled_nested, unlabelled_twice])
def test_an_unlabelled_test_folder_gives_way_to_val_and_it_is_said(tmp_path, make):
    make(two(tmp_path, "train", "val"))
    data = load_folder(tmp_path)
    assert (data.classes, len(data.train), len(data.test)) == (("cat", "dog"), 5, 3)
    assert told(data, "val/ is used as the test split")
    assert told(data, "test/ not used: it has no labels")


def test_a_split_that_was_unpacked_into_itself_is_read(tmp_path):
    two(tmp_path, "seg_train/seg_train", "seg_test/seg_test")
    data = load_folder(tmp_path)
    assert (data.classes, len(data.train), len(data.test)) == (("cat", "dog"), 5, 3)


@pytest.mark.parametrize("inner", ["photos", "archive"])
def test_an_only_folder_that_holds_the_splits_is_entered_and_it_is_said(tmp_path, inner):
    two(tmp_path / "photos" / inner, "train", "test")
    picture(tmp_path / "photos" / "__MACOSX" / "photos" / "a.png")
    data = load_folder(tmp_path / "photos")
    assert (data.classes, len(data.train), len(data.test)) == (("cat", "dog"), 5, 3)
    assert told(data, f"photos/{inner} is read, the only folder in")


def test_a_folder_in_itself_is_entered(tmp_path):
    fill(tmp_path / "pets" / "pets", cat=9, dog=9)
    assert load_folder(tmp_path / "pets").classes == ("cat", "dog")


def test_an_only_class_is_no_reason_to_take_its_subfolders_for_classes(tmp_path):
    fill(tmp_path / "pets" / "cat", indoor=9, outdoor=9)
    with pytest.raises(DataError, match=r"one class only, cat/; .* inside it, give .*pets/cat$"):
        load_folder(tmp_path / "pets")


@pytest.mark.parametrize(
    "name",
    [
        *("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"),
        *(".thumbnails", ".ipynb_checkpoints"),
    ],
)
def test_what_systems_leave_behind_is_no_class_and_no_image(tmp_path, name):
    fill(tmp_path, cat=9, dog=9)
    want = load_folder(tmp_path)
    for place in (tmp_path, tmp_path / "cat"):
        picture(place / name / "a.png")
        (place / "Thumbs.db").write_bytes(b"x")
        (place / ".DS_Store").write_bytes(b"x")
        Image.new("RGB", (8, 8)).save(place / "._a.png")
    data = load_folder(tmp_path)
    assert data.classes == want.classes
    assert (colours(data.train), colours(data.test)) == (colours(want.train), colours(want.test))
    assert not told(data, "ignored")


def test_classes_and_counts_of_each_split_are_told(tmp_path):
    data = load_folder(two(tmp_path, "train", "test"))
    assert "classes (training + test images): cat 3+1, dog 2+2" in data.notes


def test_a_hundred_classes_are_told_in_a_line(tmp_path):
    fill(tmp_path, **{f"c{i:02}": 2 for i in range(100)})
    (note,) = [note for note in load_folder(tmp_path, image_size=8).notes if "classes" in note]
    assert note.endswith("c19 1+1 and 80 more")


def test_what_is_ignored_is_told_by_its_ending(tmp_path):
    fill(tmp_path, cat=9, dog=9)
    for number in range(3):
        (tmp_path / "cat" / f"{number}.HEIC").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    assert told(load_folder(tmp_path), "4 files ignored (.heic 3, .txt 1)")


@pytest.mark.parametrize("name", ["cat", "restrain", "Contest", "devices", "set", "x", ""])
def test_words_of_no_split(name):
    assert split_name(name) is None
