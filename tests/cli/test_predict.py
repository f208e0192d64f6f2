"""``gammabeta predict``: every file has its answer, in order, and a bad one its error."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import termios

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from gammabeta import Net
from gammabeta.data.cifar_files import CLASSES
from gammabeta.training.weights import load_weights
from training_helpers import PROGRAM, call, digits, environment, trained_run


@pytest.fixture
def run(tmp_path, tmp_path_factory, monkeypatch):
    """A copy of the trained run, beside two pictures, in the current folder."""
    shutil.copytree(trained_run(tmp_path_factory.getbasetemp()).path, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    for i in range(2):
        Image.fromarray(digits(16).test.images[i]).save(f"{i}.png")
    return tmp_path / "run"


def test_people_see_each_file_with_its_classes(run, capsys):
    answer = call(capsys, "predict", "run", "1.png", "0.png", "--top", "2")
    assert (answer.code, answer.err) == (0, "")
    rows = [line.split() for line in answer.out.splitlines()][1:]
    assert [row[0] for row in rows if len(row) == 4] == ["1.png", "0.png"]
    assert len(rows) == 4
    assert rows[0][1] == str(digits(16).test.labels[1])


def test_json_is_one_document_in_the_given_order(run, capsys):
    answer = call(capsys, "predict", "run", "1.png", "0.png", "--top", "10", "--json", "--verbose")
    document = answer.document
    assert [row["path"] for row in document["images"]] == ["1.png", "0.png"]
    for row in document["images"]:
        assert row.keys() == {"path", "predictions"}
        assert sum(p["probability"] for p in row["predictions"]) == pytest.approx(1)
    assert [row["predictions"][0]["class"] for row in document["images"]] == [
        str(digits(16).test.labels[i]) for i in (1, 0)
    ]


def test_an_unreadable_file_is_an_error_and_the_others_are_named(run, capsys):
    (run.parent / "text.png").write_text("no picture")
    words = ("predict", "run", "0.png", "text.png", "absent.png", "1.png")
    answer = call(capsys, *words, "--json")
    assert answer.code == 2
    rows = answer.document["images"]
    assert [row["path"] for row in rows] == list(words[2:])
    assert ["error" in row for row in rows] == [False, True, True, False]
    assert [len(row["predictions"]) for row in rows] == [3, 0, 0, 3]
    errors = [s for s in answer.err.splitlines() if s.startswith("gammabeta: error: ")]
    assert errors == [f"gammabeta: error: {row['error']}" for row in rows if "error" in row]
    plain = call(capsys, *words)
    assert plain.code == 2
    assert "0.png" in plain.out
    assert "1.png" in plain.out
    assert plain.err.splitlines() == errors


def test_a_folder_stands_for_its_pictures_and_an_empty_one_is_an_error(run, capsys):
    (run.parent / "photos" / "deep").mkdir(parents=True)
    shutil.copy("0.png", "photos/deep/b.png")
    shutil.copy("1.png", "photos/a.png")
    (run.parent / "empty").mkdir()
    answer = call(capsys, "predict", "run", "photos", "empty", "--json")
    assert answer.code == 2
    paths = [row["path"] for row in answer.document["images"]]
    assert paths == ["photos/a.png", "photos/deep/b.png", "empty"]
    assert "empty: holds no image file" in answer.err


@pytest.mark.parametrize("kind", ["absent", "no model", "no configuration"])
def test_a_run_that_is_none_is_refused(kind, run, capsys):
    if kind == "absent":
        shutil.rmtree(run)
    else:
        (run / {"no model": "model.safetensors", "no configuration": "config.json"}[kind]).unlink()
    answer = call(capsys, "predict", "run", "0.png")
    assert ("no such file" if kind == "no model" else "is not a run") in answer.error


@pytest.mark.parametrize("name", ["[red]x[/red].png", "[/oops].png", "a b.png", "猫.png"])
def test_any_file_name_is_printed_as_it_is(name, run, capsys):
    shutil.copy("0.png", run.parent / name.replace("/", "_"))
    shown = name.replace("/", "_")
    answer = call(capsys, "predict", "run", shown)
    assert answer.code == 0
    assert shown in answer.out


def test_a_path_with_a_closing_tag_is_no_crash(run, capsys):
    (run.parent / "[").mkdir()
    shutil.copy("0.png", run.parent / "[" / "x].png")
    answer = call(capsys, "predict", "run", "[/x].png")
    assert answer.code == 0
    assert "[/x].png" in answer.out


def test_a_long_path_is_printed_in_one_piece(run, capsys):
    folder = run.parent.joinpath(*["a-rather-long-name-of-a-folder"] * 4)
    folder.mkdir(parents=True)
    shutil.copy("0.png", folder / "x.png")
    assert str(folder / "x.png") in call(capsys, "predict", "run", folder).out


def on_a_terminal(*words, columns=80):
    """Run the program on a terminal so wide; return its lines."""
    terminal, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen([*PROGRAM, *words], stdout=inside, env=environment(TERM="xterm")) as call:
        os.close(inside)
        said = b""
        with contextlib.suppress(OSError):  # the other side is closed at the end
            while part := os.read(terminal, 4096):
                said += part
    os.close(terminal)
    assert call.returncode == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.decode()).splitlines()


def test_two_long_paths_never_look_the_same_on_a_terminal(run):
    names = [f"{'a-rather-long-name-of-a-folder' * 3}-{i}.png" for i in (1, 2)]
    for name in names:
        shutil.copy("0.png", name)
    lines = on_a_terminal("predict", "run", *names, "--top", "1")
    assert max(map(len, lines)) <= 80
    joined = "".join(line.split("  ")[0].strip() for line in lines)
    assert all(name in joined for name in names)


def test_a_name_that_is_not_utf8_is_no_traceback(run, capsys):
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy("0.png", name)
    answer = call(capsys, "predict", "run", name)
    assert answer.code == 0
    assert "caf\\xe9.png" in answer.out


def test_a_name_with_a_line_break_is_one_line_of_error(run, capsys):
    answer = call(capsys, "predict", "run", "no\nsuch.png")
    assert answer.code == 2
    assert len(answer.err.splitlines()) == 1


def test_weights_that_are_not_finite_are_an_error_that_names_them(run, capsys):
    weights = load_weights(run / "model.safetensors")
    weights["fc2.bias"] += float("nan")
    save_file(weights, run / "model.safetensors")
    error = call(capsys, "predict", "run", "0.png", "--json").error
    assert "run/model.safetensors: fc2.bias is NaN or infinite in 10 of 10 values" in error


def test_an_image_that_the_model_computes_nan_for_is_an_error_of_its_own(run, capsys):
    weights = load_weights(run / "model.safetensors")
    weights["bn4.weight"] += 3e38
    weights["fc2.weight"] += 3e38
    save_file(weights, run / "model.safetensors")
    answer = call(capsys, "predict", "run", "0.png", "--json")
    assert answer.document["images"] == [
        {"path": "0.png", "predictions": [], "error": "0.png: the model computes NaN for it"}
    ]
    assert "0.png: the model computes NaN for it" in answer.error


def test_a_checkpoint_names_images_with_the_runs_classes(run, capsys):
    weights = load_weights(run / "model.safetensors")
    torch.save({f"module.{k}": v for k, v in weights.items()}, "net.pth")
    answer = call(capsys, "predict", "run", "0.png", "--weights", "net.pth", "--json")
    expected = call(capsys, "predict", "run", "0.png", "--json").document
    assert answer.document == {**expected, "run": "net.pth"}
    assert "the prefix 'module.' of its keys is left out" in answer.err


def test_a_checkpoint_alone_is_taken_for_the_tutorials(run, capsys):
    torch.manual_seed(0)
    net = Net().eval()
    torch.save(net.state_dict(), "tutorial.pth")
    answer = call(capsys, "predict", "--weights", "tutorial.pth", "0.png", "1.png", "--json")
    assert [row["path"] for row in answer.document["images"]] == ["0.png", "1.png"]
    assert {p["class"] for p in answer.document["images"][0]["predictions"]} <= set(CLASSES)
    assert "those of CIFAR-10" in answer.err


def test_a_run_without_an_image_asks_for_one(run, capsys):
    assert "no image to name: add image files" in call(capsys, "predict", "run").error
