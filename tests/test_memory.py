"""What would not fit is refused before it is tried, in one line with both numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from folder_helpers import fill
from gammabeta import memory
from gammabeta.cli import app
from gammabeta.data import load
from gammabeta.data.image import BYTES_PER_PIXEL, MAX_IMAGE_SIZE, MEMORY_LIMIT
from gammabeta.errors import GammabetaError
from gammabeta.models import Net
from gammabeta.training.run import Run
from training_helpers import call, make_run, small


def test_what_is_free_is_no_more_than_the_machine_has():
    free = memory.available_bytes()
    assert 2**24 < free < 2**50


def group(folder, limit, used, stat):
    folder.mkdir()
    (folder / "limit").write_text(limit)
    (folder / "used").write_text(used)
    (folder / "memory.stat").write_text(stat)
    return folder, "limit", "used", ("inactive_file", "active_file")


STAT = "anon 400\ninactive_file 50\nactive_file 30\nslab 7\n"


@pytest.mark.parametrize(
    ("limit", "used", "left"),
    [("1000\n", "600\n", 480), ("100\n", "600\n", 0), ("1000\n", "1000\n", 80)],
)
def test_a_container_has_what_its_limit_leaves_and_its_copies_of_files(
    tmp_path, monkeypatch, limit, used, left
):
    monkeypatch.setattr(memory, "CONTROL_GROUPS", (group(tmp_path / "g", limit, used, STAT),))
    assert memory.available_bytes() == left
    with pytest.raises(
        GammabetaError, match=r"^x takes 0\.0 GB of memory and 0\.0 GB are free; y$"
    ):
        memory.require(left + 1, "x", "y")
    memory.require(left, "x", "y")


def test_a_container_without_a_limit_has_the_machines_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CONTROL_GROUPS", (group(tmp_path / "g", "max\n", "6\n", STAT),))
    assert memory.available_bytes() > 2**24


@pytest.mark.parametrize("allocate", [lambda: np.empty(2**55), lambda: torch.empty(2**50)])
def test_an_allocators_refusal_is_known(allocate):
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        allocate()
    assert memory.ran_out(caught.value)


def test_running_out_of_memory_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(app, "app", lambda: torch.empty(2**50))
    assert "memory ran out; choose a smaller --batch-size" in call(capsys, "train").error


# Image sizes


def test_the_largest_image_is_as_large_as_a_picture_may_be():
    assert MAX_IMAGE_SIZE % 8 == 0
    assert MAX_IMAGE_SIZE**2 * BYTES_PER_PIXEL <= MEMORY_LIMIT
    assert (MAX_IMAGE_SIZE + 8) ** 2 * BYTES_PER_PIXEL > MEMORY_LIMIT


@pytest.mark.parametrize("data", ["digits", "pets"])
@pytest.mark.parametrize("size", [MAX_IMAGE_SIZE + 8, 100_000, 2**30])
def test_a_size_that_no_picture_may_have_is_refused(tmp_path, monkeypatch, capsys, data, size):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "pets", cat=2, dog=2)
    error = call(capsys, "train", "--data", data, "--image-size", size).error
    assert f"image size is {size}, but must be at most 9680" in error
    assert [p.name for p in tmp_path.iterdir()] == ["pets"]


def test_a_network_that_does_not_fit_is_refused_before_data_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "pets", cat=2, dog=2)
    answer = call(capsys, "train", "--data", "pets", "--image-size", 9600)
    assert (
        "the network for images of 9600x9600 pixels in batches of 2 takes 94.4 GB of"
        in answer.error
    )
    assert answer.out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["pets"]


def test_a_batch_that_does_not_fit_is_refused_before_a_run_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(memory, "available_bytes", lambda: 300_000_000)
    words = ("train", "--data", "digits", "--image-size", "32", "--batch-size")
    error = call(capsys, *words, 1400).error
    assert "in batches of 1400 takes 0.7 GB of memory and 0.3 GB are free" in error
    assert list(tmp_path.iterdir()) == []


def test_digits_that_do_not_fit_are_refused():
    with pytest.raises(GammabetaError, match=r"1797 digits of 9600x9600 pixels takes 1,324.9 GB"):
        load("digits", image_size=9600)


def test_a_network_of_any_size_can_be_planned_on_the_meta_device():
    with torch.device("meta"):
        assert Net(10, 9600, grid=None).fc1.in_features == 256 * 1200**2
    with pytest.raises(GammabetaError, match=r"the network for images of 9600x9600 .* 1,509.9 GB"):
        Net(10, 9600, grid=None)


@pytest.mark.parametrize(
    "words",
    [
        ("explain", "torchvision.models:resnet18", "--image-size", "100000"),
        ("explain", "torchvision.models:resnet18", "--image-size", "100000", "--data", "digits"),
        ("explain", "torchvision.models:resnet18", "--batch-size", "100000000"),
    ],
)
def test_explain_refuses_images_that_do_not_fit(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    error = call(capsys, *words).error
    assert "of memory and" in error or "must be at most 9680" in error


@pytest.mark.parametrize("command", ["predict", "evaluate", "recalibrate"])
def test_a_run_whose_network_does_not_fit_is_refused(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    config = make_run(tmp_path / "small", small()).config
    Run.create(tmp_path / "run", dataclasses.replace(config, image_size=9600, grid=None))
    save_file(Net().state_dict(), tmp_path / "run" / "model.safetensors")
    Image.new("RGB", (8, 8)).save("a.png")
    words = ("run", "a.png") if command == "predict" else ("run",)
    error = call(capsys, command, *words).error
    assert "takes 1,509.9 GB of memory" in error or "takes 1,324.9 GB of memory" in error
