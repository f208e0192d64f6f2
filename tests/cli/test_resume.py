"""A run goes on elsewhere or for more epochs, and a training begins with weights."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from folder_helpers import fill
from gammabeta import Net
from gammabeta.training.run import Run
from gammabeta.training.trainer import StoppedError, Trainer
from gammabeta.training.weights import load_weights
from training_helpers import call, digits, make_run, untimed

PETS = ("train", "--data", "pets", "--image-size", 8, "--batch-size", 4, "--threads", 1,
        "--precision", "fp32")  # fmt: skip
DIGITS = ("train", "--data", "digits", "--image-size", 8, "--batch-size", 256, "--threads", 1,
          "--precision", "fp32")  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def stopped(tmp_path, capsys):
    """A training on a folder that was stopped in its second epoch, beside one that was not."""
    fill(tmp_path / "pets", cat=12, dog=12)
    assert call(capsys, *PETS, "--epochs", 2, "--out", "whole").code == 0
    whole = Run.open(tmp_path / "whole")
    run = Run.create(tmp_path / "stopped", whole.config)
    steps = iter([0] * 7 + [15])
    with pytest.raises(StoppedError):
        Trainer(run, whole.config.load_data(), stop_requested=lambda: next(steps)).fit()
    return run


def model_of(name):
    return load_weights(Run.open(name).model)


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_goes_on_where_its_folder_is_now(stopped, tmp_path, capsys):
    (tmp_path / "pets").rename(tmp_path / "moved")
    for words in (("train", "--resume"), ("evaluate",), ("recalibrate",), ("explain",)):
        error = call(capsys, *words, "stopped").error
        assert "if the images of stopped were moved, name their new place with --data" in error
    assert call(capsys, "train", "--resume", "stopped", "--data", "moved").code == 0
    assert_same(model_of(tmp_path / "stopped"), model_of(tmp_path / "whole"))
    assert call(capsys, "evaluate", "stopped").code == 0  # the run knows the place from now on
    assert Run.open(tmp_path / "stopped").config.data == str(tmp_path / "moved")


def test_other_images_are_no_place_to_go_on(stopped, tmp_path, capsys):
    fill(tmp_path / "other", cat=3, dog=3)
    before = (stopped.path / "config.json").read_bytes()
    call(capsys, "train", "--resume", "stopped", "--data", "other").error  # noqa: B018 asserts
    assert (stopped.path / "config.json").read_bytes() == before


def test_a_run_of_another_machine_goes_on_here(stopped, tmp_path, capsys):
    on_cuda = dataclasses.replace(stopped.config, device="cuda", threads=2)
    Run(stopped.path, on_cuda).save_config()
    if not torch.cuda.is_available():
        error = call(capsys, "train", "--resume", "stopped").error
        assert "torch sees no CUDA device; use --device cpu" in error
    answer = call(capsys, "train", "--resume", "stopped", "--device", "cpu", "--threads", 1)
    assert answer.code == 0
    assert "device cpu in place of cuda: the last bits may differ" in answer.out
    assert "threads 1 in place of 2" in answer.out
    assert_same(model_of(tmp_path / "stopped"), model_of(tmp_path / "whole"))
    config = Run.open(tmp_path / "stopped").config
    assert (config.device, config.threads) == ("cpu", 1)


def test_a_run_measured_elsewhere_keeps_its_new_place(stopped, tmp_path, capsys):
    (tmp_path / "pets").rename(tmp_path / "moved")
    assert "pets" in call(capsys, "recalibrate", "whole").error
    document = call(capsys, "recalibrate", "whole", "--data", "moved", "--json").document
    assert call(capsys, "evaluate", document["run"]).code == 0


@pytest.mark.parametrize(
    ("recipe", "says"),
    [("anneal", "the learning rate goes on at"), ("tutorial", "goes on at 0.1, as before")],
)
def test_a_complete_run_is_made_longer_and_its_rates_are_said(recipe, says, tmp_path, capsys):
    assert call(capsys, *DIGITS, "--recipe", recipe, "--epochs", 2, "--out", "run").code == 0
    answer = call(capsys, "train", "--resume", "run", "--epochs", 5)
    assert answer.code == 0
    assert "5 epochs in place of 2: the schedule is laid over all 5" in answer.out
    assert says in answer.out
    run = Run.open(tmp_path / "run")
    assert run.config.recipe.epochs == 5
    epochs = [r for r in untimed(run.metrics) if r["kind"] == "epoch"]
    assert [r["epoch"] for r in epochs] == [1, 2, 3, 4, 5]
    steps = epochs[-1]["step"]
    for record in epochs[2:]:
        rate = run.config.recipe.learning_rate(record["step"] - 1, steps)
        assert record["lr"] == pytest.approx(rate)
    first = run.config.recipe.learning_rate(epochs[1]["step"], steps)
    assert f"{first:.3g}" in answer.out
    assert "is complete (5 of 5 epochs)" in call(capsys, "train", "--resume", "run").error


def test_fewer_epochs_than_were_trained_change_nothing(tmp_path, capsys):
    assert call(capsys, *DIGITS, "--epochs", 2, "--out", "run").code == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    call(capsys, "train", "--resume", "run", "--epochs", 1).error  # noqa: B018 asserts
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before


def test_a_training_begins_with_the_weights_of_a_file(tmp_path, capsys):
    torch.manual_seed(5)
    begun = Net(10, 8)
    torch.save({"net": {f"module.{k}": v for k, v in begun.state_dict().items()}}, "begun.pth")
    lr = ("--lr", 1e-30, "--weight-decay", 0)  # so small that hardly a weight moves
    answer = call(capsys, *DIGITS, *lr, "--epochs", 1, "--init", "begun.pth", "--out", "run")
    assert answer.code == 0
    assert "the prefix 'module.' of its keys is left out" in answer.out
    trained = model_of(tmp_path / "run")
    for key, value in begun.state_dict().items():
        if "running" not in key and "tracked" not in key:
            torch.testing.assert_close(trained[key], value, rtol=0, atol=1e-20)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["init"] == str(
        tmp_path / "begun.pth"
    )


def test_the_last_layer_begins_anew_for_other_classes(tmp_path, capsys):
    fill(tmp_path / "pets", cat=12, dog=12)
    torch.save(Net(10, 8).state_dict(), "ten.pth")
    answer = call(capsys, *PETS, "--epochs", 1, "--init", "ten.pth", "--out", "run")
    assert answer.code == 0
    assert "fc2.weight, fc2.bias begin anew: the file has them for other classes" in answer.out


@pytest.mark.parametrize("kind", ["absent", "another size", "NaN"])
def test_weights_that_cannot_be_begun_with_leave_no_run(kind, tmp_path, capsys):
    weights = Net(10, 16 if kind == "another size" else 8).state_dict()
    if kind == "NaN":
        weights["fc2.bias"][:] = float("nan")
    if kind != "absent":
        torch.save(weights, "w.pth")
    error = call(capsys, *DIGITS, "--epochs", 1, "--init", "w.pth", "--out", "run").error
    says = {"absent": "no such file", "another size": "fc1.weight has shape", "NaN": "is NaN"}
    assert f"w.pth: {'does not fit Net: ' if 'size' in kind else ''}" in error
    assert says[kind] in error
    assert not (tmp_path / "run").exists()


def test_a_run_that_saved_nothing_yet_begins_again_with_its_weights(tmp_path):
    net = Net(10, 8)
    torch.save(net.state_dict(), "w.pth")
    run = make_run(tmp_path / "run", digits(), epochs=1)
    run = Run(run.path, dataclasses.replace(run.config, init=str(tmp_path / "w.pth")))
    trainer = Trainer(run, digits(), resume=True)
    assert_same(trainer.model.state_dict(), net.state_dict())
