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
    del config["sha256"]
    (run / "config.json").write_text(json.dumps(config))
    assert "the run kept no list of its images" in Run.open(run).config.load_data().notes[-1]


def test_the_classes_and_their_counts_are_shown_before_training(pets, capsys):
    lines = call(capsys, *TRAIN, "--epochs", 1).out.splitlines()
    shown = next(i for i, line in enumerate(lines) if line.startswith("classes (training + test"))
    began = next(i for i, line in enumerate(lines) if line.startswith("epoch"))
    assert shown < began


def measured(capsys, *words):
    """Evaluate, and return the document and what was said."""
    answer = call(capsys, "evaluate", "run", *words, "--json", "--threads", 1)
    assert answer.code == 0, answer.err
    return answer.document, answer.err


def test_a_folder_without_splits_is_measured_as_a_whole(run, pets, capsys):
    fill(pets.parent / "other", cat=7, dog=1)
    for number, path in enumerate(sorted((pets.parent / "other").rglob("*.png"))):
        path.rename(path.with_name(f"other{number}.png"))
    document, said = measured(capsys, "--data", "other")
    assert (document["total"], document["split"]) == (8, "own")
    assert [sum(row) for row in document["confusion"]] == [7, 1]
    assert "the folder has no split of its own, so all of its 8 images are measured" in said
    assert "classes (images measured): cat 7, dog 1" in said


def test_split_chooses_what_is_measured(run, pets, capsys):
    files = Run.open(run).config.files
    sizes = {"own": len(files.test), "test": len(files.test), "train": len(files.train), "all": 24}
    counts = {}
    for split, size in sizes.items():
        counts[split], _ = measured(capsys, "--split", split)
        assert counts[split]["total"] == size
    assert counts["own"]["loss"] == counts["test"]["loss"]
    both = [counts["train"]["loss"] * sizes["train"], counts["test"]["loss"] * sizes["test"]]
    assert counts["all"]["loss"] * 24 == pytest.approx(sum(both))
    assert (
        f"on the {sizes['train']} training images"
        in call(capsys, "evaluate", "run", "--split", "train").out
    )


def test_a_folder_with_a_third_split_can_be_measured_on_it(run, pets, capsys):
    for side, count in (("train", 3), ("val", 4), ("test", 5)):
        fill(pets.parent / "three" / side, cat=count, dog=count)
    for split, total in (("own", 10), ("test", 10), ("val", 8), ("train", 6), ("all", 16)):
        assert measured(capsys, "--data", "three", "--split", split)[0]["total"] == total
    error = call(capsys, "evaluate", "run", "--data", "three", "--split", "dev").error
    assert "three has no split 'dev'" in error
    assert "split is 'valdi', but must be one of train, test, all" in call(
        capsys, "evaluate", "run", "--split", "valdi").error  # fmt: skip
    assert "digits has no split 'val'" in call(
        capsys, "evaluate", "run", "--data", "digits", "--split", "val").error  # fmt: skip


def test_the_runs_own_folder_is_never_measured_as_a_whole(run, pets, capsys):
    first, _ = measured(capsys)
    gain(pets)
    assert numbers(measured(capsys, "--data", "pets")[0]) == numbers(first)
    pets.rename(pets.parent / "moved")
    again, said = measured(capsys, "--data", "moved")
    assert numbers(again) == numbers(first)
    assert "moved has all names of the images that the run was trained and measured on" in said
    assert measured(capsys, "--data", "moved", "--split", "all")[0]["total"] == 24 + 6


def test_images_of_the_training_among_others_are_said(run, pets, capsys):
    shutil.copytree(pets, pets.parent / "mixed")
    (pets.parent / "mixed" / "cat" / "000.png").unlink()
    document, said = measured(capsys, "--data", "mixed")
    assert document["total"] == 23
    known = len({*Run.open(run).config.files.train} - {"cat/000.png"})
    assert f"{known} of these images have the names of images that the run was trained on" in said


def test_no_training_image_is_decoded_to_measure(run, pets, capsys):
    first, _ = measured(capsys)
    for name in Run.open(run).config.files.train:
        (pets / name).write_bytes(b"no picture")
    assert numbers(measured(capsys)[0]) == numbers(first)
    assert "cannot be read" in call(capsys, "evaluate", "run", "--split", "train").error


def test_a_single_image_a_class_can_be_measured(run, pets, capsys):
    fill(pets.parent / "few", cat=1, dog=1)
    for path in (pets.parent / "few").rglob("*.png"):
        path.rename(path.with_name("new.png"))
    assert measured(capsys, "--data", "few")[0]["total"] == 2


@pytest.mark.parametrize("command", ["evaluate", "recalibrate", "export", "explain"])
def test_unreadable_images_are_left_out_by_every_command_that_says_so(command, run, pets, capsys):
    files = Run.open(run).config.files
    (pets / files.test[0]).write_bytes(b"no picture")
    words = [command, "run", *(["net.onnx"] if command == "export" else [])]
    assert "--skip-unreadable" in call(capsys, *words).error
    answer = call(capsys, *words, "--skip-unreadable")
    assert answer.code == 0, answer.err
    assert f"skipped as unreadable: {files.test[0]}" in answer.out


def test_a_comparison_leaves_unreadable_images_out_too(pets, capsys):
    few = fill(pets.parent / "few", cat=6, dog=6)
    (few / "cat" / "000.png").write_bytes(b"no picture")
    assert "--skip-unreadable" in call(capsys, "compare", "--data", "few").error
    answer = call(capsys, "compare", "--data", "few", "--skip-unreadable")
    assert "skipped as unreadable: cat/000.png" in answer.out
    assert "but a comparison holds a tenth of them out" in answer.error  # read, and found too few
