"""CIFAR-10: found in every official form, refused when damaged, downloaded when absent."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pickle
import socket
import tarfile

import numpy as np
import pytest

from gammabeta.data.cifar import _strange_archive, load_cifar10, load_from
from gammabeta.data.cifar_files import BINARY, PYTHON, read_binary, read_python
from gammabeta.data.download import Remote
from gammabeta.errors import DataError
from http_server import NAME, Answer, serve

RECORDS = 7


def batch(seed):
    """Make one small batch: labels (N,) and pixels (N, 3072) in the files' channel-first order."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, RECORDS)
    return labels, random.integers(0, 256, (RECORDS, 3072), np.uint8)


def binary_bytes(labels, pixels):
    return np.hstack([labels.astype(np.uint8)[:, None], pixels]).tobytes()


def python_bytes(labels, pixels):
    content = {b"data": pixels, b"labels": labels.tolist(), b"batch_label": b"x"}
    return pickle.dumps(content, protocol=2)


WRITERS = {BINARY: binary_bytes, PYTHON: python_bytes}
FORMS = pytest.mark.parametrize("form", WRITERS, ids=lambda form: form.title)


def write(folder, form, offset=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(form.names):
        (folder / name).write_bytes(WRITERS[form](*batch(i + offset)))
    return folder


def pack(path, folder):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, folder.name)
    return path


def load(root, remote=None, **options):
    return load_from(root, remote, records=RECORDS, **options)


def assert_is_the_data(dataset, offset=0):
    batches = [batch(i + offset) for i in range(6)]
    for split, parts in ((dataset.train, batches[:5]), (dataset.test, batches[5:])):
        pixels = np.concatenate([p for _, p in parts])
        for c in range(3):
            plane = pixels[:, c * 1024 : (c + 1) * 1024].reshape(-1, 32, 32)
            np.testing.assert_array_equal(split.images[..., c], plane)
        np.testing.assert_array_equal(split.labels, np.concatenate([y for y, _ in parts]))
        assert split.images.flags.c_contiguous


def one_line(caught):
    assert "\n" not in str(caught.value)
    return True


@FORMS
@pytest.mark.parametrize("place", [".", "official", "some/where", "some/official"])
def test_files_are_found_in_the_root_and_two_levels_below(tmp_path, form, place):
    write(tmp_path / place.replace("official", form.folder), form)
    dataset = load(tmp_path)
    assert_is_the_data(dataset)
    assert dataset.name == "cifar10"
    assert dataset.classes[0] == "airplane"
    assert dataset.classes[9] == "truck"
    assert form.title in dataset.notes[0]


@pytest.mark.parametrize("place", ["a/b/c", ".hidden"])
def test_deeper_and_hidden_folders_are_left_alone(tmp_path, place):
    write(tmp_path / place, BINARY)
    with pytest.raises(DataError, match="is not in"):
        load(tmp_path)


def test_binary_files_come_first_then_official_names(tmp_path):
    write(tmp_path, PYTHON, offset=1)
    write(tmp_path / "aaa", BINARY, offset=2)
    write(tmp_path / BINARY.folder, BINARY)
    assert_is_the_data(load(tmp_path))


@FORMS
@pytest.mark.parametrize("place", [".", "below"])
def test_an_archive_is_unpacked_beside_itself(tmp_path, form, place):
    source = write(tmp_path / "source" / form.folder, form)
    root = tmp_path / "root"
    pack(root / place / form.archive, source)
    assert_is_the_data(load(root))
    assert {p.name for p in (root / place).iterdir()} == {form.archive, form.folder}
    assert_is_the_data(load(root))


@FORMS
def test_an_archive_that_is_not_the_official_one_is_told(tmp_path, form):
    archive = pack(tmp_path / form.archive, write(tmp_path / "source" / form.folder, form))
    (tmp_path / "source").rename(tmp_path / ".source")
    told = [note for note in load(tmp_path).notes if "is not the official archive" in note]
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()  # noqa: S324 (as published)
    assert len(told) == 1
    assert md5 in told[0]
    assert form.md5 in told[0]


@FORMS
def test_the_official_archive_needs_no_remark(tmp_path, form):
    archive = pack(tmp_path / form.archive, write(tmp_path / "source" / form.folder, form))
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()  # noqa: S324 (as published)
    assert _strange_archive(archive, dataclasses.replace(form, md5=md5)) == ()


def with_label_10(path):
    labels, pixels = batch(2)
    labels[4] = 10
    path.write_bytes(binary_bytes(labels, pixels))


BINARY_DAMAGE = {
    "truncated": (lambda path: os.truncate(path, 21_510), "21511 bytes, found 21510"),
    "oversized": (lambda path: os.truncate(path, 21_514), "21511 bytes, found 21514"),
    "empty": (lambda path: os.truncate(path, 0), "21511 bytes, found 0"),
    "label 10": (with_label_10, "labels from 0 to 9, found 10 at image 4"),
}


@pytest.mark.parametrize(("damage", "message"), BINARY_DAMAGE.values(), ids=BINARY_DAMAGE)
def test_a_damaged_binary_file_is_named(tmp_path, damage, message):
    write(tmp_path, BINARY)
    damage(tmp_path / "data_batch_3.bin")
    with pytest.raises(DataError, match=rf"data_batch_3\.bin: .*{message}") as caught:
        load(tmp_path)
    assert one_line(caught)


LABELS, PIXELS = batch(2)
PYTHON_DAMAGE = {
    "text keys": ({"data": PIXELS, "labels": [*range(7)]}, r"keys \['data', 'labels'\]"),
    "no labels": ({b"data": PIXELS}, r"keys \[b'data'\]"),
    "CIFAR-100": ({b"data": PIXELS, b"fine_labels": [*range(7)]}, "fine_labels"),
    "data not an array": ({b"data": [1], b"labels": [*range(7)]}, "expected an array"),
    "shape": ({b"data": PIXELS[:, 1:], b"labels": [*range(7)]}, r"\(7, 3072\).*\(7, 3071\)"),
    "dtype": ({b"data": PIXELS.astype(np.float32), b"labels": [*range(7)]}, "dtype 'f4'"),
    "too few labels": ({b"data": PIXELS, b"labels": [*range(6)]}, "7 labels, found .* and 6"),
    "negative label": ({b"data": PIXELS, b"labels": [-1] * 7}, "from 0 to 9"),
    "label 10": ({b"data": PIXELS, b"labels": [10] * 7}, "from 0 to 9"),
    "fractions": ({b"data": PIXELS, b"labels": [0.5] * 7}, "integer labels"),
    "a list": ([1, 2], "a list, expected a dict"),
}


@pytest.mark.parametrize(("content", "message"), PYTHON_DAMAGE.values(), ids=PYTHON_DAMAGE)
def test_a_damaged_python_file_is_named(tmp_path, content, message):
    write(tmp_path, PYTHON)
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match=rf"data_batch_3: .*{message}") as caught:
        load(tmp_path)
    assert one_line(caught)


@FORMS
def test_missing_files_are_named_and_nothing_is_downloaded(tmp_path, form):
    write(tmp_path, form)
    gone = [form.names[1], form.names[5]]
    for name in gone:
        (tmp_path / name).unlink()
    with serve(b"") as served, pytest.raises(DataError, match=f"{', '.join(gone)} missing"):
        load(tmp_path, Remote(served.url, "", 1))
    assert served.ranges == []


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    return pack(folder / NAME, write(folder / BINARY.folder, BINARY)).read_bytes()


def test_absent_data_is_downloaded_resumed_and_unpacked(tmp_path, archive):
    steps = []
    with serve(archive, Answer(cut=1000), Answer()) as served:
        remote = Remote(served.url, hashlib.md5(archive).hexdigest(), len(archive))  # noqa: S324 (as published)
        root = tmp_path / "new" / "root"
        assert_is_the_data(load(root, remote, progress=lambda *step: steps.append(step)))
        assert_is_the_data(load(root, remote))
    assert served.ranges == [None, "bytes=1000-"]
    assert steps[-1] == (f"downloading {NAME}", len(archive), len(archive))
    assert {p.name for p in root.iterdir()} == {NAME, BINARY.folder}


def test_offline_is_one_line_with_the_root_and_a_way_out(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        remote = Remote(f"http://127.0.0.1:{unused.getsockname()[1]}/{NAME}", "", 1)
        with pytest.raises(DataError, match=r"cannot be reached .*--data digits") as caught:
            load(tmp_path, remote)
    assert str(caught.value).startswith(f"CIFAR-10 is not in {tmp_path} ")
    assert one_line(caught)


@pytest.mark.parametrize("exists", [True, False])
def test_without_download_it_says_where_it_looked(tmp_path, exists):
    root = tmp_path if exists else tmp_path / "none"
    with pytest.raises(DataError, match=f"CIFAR-10 is not in {root};.*--data digits"):
        load_cifar10(root, download=False)
    assert root.exists() == exists


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_root_that_cannot_be_used_is_named(tmp_path, place):
    (tmp_path / "file").write_bytes(b"")
    root = tmp_path / place
    with serve(b"") as served, pytest.raises(DataError, match=f"{root}: cannot be used") as caught:
        load(root, Remote(served.url, "", 1))
    assert one_line(caught)


def test_a_hostile_archive_of_the_user_is_named_and_leaves_nothing(tmp_path):
    with tarfile.open(tmp_path / NAME, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../data_batch_1.bin"), io.BytesIO())
    with pytest.raises(DataError, match=f"{NAME}: cannot be unpacked"):
        load(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [NAME]


@pytest.mark.cifar
def test_the_real_data_has_the_published_shape(cifar_root):
    dataset = load_cifar10(cifar_root, download=False)
    for split, size in ((dataset.train, 50_000), (dataset.test, 10_000)):
        assert split.images.shape == (size, 32, 32, 3)
        assert np.bincount(split.labels).tolist() == [size // 10] * 10


@pytest.mark.cifar
def test_the_real_data_reads_the_same_in_both_forms(cifar_root, tmp_path):
    path = next(cifar_root.rglob("data_batch_1.bin"))
    pixels, labels = read_binary(path, 10_000)
    (tmp_path / "data_batch_1").write_bytes(python_bytes(labels, pixels))
    same_pixels, same_labels = read_python(tmp_path / "data_batch_1", 10_000)
    np.testing.assert_array_equal(same_pixels, pixels)
    np.testing.assert_array_equal(same_labels, labels)


@FORMS
def test_only_what_is_measured_is_read(tmp_path, form):
    write(tmp_path, form)
    whole = load(tmp_path)
    train = load(tmp_path, measure="train")
    everything = load(tmp_path, measure="all")
    np.testing.assert_array_equal(train.test.images, whole.train.images)
    assert len(everything.test) == 6 * RECORDS
    for name in form.names[:5]:
        (tmp_path / name).write_bytes(b"damaged")
    for measure in ("own", "test"):
        found = load(tmp_path, measure=measure)
        np.testing.assert_array_equal(found.test.labels, whole.test.labels)
        assert len(found.train) == 0
        assert found.image_size == 32
    with pytest.raises(DataError, match="no split 'val'; its splits are train, test or all"):
        load(tmp_path, measure="val")
