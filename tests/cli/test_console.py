"""What is shown while work goes on: little where there is no terminal, nothing when asked."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest

from gammabeta.cli import console
from training_helpers import call, run_program

TRAIN = ("train", "--data", "digits", "--image-size", "8", "--epochs", "2", "--batch-size", "64",
         "--threads", "1", "--precision", "fp32")  # fmt: skip
PROGRESS = re.compile(r"^epoch \d+, batch \d+ of 23: loss \d+\.\d{3}, [\d,]+ images/s, about ")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_training_shorter_than_a_pause_has_no_line_of_progress(capsys, monkeypatch):
    monkeypatch.setattr(console, "PAUSE", 600.0)
    lines = call(capsys, *TRAIN).out.splitlines()
    assert sum(line.startswith("epoch ") for line in lines) == 2
    assert not any(map(PROGRESS.match, lines))


def test_a_slow_training_shows_a_line_of_progress_after_each_pause(capsys, monkeypatch):
    monkeypatch.setattr(console, "PAUSE", 0.0)  # every batch is a slow one
    lines = call(capsys, *TRAIN).out.splitlines()
    assert sum(bool(PROGRESS.match(line)) for line in lines) == 2 * 23
    assert lines[-7].startswith("Accuracy of the network")


def test_lines_of_progress_keep_their_distance():
    pace = console.Pace(0.05)
    began, said = time.monotonic(), []
    while (now := time.monotonic()) < began + 0.5:
        if pace.is_due():
            said.append(now)
    gaps = [b - a for a, b in zip([began, *said], said, strict=False)]
    assert 2 <= len(said) <= 10
    assert min(gaps) >= 0.045
    assert console.Pace().seconds == 10


def test_reading_data_says_little_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdout", out := io.StringIO())
    with console.data_progress(console.open_console(False)) as show:
        for done in range(1001):
            show("photos", done, 1000)
    assert out.getvalue() == ""
    monkeypatch.setattr(console, "PAUSE", 0.0)
    with console.data_progress(console.open_console(False)) as show:
        show("download", 51_000_000, 170_000_000)
    assert out.getvalue() == "download: 30 % (51 of 170 MB)\n"


def test_quiet_leaves_the_result(capsys, monkeypatch):
    monkeypatch.setattr(console, "PAUSE", 0.0)
    lines = call(capsys, *TRAIN, "--quiet").out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(("note", "1437"))] == [
        "Accuracy", "last", lines[-1].split()[0],
    ]  # fmt: skip
    assert "saved in runs/digits-anneal-1" in lines[-2]
    measured = call(capsys, "evaluate", "runs/digits-anneal-1", "-q")
    assert "Accuracy of runs/digits-anneal-1" in measured.out
    again = call(capsys, "recalibrate", "runs/digits-anneal-1", "-q", "--samples", "200")
    assert "saved in" in again.out
    assert " % (" not in again.out


def test_the_summary_says_how_much_of_the_time_compiling_took(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cold"))
    first, second = (run_program(*TRAIN, "--json", cwd=tmp_path) for _ in range(2))
    spent = first.document["seconds_compiling"]
    assert 1 < spent < first.document["seconds"]
    (line,) = [s for s in first.err.splitlines() if "measuring; this command took" in s]
    assert f", {spent:.1f} s of it compiling kernels once" in line
    assert second.document["seconds_compiling"] == 0
    assert "compiling" not in second.err
