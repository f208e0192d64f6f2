"""A shell completes commands, options, values and paths, and quickly."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gammabeta
from training_helpers import environment

pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")

SOURCE = Path(gammabeta.__file__).parents[1]
COMPLETE = r"""
eval "$(gammabeta --show-completion bash)"
complete -p gammabeta
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_gammabeta_completion gammabeta
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def variables(tmp_path):
    """An environment with this very program on the path, under its name."""
    script = tmp_path / "bin" / "gammabeta"
    script.parent.mkdir()
    script.write_text(
        f"#!{sys.executable}\nfrom gammabeta.cli.app import main\n"
        "import sys\nsys.argv[0] = 'gammabeta'\nmain()\n"
    )
    script.chmod(0o755)
    path = f"{script.parent}{os.pathsep}{os.environ['PATH']}"
    source = os.pathsep.join(map(str, [SOURCE, os.environ.get("PYTHONPATH", "")]))
    return environment(PATH=path, PYTHONPATH=source, HOME=str(tmp_path))


def ran(words, variables):
    return subprocess.run(["/usr/bin/env", *words], env=variables, capture_output=True, text=True,
                          check=False)  # fmt: skip


def completed(words, variables):
    done = ran(["bash", "-c", COMPLETE, "bash", "gammabeta", *words], variables)
    assert done.stderr == ""
    how, *found = done.stdout.splitlines()
    assert "-o default" in how, "paths are completed by the shell where the program has no answer"
    return {word for word in found if word}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tra"], {"train"}),
        (["train", "--da"], {"--data"}),
        (["train", "--data", ""], {"cifar10", "digits"}),
        (["train", "--data", "pho"], set()),
        (["train", "--recipe", "t"], {"tutorial"}),
        (["train", "--precision", ""], {"auto", "fp32", "bf16"}),
        (["explain", "--lang", ""], {"en", "zh"}),
        (["evaluate", "ru"], set()),
        (["compare", "--bu"], {"--budget"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bash_completes(words, expected, variables):
    assert completed(words, variables) == expected


def test_zsh_and_fish_are_answered(variables):
    asked = {"_GAMMABETA_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "gammabeta reca"}
    assert '"recalibrate"' in ran(["gammabeta"], variables | asked).stdout
    asked = {"_GAMMABETA_COMPLETE": "complete_fish", "_TYPER_COMPLETE_ARGS": "gammabeta reca",
             "_TYPER_COMPLETE_FISH_ACTION": "get-args"}  # fmt: skip
    assert ran(["gammabeta"], variables | asked).stdout.startswith("recalibrate\t")


def test_an_answer_takes_no_time(variables):
    before = os.times()
    began = time.monotonic()
    assert completed(["tra"], variables) == {"train"}
    after = os.times()
    assert after.children_user - before.children_user < 1.5  # the script itself, then the answer
    assert time.monotonic() - began < 5


def test_it_installs_itself(variables, tmp_path):
    done = ran(["bash", "-c", "gammabeta --install-completion; true"], variables)
    assert "bash completion installed" in done.stdout
    (script,) = (tmp_path / ".bash_completions").iterdir()
    assert "_gammabeta_completion" in script.read_text()
    assert str(script) in (tmp_path / ".bashrc").read_text()
