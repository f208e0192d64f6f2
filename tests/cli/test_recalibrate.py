"""``gammabeta recalibrate``: a new run with exact statistics, and the old one as it was."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
import torch
from safetensors.torch import save_file

from gammabeta.training.run import Run
from gammabeta.training.weights import load_weights
from training_helpers import PROGRAM, call, trained_run


@pytest.fixture
def run(tmp_path, tmp_path_factory, monkeypatch):
    """A copy of the trained run, named by a relative path as a user would."""
    shutil.copytree(trained_run(tmp_path_factory.getbasetemp()).path, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_the_new_run_has_exact_statistics_and_the_old_one_stays(run, capsys):
    before = contents(run)
    answer = call(capsys, "recalibrate", "run", "--json")
    assert answer.code == 0
    assert contents(run) == before
    document = answer.document
    assert (document["run"], document["source"]) == ("run-recalibrated-1", "run")
    old, new = (load_weights(run.parent / f / "model.safetensors")
                for f in ("run", "run-recalibrated-1"))  # fmt: skip
    changed = {key for key in old if not torch.equal(old[key], new[key])}
    assert changed == {f"bn{i}.running_{s}" for i in range(1, 5) for s in ("mean", "var")}
    for layer in document["layers"]:
        key = f"{layer['layer']}.running_mean"
        torch.testing.assert_close(new[key].double(), torch.tensor(layer["mean"]).double())
        torch.testing.assert_close(old[key].double(), torch.tensor(layer["old_mean"]).double())


def test_the_accuracies_are_those_that_evaluate_measures(run, capsys):
    document = call(capsys, "recalibrate", "run", "--samples", "300", "--json").document
    assert document["samples"] == 300
    for name, folder in (("accuracy_before", "run"), ("accuracy", "run-recalibrated-1")):
        measured = call(capsys, "evaluate", folder, "--json").document
        assert document[name] == measured["accuracy"]


def test_the_batch_size_changes_nothing_but_rounding(run, capsys):
    means = []
    for size in ("7", "100"):
        args = ("recalibrate", "run", "--samples", "200", "--batch-size", size, "--json")
        done = call(capsys, *args)
        means.append([layer["mean"] for layer in done.document["layers"]])
    for small, large in zip(*means, strict=True):
        torch.testing.assert_close(torch.tensor(small), torch.tensor(large), rtol=1e-4, atol=1e-5)


def test_people_see_each_layer_and_what_came_of_it(run, capsys):
    answer = call(capsys, "recalibrate", "run", "--one-pass", "--out", "exact")
    lines = answer.out.splitlines()
    assert [line.split()[0] for line in lines if " se " in line and "σ" in line][:4] == [
        "bn1", "bn2", "bn3", "bn4",
    ]  # fmt: skip
    assert "% before, " in answer.out
    assert "saved in exact" in answer.out
    assert "sequential=True has no such noise" in answer.out


def test_a_run_is_never_overwritten(run, capsys):
    before = contents(run)
    answer = call(capsys, "recalibrate", "run", "--out", "run")
    assert answer.code == 2
    assert "already exists and is not overwritten; choose another --out" in answer.err
    assert contents(run) == before
    assert call(capsys, "recalibrate", "run", "--samples", "100").code == 0
    document = call(capsys, "recalibrate", "run", "--samples", "100", "--json").document
    assert document["run"] == "run-recalibrated-2"


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_measured(run, capsys):
    answer = call(capsys, "recalibrate", "run", "--out", "run/config.json/copy")
    assert "run/config.json/copy: cannot be made into a run folder: Not a directory" in answer.error
    assert (answer.out, len(answer.err.splitlines())) == ("", 1)


@pytest.mark.parametrize("step", ["save_model", "shutil.copyfile", "refuse_occupied"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_failure_while_saving_leaves_nothing(run, tmp_path, monkeypatch, step, error):
    def fail(*_, **__):
        raise error

    opened = Run.open(run)
    monkeypatch.setattr(f"gammabeta.training.run.{step}", fail)
    with pytest.raises((Exception, KeyboardInterrupt)):
        opened.copy_with(tmp_path / "new", opened.load_model(), {})
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_copy_cannot_be_trained_further_and_says_so(run, capsys):
    call(capsys, "recalibrate", "run", "--samples", "100", "--out", "copy")
    answer = call(capsys, "train", "--resume", "copy")
    assert answer.code == 2
    assert "no training to continue; resume the run that it was made from" in answer.err


def test_the_saved_report_is_the_printed_one(run, capsys):
    document = call(capsys, "recalibrate", "run", "--samples", "100", "--json").document
    saved = json.loads((run.parent / document["run"] / "recalibration.json").read_text())
    assert saved == document


@pytest.mark.parametrize("way", ["--sequential", "--one-pass"])
def test_statistics_that_were_nan_are_healed_and_it_is_said(way, run, capsys):
    weights = load_weights(run / "model.safetensors")
    words = ("recalibrate", "run", "--samples", "300", way)
    expected = call(capsys, *words, "--json").document
    weights["bn2.running_var"][3] = float("nan")
    weights["bn3.running_mean"][:] = float("inf")
    save_file(weights, run / "model.safetensors")
    answer = call(capsys, *words)
    assert answer.code == 0
    assert "bn2, bn3: running statistics were NaN or infinite, and are whole now" in answer.out
    assert re.search(r"accuracy on the 360 test images: none before, \d+", answer.out)
    document = call(capsys, *words, "--json").document
    assert document["accuracy_before"] is document["loss_before"] is None
    assert document["accuracy"] == expected["accuracy"]
    saved = (run.parent / document["run"] / "recalibration.json").read_text()
    assert json.loads(saved, parse_constant=pytest.fail) == document
    assert call(capsys, "evaluate", document["run"]).code == 0


def test_weights_that_are_nan_cannot_be_healed(run, capsys):
    weights = load_weights(run / "model.safetensors")
    weights["conv2.weight"][0] = float("nan")
    save_file(weights, run / "model.safetensors")
    error = call(capsys, "recalibrate", "run").error
    assert "run/model.safetensors: conv2.weight is NaN or infinite in 576 of 73728 values" in error
    assert sorted(p.name for p in run.parent.iterdir()) == ["run"]


def test_averaged_weights_get_their_statistics(run, capsys):
    weights = load_weights(run / "model.safetensors")
    half = {k: v / 2 if k == "fc2.bias" else v for k, v in weights.items()}
    torch.save(
        {"n_averaged": torch.tensor(2)} | {f"module.{k}": v for k, v in half.items()}, "swa.pth"
    )
    answer = call(
        capsys, "recalibrate", "run", "--weights", "swa.pth", "--samples", "100", "--json"
    )
    assert answer.document["source"] == "swa.pth"
    new = load_weights(run.parent / answer.document["run"] / "model.safetensors")
    assert torch.equal(new["fc2.bias"], weights["fc2.bias"] / 2)


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    answer = call(capsys, "recalibrate", str(tmp_path))
    assert answer.code == 2
    assert "is not a run" in answer.err


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_killed_leaves_nothing(run, tmp_path, kill):
    command = [*PROGRAM, "recalibrate", "run", "--batch-size", "2", "--threads", "1"]
    before, scratch = contents(run), tmp_path / "scratch"
    scratch.mkdir()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(scratch)}
    ) as process:
        assert "training and" in process.stdout.readline()  # the data are read
        time.sleep(1)
        assert process.poll() is None, "it was done before it could be killed"
        process.send_signal(kill)
    assert process.returncode not in {0, None}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "scratch"]
    assert list(scratch.iterdir()) == []
    assert contents(run) == before
