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
    assert "Error" in answer.err
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
