"""The benchmarks' tables: ours against each rival, and each against the floor."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))  # benchmarks/ lies beside tests/

from benchmarks import blocks, fold, memory, recalibrate, rivals, tiny
from gammabeta import runtime
from gammabeta.bench.jobs import block_job
from gammabeta.bench.measure import Samples
from gammabeta.bench.report import FLOORS
from gammabeta.bench.run import Measured
from gammabeta.bench.subjects import EAGER_LAST, NET_BLOCKS, OURS, SUBJECTS
from training_helpers import one_thread, trained_run

FLOOR = FLOORS["block"]


@pytest.fixture(autouse=True)
def _threads_given_back():
    yield
    one_thread()


def test_a_table_says_how_much_faster_ours_is_and_how_far_from_the_floor():
    timed = {
        EAGER_LAST: Samples((0.004, 0.009, 0.004)),
        OURS: Samples((0.002, 0.003, 0.002)),
        FLOOR: Samples((0.001, 0.002, 0.001)),
    }
    measured = Measured(timed, {EAGER_LAST: 4_000_000, OURS: 3_000_000}, [])
    machine = runtime.Runtime(2, "cpu", "fp32", "as asked", "tuned")
    job = block_job(NET_BLOCKS[0], "fp32", ())
    rows = {row["subject"]: row for row in rivals.rows_of(job, measured, machine)}
    assert list(rows) == [EAGER_LAST, OURS, FLOOR]
    assert len({tuple(row) for row in rows.values()}) == 1, "one table, one set of columns"
    eager = rows[EAGER_LAST]
    assert (eager["ours is faster by"], eager["times the floor"]) == ("2.00", "4.00")
    assert (eager["ms (median)"], eager["min"], eager["max"], eager["rounds"]) == ("4", "4", "9", 3)
    assert (eager["peak MB"], eager["ours needs"]) == ("4.0", "75 %")
    assert (eager["what"], eager["precision"]) == ("block (128, 64, 32, 32)", "fp32")
    assert (eager["threads"], eager["allocator"]) == (2, "tuned")
    assert rows[FLOOR]["peak MB"] == ""


def test_blocks_are_measured_in_three_modes_and_compiled_only_with_gradients():
    jobs = blocks.jobs("bf16", SUBJECTS)
    assert len(jobs) == len(blocks.TITLES) * len(NET_BLOCKS)
    for title, job in jobs:
        assert job.precision == "bf16"
        assert any(s.compiled for s in job.subjects) == (title == blocks.TITLES["backward"])


def test_one_process_measures_memory_of_one_subject(monkeypatch):
    monkeypatch.setattr(memory, "BATCH_SIZE", 4)
    monkeypatch.setattr(memory, "IMAGE_SIZE", 8)
    result = memory.measure(OURS, "fp32")
    assert set(result) == {"resident", "live", "allocator"}
    assert result["live"] > 9_000_000  # weights, gradients and momentum


def test_tiny_measures_every_chain_in_every_mode(monkeypatch, capsys):
    saved = []
    monkeypatch.setattr(sys, "argv", ["tiny", "--rounds", "1", "--precision", "fp32"])
    monkeypatch.setattr(tiny, "save_rows", lambda _, rows: saved.extend(rows))
    tiny.main()
    assert len(saved) == len(tiny.CHAINS) * len(tiny.TITLES) * 3
    assert capsys.readouterr().out.count("\n| BN") == len(saved)


def test_recalibration_is_compared_with_its_rivals(monkeypatch, tmp_path_factory):
    run = str(trained_run(tmp_path_factory.getbasetemp()).path)
    saved = []
    arguments = ["--samples", "96", "--rounds", "1", "--sizes", "4", "32"]
    monkeypatch.setattr(sys, "argv", ["recalibrate", run, *arguments])
    monkeypatch.setattr(recalibrate, "save_rows", lambda _, rows: saved.extend(rows))
    recalibrate.main()
    ours = [row for row in saved if row["method"] == "gammabeta"]
    others = [row for row in saved if row["method"] != "gammabeta"]
    assert [row["batch"] for row in ours] == [4, 32]
    assert max(float(row["variance off by"]) for row in ours) < 1e-4
    assert max(float(row["reversed order"]) for row in ours) < 1e-4
    assert min(float(row["variance off by"]) for row in others) > 1e-3


def test_folding_is_compared_with_its_rivals(monkeypatch):
    saved = []
    monkeypatch.setattr(sys, "argv", ["fold", "net", "--rounds", "1"])
    monkeypatch.setattr(fold, "save_rows", lambda _, rows: saved.extend(rows))
    fold.main()
    assert saved


@pytest.mark.parametrize(
    "name", ["blocks", "models", "net_step", "memory", "tiny", "fold", "recalibrate", "export"]
)
def test_each_has_help(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        import_module(f"benchmarks.{name}").main()
    assert ended.value.code == 0
    assert "--rounds" in capsys.readouterr().out
