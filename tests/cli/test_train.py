"""``gammabeta train``: what it prints where, what it refuses, and what it leaves behind."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from gammabeta.training.checkpoint import save_state
from training_helpers import call, make_run, reconfigure, run_program, small, start

QUICK = ("train", "--data", "digits", "--image-size", "8", "--epochs", "1", "--batch-size", "512",
         "--threads", "1", "--precision", "fp32")  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    folder = tmp_path_factory.mktemp("complete")
    done = run_program(*QUICK, "--batch-size", "14", "--lr", "0.02", "--json", "--verbose",
                       "--tensorboard", "--out", "run", cwd=folder)  # fmt: skip
    return folder / "run", done


def test_json_is_one_document_on_stdout_and_the_rest_is_on_stderr(complete):
    _, done = complete
    assert done.code == 0
    assert done.out.startswith("{\n")
    document = done.document
    assert document["total"] == 360
    assert document["accuracy"] == document["correct"] / 360
    assert document["best_accuracy"] >= document["accuracy"] > 0.1
    assert (document["run"], document["best_epoch"], document["epochs"]) == ("run", 1, 1)
    assert (document["precision"], document["threads"], document["seed"]) == ("fp32", 1, 0)
    assert document["images_per_second"] > 0
    assert document["peak_memory_bytes"] > 50e6


def test_the_tutorials_lines_are_printed_where_there_is_no_terminal(complete):
    _, done = complete
    lines = done.err.splitlines()
    recorded = [json.loads(s) for s in (complete[0] / "metrics.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in recorded if r["kind"] == "step"]
    assert [s for s in lines if s.startswith("[")] == [f"[1,   100] loss: {losses[0]:.3f}"]
    percent = f"{100 * done.document['accuracy']:.0f}"
    assert f"Accuracy of the network on the 360 test images: {percent} %" in lines
    assert "\x1b" not in done.err
    assert lines[0].startswith("runtime: torch ")


def test_a_run_holds_all_its_files(complete):
    names = {p.name for p in complete[0].iterdir()}
    assert names == {"config.json", "metrics.jsonl", "model.safetensors", "state.pt", "curves.png",
                     "previous.pt", "tensorboard"}  # fmt: skip


def test_without_json_everything_for_people_is_on_stdout(capsys):
    answer = call(capsys, *QUICK)
    assert (answer.code, answer.err) == (0, "")
    assert "saved in runs/digits-anneal-1" in answer.out
    assert "gammabeta evaluate runs/digits-anneal-1\n" in answer.out


def test_the_next_run_gets_the_next_number_and_its_recipes_name(capsys):
    for name in ("digits-tutorial-1", "digits-tutorial-2"):
        answer = call(capsys, *QUICK, "--recipe", "tutorial", "--json")
        assert answer.document["run"] == f"runs/{name}"


def test_options_win_over_the_file(capsys, tmp_path):
    (tmp_path / "my.toml").write_text('recipe = "tutorial"\nlr = 0.3\nseed = 5\nbatch-size = 700\n')
    assert call(capsys, *QUICK, "--config", "my.toml", "--lr", "0.01", "--out", "run").code == 0
    recipe = json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]
    expected = {"name": "tutorial", "lr": 0.01, "seed": 5, "batch_size": 512, "epochs": 1}
    assert recipe.items() >= expected.items()


def test_an_existing_run_is_not_overwritten(capsys, complete, tmp_path):
    shutil.copytree(complete[0], "run")
    before = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    answer = call(capsys, *QUICK, "--out", "run")
    assert (
        "run: already exists and is not overwritten; continue it with --resume run" in answer.error
    )
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--lr", "0.1"], "--lr"),
        (["--epochs", "9", "--batch-size", "8"], "--batch-size"),
        (["--seed", "0"], "--seed"),  # also where it is the default
        (["--out", "x"], "--out"),
        (["--init", "x.pth"], "--init"),
        (["--recipe", "tutorial"], "--recipe"),
        (["--config", "x.toml"], "--config"),
        (["--precision", "fp32", "--momentum", "0"], "--momentum, --precision"),
        (["--image-size", "32"], "--image-size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_resume_refuses_what_would_change_the_run_by_name(more, named, capsys, complete):
    answer = call(capsys, "train", "--resume", complete[0], *more)
    assert "--resume continues a run as it was configured; leave out" in answer.error
    for flag in named.split(", "):
        assert flag in answer.error.split("leave out")[1]


def test_a_complete_run_is_not_resumed(capsys, complete):
    answer = call(capsys, "train", "--resume", complete[0], "--json", "--verbose")
    assert "is complete (1 of 1 epochs)" in answer.error
    assert answer.out == ""


@pytest.mark.parametrize("kind", ["absent", "empty folder", "a file"])
def test_a_missing_run_is_refused(kind, capsys, tmp_path):
    if kind == "empty folder":
        (tmp_path / "run").mkdir()
    elif kind == "a file":
        (tmp_path / "run").write_text("")
    says = "run: is a file, but a run is a folder; if it holds weights, name it with --init run"
    error = call(capsys, "train", "--resume", "run").error
    assert (says if kind == "a file" else "run: is not a run: ") in error


def test_a_damaged_state_is_refused(capsys, complete):
    shutil.copytree(complete[0], "run")
    with open("run/state.pt", "r+b") as file:  # noqa: PTH123
        file.truncate(10_000)
    assert "run/state.pt: is damaged, cut off" in call(capsys, "train", "--resume", "run").error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lr", "0"], "lr is 0.0, but must be above 0"),
        (["--lr", "nan"], "lr is nan"),
        (["--epochs", "0"], "epochs is 0"),
        (["--batch-size", "1"], "batch_size is 1, but must be at least 2"),
        (["--momentum", "1"], "momentum is 1.0"),
        (["--label-smoothing", "1.5"], "label_smoothing is 1.5"),
        (["--seed", "-1"], "seed is -1"),
        (["--recipe", "fast"], "recipe is 'fast', but must be anneal or tutorial"),
        (["--config", "absent.toml"], "absent.toml: cannot be read"),
        (["--precision", "fp16"], "precision is 'fp16'"),
        (["--device", "tpu"], "device is 'tpu'"),
        (["--image-size", "30"], "must be a positive multiple of 8"),
        (["--image-size", "0"], "must be a positive multiple of 8"),
        (["--data", "cifar11"], "cifar11"),
        (["--out", "file/run"], "file/run: cannot be made into a run folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_value_is_one_line_and_leaves_no_run(options, message, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    answer = call(capsys, *QUICK, *options)
    assert message in answer.error
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_made_is_refused_before_data_is_read(capsys, tmp_path):
    (tmp_path / "runs").write_text("in the way of every default")
    answer = call(capsys, *QUICK)
    assert "runs: cannot be made into a run folder: Not a directory" in answer.error
    assert answer.out == ""


def test_tensorboard_that_is_missing_is_said_before_data_is_read(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    answer = call(capsys, *QUICK, "--tensorboard")
    assert "tensorboard is not installed; pip install '.[tensorboard]' in a clone" in answer.error
    assert answer.out == ""


def test_an_unknown_data_name_is_answered_with_the_known_ones(capsys):
    error = call(capsys, "train", "--data", "digit").error
    assert "cifar10" in error
    assert "digits" in error


def test_cifar10_without_a_network_points_to_digits(capsys, tmp_path, monkeypatch):
    for name in (
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    (tmp_path / "data").mkdir()
    error = call(capsys, "train", "--root", "data").error
    assert "--data digits" in error
    assert not (tmp_path / "runs").exists()


def test_momentum_zero_is_a_plain_sgd(capsys):
    assert call(capsys, *QUICK, "--momentum", "0", "--weight-decay", "0").code == 0


def test_a_loss_that_explodes_is_one_line(capsys, tmp_path):
    error = call(capsys, *QUICK, "--lr", "1e30", "--out", "run").error
    assert "at step 2 (epoch 1, batch 2)" in error
    assert call(capsys, "evaluate", "run").code == 0


def test_a_training_whose_measured_loss_is_not_finite_is_no_traceback(capsys):
    call(capsys, *QUICK, "--batch-size", "1437", "--lr", "1e15", "--json").error  # noqa: B018 - asserts


def picture_folder(folder, classes):
    random = np.random.default_rng(0)
    for name in classes:
        for part, count in (("train", 6), ("test", 2)):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                image = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
                image.save(folder / part / name / f"{i}.png")


FOLDER = ("train", "--data", "photos", "--image-size", "8", "--epochs", "2", "--batch-size", "4",
          "--threads", "1")  # fmt: skip


def test_own_pictures_are_trained_on_and_measured(capsys, tmp_path):
    picture_folder(tmp_path / "photos", ["cat", "dog"])
    answer = call(capsys, *FOLDER, "--json")
    assert answer.document["run"] == "runs/photos-anneal-1"
    measured = call(capsys, "evaluate", "runs/photos-anneal-1", "--json").document
    assert measured["classes"] == ["cat", "dog"]
    assert measured["correct"] == answer.document["correct"]


def stopped_on_pictures(folder):
    """A run on photos/, stopped before its first step."""
    picture_folder(folder / "photos", ["cat", "dog"])
    run = make_run(folder / "run", small(), epochs=2, batch_size=4)
    reconfigure(run.path, data=str(folder / "photos"), classes=("cat", "dog"))
    run = type(run).open(run.path)
    start(run, run.config.load_data())
    return run


def test_pictures_that_came_or_went_since_are_not_resumed_on(capsys, tmp_path):
    stopped_on_pictures(tmp_path)
    picture_folder(tmp_path / "photos", ["cat", "dog", "emu"])
    assert "emu" in call(capsys, "train", "--resume", "run").error


def test_a_resumed_run_on_pictures_completes(capsys, tmp_path):
    run = stopped_on_pictures(tmp_path)
    assert call(capsys, "train", "--resume", "run").code == 0
    with pytest.raises(Exception, match="complete"):
        start(run, run.config.load_data(), resume=True)


def test_a_state_of_another_run_is_refused(capsys, complete, tmp_path):
    stopped_on_pictures(tmp_path)
    shutil.copy(complete[0] / "state.pt", tmp_path / "run" / "state.pt")
    assert "state.pt: does not continue this run" in call(capsys, "train", "--resume", "run").error
    save_state(tmp_path / "run" / "state.pt", {})
    assert (
        "state.pt: is damaged or of another version: position is missing"
        in call(capsys, "train", "--resume", "run").error
    )


def test_a_path_that_looks_like_markup_is_printed_as_it_is(capsys):
    answer = call(capsys, *QUICK, "--out", "[red]run[/red] [/oops]")
    assert answer.code == 0
    assert "saved in [red]run[/red] [/oops]" in answer.out


def test_a_long_path_is_printed_in_one_piece(capsys):
    path = "/".join(["a-rather-long-name-of-a-folder"] * 5)
    assert f"saved in {path}\n" in call(capsys, *QUICK, "--out", path).out
