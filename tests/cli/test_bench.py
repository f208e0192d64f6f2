"""``gammabeta bench``: a table for people, one JSON document for programs, progress on stderr."""

from __future__ import annotations

import pytest

from gammabeta.bench import run
from gammabeta.cli import console
from gammabeta.cli.bench import figures
from training_helpers import call, one_thread

TINY = ["--batch-size", "2", "--image-size", "8", "--rounds", "1", "--no-compile"]
COLUMNS = {
    "kind", "what", "precision", "subject", "milliseconds", "milliseconds_min", "milliseconds_max",
    "spread_percent", "rounds", "speedup_over_eager_nchw", "speedup_over_eager_channels_last",
    "times_floor", "peak_mb", "memory_of_eager_nchw", "memory_of_eager_channels_last",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(run, "copy_bandwidth", lambda: 2e9)
    yield
    one_thread()


def test_json_is_one_document_with_complete_rows(capsys):
    answer = call(capsys, "bench", *TINY, "--precision", "both", "--threads", "1", "--json")
    assert answer.code == 0
    rows = answer.document["rows"]
    assert len(rows) == 2 * 4 * 4
    assert all(set(row) == COLUMNS for row in rows)
    assert {row["precision"] for row in rows} == {"fp32", "bf16"}
    assert answer.document["threads"] == 1


def test_progress_names_each_piece_of_work_on_stderr(capsys, monkeypatch):
    monkeypatch.setattr(console, "PAUSE", 0.0)
    answer = call(capsys, "bench", *TINY, "--precision", "fp32", "--threads", "1")
    shares, works = zip(*(s.split(" % ") for s in answer.err.splitlines()), strict=True)
    assert list(dict.fromkeys(works)) == [
        "copy bandwidth",
        "block (2, 64, 8, 8), fp32",
        "block (2, 128, 4, 4), fp32",
        "block (2, 256, 2, 2), fp32",
        "training step of net, fp32",
    ]
    assert sorted(map(int, shares)) == [*map(int, shares)]
    monkeypatch.undo()
    quiet = call(capsys, "bench", *TINY, "--precision", "fp32", "--threads", "1", "--quiet")
    assert (quiet.code, quiet.err) == (0, "")


def test_people_see_the_machine_a_table_for_each_piece_of_work_and_a_summary(capsys):
    out = call(capsys, "bench", *TINY, "--precision", "fp32", "--threads", "1").out
    head = out.splitlines()[0]
    assert "1 threads, torch " in head
    assert "allocator " in head
    assert "copies move 2.0 GB/s" in head
    for title in ("block (2, 64, 8, 8), fp32", "training step of net, fp32"):
        lines = out[out.index(f"\n{title}\n") :].splitlines()
        assert lines[2].split() == ["ms", "±", "NCHW", "ch.-last", "floor", "MB", "share"]
        assert lines[3].startswith("  eager NCHW ")
        assert lines[5].startswith("  gammabeta ")
        assert lines[6].startswith("  floor: ")
    assert "\ntraining step of net, fp32: gammabeta takes " in out


def test_all_of_it_fits_a_terminal_of_80_columns(capsys, monkeypatch):
    out = call(capsys, "bench", *TINY, "--precision", "fp32", "--threads", "1").out
    tables = [line for line in out.splitlines() if line.startswith("  ")]
    assert max(map(len, tables)) <= 80


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision", "fp16"], "precision is 'fp16', but must be fp32, bf16 or both"),
        (["--model", "resnet"], "model is 'resnet', but must be net, torchvision:NAME or"),
        (["--image-size", "12"], "image_size is 12, but three 2x2 poolings need"),
    ],
)
def test_a_wrong_choice_ends_with_status_2_and_one_line(capsys, words, message):
    answer = call(capsys, "bench", *words)
    assert message in answer.error
    assert answer.out == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.001234, "0.00123"), (0.9999, "1.00"), (12.345, "12.3"), (999.6, "1000"), (0.0, "0")],
)
def test_figures_are_three_and_without_an_exponent(value, text):
    assert figures(value) == text
