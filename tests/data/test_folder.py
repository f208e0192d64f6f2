"""Folders of real pictures: layouts, splits, refusals, and the memory-mapped cache.

Every picture is one flat colour that names its class and number, so labels can be read off pixels.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from folder_helpers import colours, fill, picture, told
from gammabeta.data.folder import load_folder
from gammabeta.errors import DataError


@pytest.fixture
def pets(tmp_path):
    return fill(tmp_path / "pets", cat=10, dog=6, eel=2)


@pytest.fixture
def steps():
    """A progress callback that remembers its calls."""

    class Steps(list):
        def __call__(self, *call):
            self.append(call)

    return Steps()


# Layouts


def test_a_tree_of_classes_is_split_one_in_five(pets):
    data = load_folder(pets, image_size=16)
    assert (data.name, data.classes, data.image_size) == ("pets", ("cat", "dog", "eel"), 16)
    assert (np.bincount(data.test.labels, minlength=3) > 0).all()
    both = colours(data.train) + colours(data.test)
    want = [(y, y, n) for y, count in enumerate([10, 6, 2]) for n in range(count)]
    assert sorted(both) == want
    test, train = len(data.test), len(data.train)
    assert told(data, f"{test} of 18 images were drawn", f"seed 0, and {train} are left for train")


def test_the_seed_alone_decides_the_split(pets):
    first, again, other = (colours(load_folder(pets, seed=s).test) for s in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("second", ["test", "val", "valid", "validation"])
def test_the_folders_own_split_is_kept(tmp_path, second):
    fill(tmp_path / "train", cat=3, dog=2)
    fill(tmp_path / second, blue=9, cat=1, dog=2)
    data = load_folder(tmp_path)
    assert colours(data.train) == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (1, 1, 0), (1, 1, 1)]
    assert colours(data.test) == [(0, 0, 0), (1, 1, 0), (1, 1, 1)]
    said = () if second == "test" else (f"{second}/ is used as the test split",)
    assert data.notes == (*said, "classes (training + test images): cat 3+1, dog 2+2")


def test_split_folders_in_capitals_are_no_classes(tmp_path):
    two_trees(tmp_path, {"cat": 2, "dog": 2}, {"cat": 1, "dog": 1}, names=("Train", "TEST"))
    data = load_folder(tmp_path)
    assert (data.classes, len(data.train), len(data.test)) == (("cat", "dog"), 4, 2)


def test_test_goes_before_val_and_the_rest_is_told(tmp_path):
    for name in ("train", "test", "val"):
        fill(tmp_path / name, cat=2, dog=2)
    assert load_folder(tmp_path).notes[0] == "val beside the splits not used"


def test_hidden_and_other_files_are_passed_over(pets):
    picture(pets / ".cache" / "a.png")
    (pets / "cat" / "._000.png").write_bytes(b"")
    (pets / "cat" / "notes.txt").write_text("x", encoding="utf-8")
    (pets / "README.md").write_text("x", encoding="utf-8")
    data = load_folder(pets)
    assert len(data.train) + len(data.test) == 18
    assert told(data, "2 files ignored (.md 1, .txt 1): not JPEG, PNG, WebP, BMP")


def test_images_are_found_at_any_depth_and_in_capitals(pets):
    picture(pets / "eel" / "north" / "sea" / "A.PNG", (2, 50, 7))
    data = load_folder(pets)
    assert (2, 2, 50) in colours(data.train) + colours(data.test)


def test_symlink_loops_are_not_followed(pets):
    (pets / "cat" / "up").symlink_to(pets)
    (pets / "cat" / "self").symlink_to("self")
    (pets / "again").symlink_to(".")
    data = load_folder(pets)
    assert data.classes == ("cat", "dog", "eel")
    assert len(data.train) + len(data.test) == 18


def test_linked_folders_further_down_are_followed_but_never_back(pets, tmp_path):
    fill(tmp_path / "elsewhere", more=3, blue=9)
    (pets / "eel" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    (tmp_path / "elsewhere" / "more" / "back").symlink_to(pets)
    (tmp_path / "elsewhere" / "more" / "round").symlink_to(tmp_path / "elsewhere")
    data = load_folder(pets)
    assert len(data.train) + len(data.test) == 21
    assert (data.train.labels == 2).sum() + (data.test.labels == 2).sum() == 5


def test_a_linked_class_folder_counts(pets, tmp_path):
    fill(tmp_path / "elsewhere", fox=2)
    (pets / "fox").symlink_to(tmp_path / "elsewhere" / "fox")
    assert load_folder(pets).classes == ("cat", "dog", "eel", "fox")


def test_progress_counts_every_image(pets, steps):
    load_folder(pets, progress=steps)
    assert steps == [("decoding images", done, 18) for done in range(1, 19)]


def test_order_does_not_depend_on_the_threads(tmp_path):
    fill(tmp_path, a=150, b=150)
    for number in range(0, 150, 10):  # slow ones, so that others overtake them
        Image.new("RGB", (900, 900), (0, number, 7)).save(tmp_path / "a" / f"{number:03}.png")
    data = load_folder(tmp_path, image_size=8)
    for split in (data.train, data.test):
        assert colours(split) == sorted(colours(split))


# Refusals


def empty_class(root):
    fill(root, cat=2, dog=2)
    (root / "eel").mkdir()


def broken(root, count=1):
    fill(root, cat=50, dog=2)
    for number in range(count):
        (root / "cat" / f"{number:03}.png").write_bytes(b"no picture")


def non_utf8(root, old, new):
    fill(root, cat=2, dog=2)
    picture(root / "eel" / "a.png")
    picture(root / "eel" / "b.png")
    (root / old).rename(root / os.fsdecode(new))


def two_trees(root, train, test, names=("train", "test")):
    fill(root / names[0], **train)
    fill(root / names[1], **test)


REFUSED = {
    "missing": (lambda _: None, r"data does not exist; give the folder"),
    "a file": (lambda r: r.write_text("x", encoding="utf-8"), r"data is not a folder; give"),
    "empty": (lambda r: r.mkdir(), r"data has no class folders; put each class in its own subf"),
    "images directly inside": (lambda r: picture(r / "a.png"), r"holds images but no class; put"),
    "one class": (lambda r: fill(r, cat=3), r"data has one class only, cat/; at least two"),
    "one class below train": (
        lambda r: two_trees(r, {"cat": 2}, {"cat": 2, "dog": 2}),
        r"train has one class only, cat/",
    ),
    "train alone": (
        lambda r: fill(r / "train", cat=2, dog=2),
        r"data has train/ but no test/ beside it; add one, or give the train folder itself",
    ),
    "empty class": (
        empty_class,
        r"no JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF or PPM image in .*data/eel; add",
    ),
    "single image": (
        lambda r: fill(r, cat=1, dog=2, eel=1),
        r"a single image in class cat, eel of .*data cannot be split; add images, or make train/",
    ),
    "classes differ": (
        lambda r: two_trees(r, {"cat": 1, "dog": 1}, {"cat": 1, "eel": 1}),
        r"differ in their classes: train/eel, test/dog missing; add",
    ),
    "file name not UTF-8": (
        lambda r: non_utf8(r, "eel/a.png", b"eel/caf\xe9.png"),
        r"the name .*eel/caf\\xe9\.png is not UTF-8; rename it",
    ),
    "folder name not UTF-8": (
        lambda r: non_utf8(r, "eel", b"\xe9el"),
        r"the name .*data/\\xe9el is not UTF-8; rename it",
    ),
    "one unreadable": (
        broken,
        r"^1 of 52 images cannot be read: cat/000\.png \(not a readable JPEG, PNG, WebP, BMP, GIF,"
        r" TIFF, AVIF or PPM image\); repair or remove them, or leave them out with "
        r"--skip-unreadable$",
    ),
    "many unreadable": (lambda r: broken(r, 23), r"^23 of 52 images .* and 3 more; repair"),
}


@pytest.mark.parametrize(("write", "message"), REFUSED.values(), ids=REFUSED)
def test_a_folder_that_is_no_data_set_is_refused_in_one_line(tmp_path, write, message):
    write(tmp_path / "data")
    with pytest.raises(DataError, match=message) as caught:
        load_folder(tmp_path / "data", image_size=8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, -8, 30])
def test_a_size_that_cannot_be_halved_three_times_is_refused(pets, size):
    with pytest.raises(DataError, match=f"positive multiple of 8 such as 32, got {size}$"):
        load_folder(pets, image_size=size)


def test_all_unreadable_files_are_named_with_the_reason(pets):
    (pets / "cat" / "003.png").write_bytes(b"")
    (pets / "dog" / "001.png").unlink()
    (pets / "dog" / "001.png").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"^2 of 18") as caught:
        load_folder(pets)
    assert "cat/003.png (the file is empty)" in str(caught.value)
    assert "dog/001.png (No such file or directory)" in str(caught.value)


@pytest.mark.parametrize("limit", [None, 0], ids=["in memory", "in the cache"])
def test_skipped_files_leave_labels_and_images_in_step(tmp_path, limit):
    fill(tmp_path / "pets", cat=20, dog=20)
    for name in ("cat/000", "cat/007", "dog/004", "dog/019"):
        (tmp_path / "pets" / f"{name}.png").write_bytes(b"no picture")
    options = {"skip_unreadable": True, "memory_limit": limit, "cache": tmp_path / "cache"}
    for _ in range(2):  # the second time the cache is found
        data = load_folder(tmp_path / "pets", **options)
        seen = colours(data.train) + colours(data.test)
        lost = {(0, 0, 0), (0, 0, 7), (1, 1, 4), (1, 1, 19)}
        assert sorted(seen) == [
            (y, y, n) for y in (0, 1) for n in range(20) if (y, y, n) not in lost
        ]
        (note,) = [n for n in data.notes if n.startswith("4 of 40 images skipped as unreadable: ")]
        assert note.count("cat/") == 2


def test_skipping_the_last_image_of_a_class_is_refused(tmp_path):
    two_trees(tmp_path, {"cat": 2, "dog": 2}, {"cat": 2, "dog": 1})
    (tmp_path / "test" / "dog" / "000.png").write_bytes(b"no picture")
    message = r"no readable test image is left in class dog; repair or remove test/dog/000\.png"
    with pytest.raises(DataError, match=message):
        load_folder(tmp_path, skip_unreadable=True)


# The cache


@pytest.fixture
def cached(pets, tmp_path, steps):
    """Load the pets through the cache; the calls to progress tell whether it was decoded."""

    def load(**options):
        steps.clear()
        options = {"memory_limit": 0, "cache": tmp_path / "cache", "progress": steps} | options
        return load_folder(pets, **options)

    return load


def test_beyond_the_memory_limit_images_are_mapped_read_only(cached, pets, tmp_path):
    data = cached()
    plain = load_folder(pets)
    for got, want in ((data.train, plain.train), (data.test, plain.test)):
        assert isinstance(got.images, np.memmap)
        assert not got.images.flags.writeable
        assert (got.images == want.images).all()
        assert (got.labels == want.labels).all()
    assert re.fullmatch(
        rf"the decoded images are mapped from {tmp_path}/cache/\w+\.npy", data.notes[-1]
    )


@pytest.mark.parametrize(("spare", "kind"), [(0, np.ndarray), (-1, np.memmap)])
def test_the_limit_is_counted_in_decoded_bytes(cached, spare, kind):
    assert type(cached(memory_limit=18 * 32 * 32 * 3 + spare).train.images) is kind


@pytest.mark.parametrize(
    "content", ["3", "[1.5]", '["0"]', "[-1]", "[99]", "[[0]]", "[" * 100_000, "[NaN]"]
)
def test_a_list_of_skipped_files_with_other_values_than_ours_is_made_anew(
    content, cached, tmp_path
):
    first = cached()
    (kept,) = (tmp_path / "cache").glob("*.json")
    kept.write_text(content, encoding="utf-8")
    assert np.array_equal(cached().train.images, first.train.images)
    assert kept.read_text(encoding="utf-8") == "[]"


def test_unchanged_files_are_not_decoded_again(cached, steps, tmp_path):
    first = cached()
    assert len(steps) == 18
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    second = cached()
    assert steps == []
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert (second.train.images == first.train.images).all()


def test_a_changed_file_decodes_anew(cached, steps, pets):
    cached()
    picture(pets / "cat" / "000.png", (0, 99, 7))
    data = cached()
    assert len(steps) == 18
    assert (0, 0, 99) in colours(data.train) + colours(data.test)


def test_a_touched_file_decodes_anew(cached, steps, pets):
    cached()
    os.utime(pets / "cat" / "000.png", ns=(5, 5))
    cached()
    assert len(steps) == 18


def test_size_and_seed_have_their_own_cache(cached, steps):
    cached()
    assert cached(image_size=8).image_size == 8
    assert len(steps) == 18
    assert colours(cached(seed=1).test) != colours(cached(seed=0).test)


@pytest.mark.parametrize("harm", ["cut short", "no numpy file", "list lost", "list damaged"])
def test_a_damaged_cache_decodes_anew(cached, steps, tmp_path, harm):
    want = colours(cached().train)
    (array,) = (tmp_path / "cache").glob("*.npy")
    listed = array.with_suffix(".json")
    match harm:
        case "cut short":
            array.write_bytes(array.read_bytes()[:-1])
        case "no numpy file":
            array.write_bytes(b"no numpy file")
        case "list lost":
            listed.unlink()
        case "list damaged":
            listed.write_text("[1", encoding="utf-8")
    assert colours(cached().train) == want
    assert len(steps) == 18


def test_unreadable_files_are_named_again_from_the_cache(cached, steps, pets):
    (pets / "cat" / "004.png").write_bytes(b"no picture")
    for decoded in (18, 0):
        with pytest.raises(DataError, match=r"^1 of 18 .* cat/004\.png"):
            cached()
        assert len(steps) == decoded


def test_a_file_mended_behind_the_cache_is_taken_in(cached, pets, tmp_path):
    path = pets / "cat" / "004.png"
    good = path.read_bytes()
    path.write_bytes(b"x" * len(good))
    os.utime(path, ns=(5, 5))
    cached(skip_unreadable=True)
    (listed,) = (tmp_path / "cache").glob("*.json")
    assert len(json.loads(listed.read_text(encoding="utf-8"))) == 1
    path.write_bytes(good)
    os.utime(path, ns=(5, 5))  # size and time are those of the bad file
    data = cached(skip_unreadable=True)
    assert (0, 0, 4) in colours(data.train) + colours(data.test)


KILLED = """
import os, signal, sys
from pathlib import Path
from gammabeta.data.folder import load_folder

def die(what, done, total):
    if done == 9:
        os.kill(os.getpid(), signal.SIGKILL)

load_folder(Path(sys.argv[1]), memory_limit=0, cache=Path(sys.argv[2]), progress=die)
"""


def test_a_killed_decode_leaves_nothing_trusted(cached, steps, pets, tmp_path):
    command = [sys.executable, "-c", KILLED, str(pets), str(tmp_path / "cache")]
    assert subprocess.run(command, check=False).returncode == -9
    left = [path.suffix for path in (tmp_path / "cache").iterdir()]
    assert left == [".tmp"]
    data = cached()
    assert len(steps) == 18
    assert all(y == seen for y, seen, _ in colours(data.train))


def test_an_interrupted_decode_cleans_up(pets, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_folder(pets, memory_limit=0, cache=tmp_path / "cache", progress=interrupt)
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_a_killed_run_left_is_removed_a_day_later(cached, tmp_path):
    (tmp_path / "cache").mkdir()
    old, young = tmp_path / "cache" / "old.1.tmp", tmp_path / "cache" / "young.2.tmp"
    for path, age in ((old, 100_000), (young, 1000)):
        path.write_bytes(b"")
        os.utime(path, (time.time() - age,) * 2)
    cached()
    assert (old.exists(), young.exists()) == (False, True)


def test_a_cache_that_cannot_be_written_is_refused(cached, tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match=r"cannot keep decoded images in .*file/below: Not a dir"):
        cached(cache=tmp_path / "file" / "below")


def test_a_cache_larger_than_the_disk_is_refused_before_it_is_written(
    cached, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"bytes are needed and 1,000 are free"):
        cached(image_size=64)
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_users_cache_folder_is_the_default(cached, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    cached(cache=None)
    assert len(list((tmp_path / "xdg" / "gammabeta" / "decoded").glob("*.npy"))) == 1
