"""``gammabeta evaluate``: the same numbers as the training's end, for any kind of checkpoint."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from gammabeta import Net
from gammabeta.training.evaluate import evaluate
from gammabeta.training.weights import load_weights
from training_helpers import call, digits, reconfigure, trained_run


@pytest.fixture
def run(tmp_path, tmp_path_factory, monkeypatch):
    """A copy of the trained run, named by a relative path as a user would."""
    shutil.copytree(trained_run(tmp_path_factory.getbasetemp()).path, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def test_json_is_one_document_with_the_numbers_of_the_library(run, capsys, tmp_path_factory):
    answer = call(capsys, "evaluate", "run", "--json", "--verbose")
    assert answer.code == 0
    model = trained_run(tmp_path_factory.getbasetemp()).load_model()
    expected = evaluate(model, digits(16).test, digits(16).normalization)
    document = answer.document
    assert document["confusion"] == expected.confusion.tolist()
    assert document["class_accuracy"] == expected.class_accuracy
    assert (document["correct"], document["total"]) == (expected.correct, 360)
    assert document["loss"] == pytest.approx(expected.loss)
    assert document["classes"] == list("0123456789")
    assert "Accuracy of run on the 360 test images" in answer.err
    assert answer.err.startswith("runtime: torch")


def test_the_counts_are_those_that_the_training_ended_with(run, capsys):
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    document = call(capsys, "evaluate", "run", "--json").document
    assert document["accuracy"] == last["test_accuracy"]
    assert document["loss"] == pytest.approx(last["test_loss"], rel=1e-5)


def test_people_see_a_row_for_each_class_and_the_picture(run, capsys):
    answer = call(capsys, "evaluate", "run")
    rows = [line.split() for line in answer.out.splitlines()]
    document = call(capsys, "evaluate", "run", "--json").document
    for i, share in enumerate(document["class_accuracy"]):
        assert [str(i), f"{100 * share:.1f}", "%"] in [row[:3] for row in rows]
    assert "confusion matrix: run/confusion.png" in answer.out
    with Image.open(run / "confusion.png") as image:
        assert image.format == "PNG"


def test_nothing_but_the_picture_is_written(run, capsys):
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    assert call(capsys, "evaluate", "run", "--confusion", "elsewhere.png").code == 0
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before
    assert (run.parent / "elsewhere.png").exists()


@pytest.mark.parametrize("kind", ["state_dict", "wrapped", "module.", "safetensors", "state.pt"])
def test_a_checkpoint_of_any_kind_counts_the_same(kind, run, capsys):
    weights = load_weights(run / "model.safetensors")
    file = "run/state.pt" if kind == "state.pt" else "tutorial.pth"
    if kind == "safetensors":
        file = "other.safetensors"
        save_file(weights, file)
    elif kind != "state.pt":
        wrap = {"wrapped": {"state_dict": weights, "epoch": 3},
                "module.": {f"module.{k}": v for k, v in weights.items()}}  # fmt: skip
        torch.save(wrap.get(kind, weights), file)
    expected = call(capsys, "evaluate", "run", "--json").document
    document = call(capsys, "evaluate", "run", "--weights", file, "--json").document
    assert (document["run"], document["confusion"]) == (file, expected["confusion"])


def test_the_tutorials_checkpoint_is_measured_without_a_run(run, capsys):
    torch.manual_seed(0)
    net = Net()
    torch.save(net.state_dict(), "tutorial.pth")
    answer = call(capsys, "evaluate", "--weights", "tutorial.pth", "--data", "digits", "--json")
    expected = evaluate(net, digits(32).test, digits(32).normalization)
    assert answer.document["confusion"] == expected.confusion.tolist()
    assert not list(run.parent.glob("*.png"))


def test_weights_of_another_shape_are_named(run, capsys):
    torch.save(Net(7, 16).state_dict(), "seven.pth")
    error = call(capsys, "evaluate", "run", "--weights", "seven.pth").error
    assert (
        "seven.pth: does not fit Net: fc2.weight has shape (7, 1024), expected (10, 1024)" in error
    )


def test_a_run_of_another_size_than_32_needs_its_run_named(run, capsys):
    error = call(capsys, "evaluate", "--weights", "run/model.safetensors", "--data", "digits").error
    assert "fc1.weight has shape (1024, 1024), expected (1024, 4096)" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to evaluate"),
        (["absent"], "absent: is not a run"),
        (["run", "--weights", "absent.pth"], "absent.pth: no such file"),
        (["run", "--weights", "garbage.pth"], "garbage.pth: is "),
        (["run", "--data", "absent"], "absent"),
        (["run", "--confusion", "garbage.pth/x.png"], "garbage.pth/x.png: cannot be written"),
        (["run", "--confusion", "absent/x.png"], "absent/x.png: cannot be written"),
        (["run", "--confusion", "run"], "run: cannot be written"),
        (["run", "--confusion", "."], "cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_measured_is_refused_in_one_line(words, message, run, capsys):
    (run.parent / "garbage.pth").write_bytes(b"no weights")
    answer = call(capsys, "evaluate", *words)
    assert message in answer.error


def test_data_of_other_classes_are_refused(run, capsys):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (run.parent / "photos" / part / name).mkdir(parents=True)
            Image.new("RGB", (9, 9)).save(run.parent / "photos" / part / name / "1.png")
    error = call(capsys, "evaluate", "run", "--data", "photos").error
    assert "photos has the classes cat, dog, but run was trained on 0, 1" in error


def test_a_prefix_that_is_left_out_is_said(run, capsys):
    weights = load_weights(run / "model.safetensors")
    torch.save({"net": {f"_orig_mod.{k}": v for k, v in weights.items()}}, "compiled.pth")
    answer = call(capsys, "evaluate", "run", "--weights", "compiled.pth", "--json")
    assert (
        answer.document["confusion"]
        == call(capsys, "evaluate", "run", "--json").document["confusion"]
    )
    assert "the prefix '_orig_mod.' of its keys is left out" in answer.err


def test_how_the_data_were_loaded_is_said(run, capsys):
    assert (
        "1437 training and 360 test images in a fixed split" in call(capsys, "evaluate", "run").out
    )


@pytest.mark.parametrize(
    ("key", "says"),
    [("fc2.bias", "fc2.bias is NaN or infinite in 10 of 10 values; take an earlier checkpoint"),
     ("bn2.running_var", "bn2.running_var is NaN or infinite in 128 of 128 values; the weights are "
      "whole: `gammabeta recalibrate`")],
)  # fmt: skip
@pytest.mark.parametrize("place", ["the run", "a checkpoint"])
def test_a_model_that_can_only_compute_nan_is_refused_by_name(place, key, says, run, capsys):
    weights = load_weights(run / "model.safetensors")
    weights[key] += np.nan
    file = "run/model.safetensors" if place == "the run" else "nan.safetensors"
    save_file(weights, file)
    more = [] if place == "the run" else ["--weights", file]
    assert f"{file}: {says}" in call(capsys, "evaluate", "run", *more, "--json").error


def test_finite_weights_that_overflow_are_an_error_and_no_number(run, capsys):
    weights = load_weights(run / "model.safetensors")
    weights["bn4.weight"] += 3e38
    weights["fc2.weight"] += 3e38
    torch.save(weights, "large.pth")
    answer = call(capsys, "evaluate", "run", "--weights", "large.pth", "--json")
    assert "large.pth: computes NaN or infinity on digits" in answer.error
    assert answer.out == ""


@pytest.mark.parametrize(
    "words",
    [["evaluate"], ["predict", "0.png"], ["export", "x.onnx"], ["recalibrate"], ["explain"]],
    ids=lambda words: words[0],
)
def test_a_checkpoint_in_the_place_of_a_run_is_answered_with_the_option(words, run, capsys):
    torch.save(load_weights(run / "model.safetensors"), "net.pth")
    command, *more = words
    error = call(capsys, command, "net.pth", *more).error
    assert "net.pth: is a file, but a run is a folder" in error
    assert "--weights net.pth" in error


def test_a_path_that_looks_like_markup_is_printed_as_it_is(run, capsys):
    (run.parent / "[b]run[").mkdir()
    run.rename("[b]run[/b]")
    answer = call(capsys, "evaluate", "[b]run[/b]")
    assert "Accuracy of [b]run[/b] on the 360" in answer.out


def test_class_names_that_look_like_markup_are_printed_as_they_are(run, capsys):
    for part in ("train", "test"):
        for name in "ab":
            folder = run.parent / "photos" / part / f"[{name}]"
            folder.mkdir(parents=True)
            Image.new("RGB", (9, 9)).save(folder / "1.png")
    reconfigure(run, classes=("[a]", "[b]"), data=str(run.parent / "photos"))
    torch.save(Net(2, 16).state_dict(), "two.pth")
    out = call(capsys, "evaluate", "run", "--weights", "two.pth").out
    assert "[a]" in out
    assert "[b]" in out
