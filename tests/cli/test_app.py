"""The program answers at once, documents every option, and ends every error in one line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time

import pytest
import typer

import gammabeta
from gammabeta.cli.app import app
from gammabeta.cli.console import print_json
from training_helpers import PROGRAM, call, environment

COMMANDS = typer.main.get_command(app).commands


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")


def test_the_version_is_the_packages(capsys):
    answer = call(capsys, "--version")
    assert (answer.code, answer.out) == (0, f"gammabeta {gammabeta.__version__}\n")


def test_a_number_that_json_does_not_know_is_null(capsys):
    print_json({"loss": float("nan"), "ratios": [float("inf"), 1.5]})
    printed = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert printed == {"loss": None, "ratios": [None, 1.5]}


def test_help_lists_every_command(capsys):
    answer = call(capsys, "--help")
    assert (answer.code, answer.err) == (0, "")
    assert {"train", "evaluate", "predict"} <= set(answer.out.split())


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_a_commands_help_names_and_explains_every_option(command, flag, capsys):
    answer = call(capsys, command, flag)
    assert (answer.code, answer.err) == (0, "")
    assert "Examples:" in answer.out
    for parameter in COMMANDS[command].params:
        wanted = parameter.opts if parameter.param_type_name == "option" else [parameter.name]
        for name in wanted:
            assert re.search(rf"(?i)(?<![\w-]){re.escape(name)}(?![\w-])", answer.out), name
        assert parameter.help, f"{wanted} is not explained"


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_in_help_stand_on_lines_of_their_own(command, capsys):
    lines = call(capsys, command, "--help").out.splitlines()
    examples = [line for line in lines if line.strip().startswith("gammabeta ")]
    assert len(examples) >= 2
    assert all(line.count("gammabeta ") == 1 for line in examples)


def test_help_takes_no_time_and_no_torch(tmp_path):
    for words in (["--help"], ["train", "--help"], ["--version"]):
        before = os.times()
        began = time.monotonic()
        done = subprocess.run([*PROGRAM, *words], env=environment(PYTHONPROFILEIMPORTTIME="1"),
                              capture_output=True, text=True, check=True)  # fmt: skip
        after = os.times()
        assert time.monotonic() - began < 3
        assert after.children_user - before.children_user < 1.5
        assert not re.search(r"\| +(torch|numpy|sklearn|matplotlib)$", done.stderr, re.MULTILINE)


@pytest.mark.parametrize(
    "words",
    [["trian"], ["train", "--epoch", "3"], ["train", "--epochs", "three"],
     ["train", "--threads", "0"], ["predict"], ["predict", "run"], ["evaluate", "a", "b"],
     ["predict", "r", "x", "--top", "0"]],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_ends_with_status_2_and_an_empty_stdout(words, capsys):
    answer = call(capsys, *words)
    assert (answer.code, answer.out) == (2, "")
    assert "error" in answer.err.lower()
    assert "Traceback" not in answer.err


def test_a_misspelt_command_is_guessed(capsys):
    assert "train" in call(capsys, "trian").err.replace("trian", "")


def test_an_error_is_one_line_and_with_debug_a_traceback(tmp_path):
    words = ["evaluate", "nothing-here"]
    plain, debug = (
        subprocess.run([*PROGRAM, *words, *more], cwd=tmp_path, env=environment(), text=True,
                       capture_output=True, check=False)
        for more in ([], ["--debug"])
    )  # fmt: skip
    assert (plain.returncode, plain.stdout) == (2, "")
    assert len(plain.stderr.splitlines()) == 1
    assert plain.stderr.startswith("gammabeta: error: nothing-here: is not a run")
    assert debug.returncode != 0
    assert debug.stderr.startswith("Traceback")
    assert "RunError: nothing-here: is not a run" in debug.stderr


@pytest.mark.parametrize(
    ("words", "ours"),
    [
        (["train", "--learning-rate", "0.1"], "--lr"),
        (["train", "--learning_rate=0.1"], "--lr"),
        (["train", "--bs", "4"], "--batch-size"),
        (["compare", "--batch", "4"], "--batch-size"),
        (["train", "--num-workers", "4"], "--threads"),
        (["evaluate", "run", "--output", "x"], None),
        (["recalibrate", "run", "--output", "x"], "--out"),
        (["train", "--gpu"], "--device"),
        (["evaluate", "--checkpoint", "x.pth"], "--weights"),
        (["train", "--epoch", "3"], "--epochs"),
        (["train", "--zzz"], None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_by_another_programs_name_is_answered_with_ours(words, ours, capsys):
    answer = call(capsys, *words)
    assert (answer.code, answer.out) == (2, "")
    assert "No such option: --" in answer.err
    suggested = re.findall(r"Possible options: (.*?)\)", answer.err)
    assert suggested == ([ours] if ours else [])


def test_the_names_of_other_programs_lead_to_options_that_exist():
    from gammabeta.cli.command import _ELSEWHERE

    own = {name for command in COMMANDS.values() for p in command.params for name in p.opts}
    assert set(_ELSEWHERE) <= own
    assert all(name.startswith("--") for names in _ELSEWHERE.values() for name in names.split())


@pytest.mark.parametrize(
    "words",
    [["evaluate", "nope"], ["evaluate", "nope.onnx"], ["predict", "nope", "x.jpg"],
     ["explain", "nope"], ["explain"], ["export", "nope", "x.onnx"], ["recalibrate", "nope"],
     ["train", "--resume", "nope"]],
    ids=" ".join,
)  # fmt: skip
def test_a_wrong_run_is_answered_at_once(words, tmp_path):
    if words[-1] == "nope":
        (tmp_path / "nope").mkdir()  # a folder, but no run
    before = os.times()
    done = subprocess.run(
        [*PROGRAM, *words], cwd=tmp_path, env=environment(PYTHONPROFILEIMPORTTIME="1"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    after = os.times()
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("gammabeta: error: n")
    assert after.children_user - before.children_user < 1
    heavy = r"\| +(torch|numpy|sklearn|matplotlib|onnxruntime|PIL|rich\.progress)$"
    assert not re.search(heavy, done.stderr, re.MULTILINE)
