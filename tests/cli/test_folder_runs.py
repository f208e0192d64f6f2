"""A run on a folder of images goes on with the images that it began with, whatever else comes."""

from __future__ import annotations

import json
import shutil

import pytest

from folder_helpers import fill, picture
from gammabeta.training.run import Run
from gammabeta.training.trainer import StoppedError, Trainer
from training_helpers import call

TRAIN = ("train", "--data", "pets", "--image-size", 8, "--batch-size", 4, "--threads", 1)


@pytest.fixture
def pets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return fill(tmp_path / "pets", cat=12, dog=12)


@pytest.fixture
def run(pets, capsys):
    assert call(capsys, *TRAIN, "--epochs", 1, "--out", "run").code == 0
    return pets.parent / "run"


def gain(pets):
    """Add three images a class, before, between and after the others by name."""
    for label, name in enumerate(("cat", "dog")):
        for number in ("!", "005a", "zz"):
            picture(pets / name / f"{number}.png", (label, 200, 7))


def numbers(document):
    return {k: document[k] for k in ("accuracy", "total", "loss", "correct")}


@pytest.mark.parametrize("command", [("evaluate",), ("recalibrate", "--out", "exact")], ids=str)
def test_what_came_later_changes_no_number(run, pets, capsys, command):
    first = call(capsys, *command, "run", "--json").document
    shutil.rmtree("exact", ignore_errors=True)
    gain(pets)
    again = call(capsys, *command, "run", "--json").document
    if command[0] == "evaluate":
        assert numbers(again) == numbers(first)
    else:
        assert again["samples"] == first["samples"]
        assert (again["accuracy_before"], again["accuracy"]) == (
            first["accuracy_before"],
            first["accuracy"],
        )


def test_a_resumed_run_trains_on_what_it_began_with_to_the_same_bits(pets, capsys):
    assert call(capsys, *TRAIN, "--epochs", 2, "--out", "whole").code == 0
    whole = Run.open(pets.parent / "whole")
    stopped = Run.create(pets.parent / "stopped", whole.config)
    steps = iter([0, 0, 15])
    with pytest.raises(StoppedError):
        Trainer(stopped, whole.config.load_data(), stop_requested=lambda: next(steps)).fit()
    gain(pets)
    answer = call(capsys, "train", "--resume", "stopped")
    assert answer.code == 0
    assert "6 images are not among those that the run began with" in answer.out
    assert whole.model.read_bytes() == stopped.model.read_bytes()


def test_a_run_without_a_list_of_images_says_that_its_split_is_new(run, capsys):
    config = json.loads((run / "config.json").read_text())
    assert len(config.pop("files")["train"]) > 10
    (run / "config.json").write_text(json.dumps(config))
    assert "the run kept no list of its images" in Run.open(run).config.load_data().notes[-1]


def test_the_classes_and_their_counts_are_shown_before_training(pets, capsys):
    lines = call(capsys, *TRAIN, "--epochs", 1).out.splitlines()
    shown = next(i for i, line in enumerate(lines) if line.startswith("classes (training + test"))
    began = next(i for i, line in enumerate(lines) if line.startswith("epoch"))
    assert shown < began
