"""The command ``gammabeta conformance``: exit status, table and JSON."""

from __future__ import annotations

import json
import sys

import pytest

from gammabeta.cli.app import main


def run(monkeypatch, capsys, *arguments):
    """Return exit status, stdout and stderr of the program."""
    monkeypatch.setattr(sys, "argv", ["gammabeta", "conformance", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    output = capsys.readouterr()
    return ended.value.code or 0, output.out, output.err


def test_a_class_that_keeps_every_behaviour_exits_with_0(monkeypatch, capsys):
    status, out, _ = run(monkeypatch, capsys, "gammabeta:BatchNorm2d")
    assert status == 0
    assert "| ✓ | eval leaves every buffer bit-identical" in out
    assert " 0 failed" in out


def test_a_failure_exits_with_1_and_is_in_the_json(monkeypatch, capsys):
    status, out, _ = run(monkeypatch, capsys, "conformance_subjects:HalvedDbeta", "--json")
    document = json.loads(out)
    failed = [row["name"] for row in document["results"] if row["status"] == "failed"]
    assert status == 1
    assert document["class"] == "conformance_subjects.HalvedDbeta"
    assert "training gradients of x, γ and β are the definition's" in failed


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("torch.nn.BatchNorm2d", "is no module:Class"),
        ("nowhere:Norm", "No module named 'nowhere'"),
        ("torch.nn:BatchNorm7d", "has no attribute 'BatchNorm7d'"),
        ("math:pi", "is float, expected a class"),
        ("torch.nn:Embedding", "makes no layer"),
    ],
)
def test_a_wrong_target_exits_with_2_and_one_line(monkeypatch, capsys, target, message):
    status, out, err = run(monkeypatch, capsys, target)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_class_in_the_current_folder_is_found(monkeypatch, capsys, tmp_path):
    text = "from torch import nn\nclass Norm(nn.BatchNorm2d):\n    pass\nwidth = 3\n"
    (tmp_path / "my_own_norm.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    status, _, err = run(monkeypatch, capsys, "my_own_norm:width")
    assert status == 2
    assert "is int, expected a class" in err
