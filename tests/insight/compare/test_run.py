"""Whole comparisons, really trained in processes: resumed, stopped, killed, bounded in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from compare_helpers import begin, by_key, carry_on, finished, fixed_plan, held, tiny_settings
from gammabeta.errors import GammabetaError
from gammabeta.insight.compare.worker import Workers
from training_helpers import environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
TESTS = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path
from compare_helpers import carry_on, tiny_settings
if __name__ == "__main__":
    print("begun", flush=True)
    carry_on(Path(sys.argv[1]), tiny_settings(variants=("bn", "none")))
"""


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    return finished(tmp_path_factory.getbasetemp())


def test_everything_planned_is_done_and_judged(whole):
    _, comparison = whole
    document = comparison.to_dict()
    assert document["ended_by"] == "done"
    stages = [r["stage"] for r in document["trainings"]]
    assert [stages.count(s) for s in ("sweep", "full", "batch")] == [30, 10, 14]
    assert [claim["id"] for claim in document["claims"]] == [
        "faster", "accurate", "stable", "dropout",
    ]  # fmt: skip
    assert all(v["lr"] in (0.003, 0.03, 0.3) for v in document["variants"].values())
    assert document["command"] == "gammabeta compare --data digits"
    assert not document["resumed"]


def test_what_is_done_is_not_done_again(whole):
    path, comparison = whole
    began = time.monotonic()
    again = carry_on(path, comparison.settings)
    assert time.monotonic() - began < 2, "no process is started"
    assert again.records == comparison.records


def statuses():
    """Parent and state of every process, by its number."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            after_name = (folder / "stat").read_text().rpartition(")")[2].split()
            found[int(folder.name)] = (int(after_name[1]), after_name[0])
    return found


def offspring(pid):
    """Every process that stems from this one and is no zombie."""
    parents = statuses()
    found, fresh = set(), {pid}
    while fresh:
        fresh = {child for child, (parent, _) in parents.items() if parent in fresh} - found
        found |= fresh
    return alive(found)


def alive(pids):
    now = statuses()
    return {pid for pid in pids if pid in now and now[pid][1] != "Z"}


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_killed_and_resumed_it_is_as_if_never_killed(whole, tmp_path):
    settings = tiny_settings(variants=("bn", "none"))
    path, script = tmp_path / "killed.jsonl", tmp_path / "script.py"
    begin(path, settings, fixed_plan(settings))
    script.write_text(SCRIPT)
    source = str(TESTS.parent / "src")
    env = environment(PYTHONPATH=os.pathsep.join([str(TESTS), source]))
    victim = subprocess.Popen([sys.executable, str(script), str(path)], env=env)
    try:
        wait_for(lambda: path.read_text().count('"job"') >= 3, seconds=300)
        children = offspring(victim.pid)
        assert len(children) >= 2
    finally:
        victim.kill()
        victim.wait()
    wait_for(lambda: not alive(children), seconds=10)
    kept = path.read_text().count('"job"')
    comparison = carry_on(path, settings)
    assert comparison.resumed
    assert len(comparison.records) == 12 + 4 > kept
    expected = {k: v for k, v in by_key(whole[1]).items() if k in by_key(comparison)}
    assert by_key(comparison) == expected


def test_the_budget_ends_it_in_the_middle(tmp_path):
    settings = tiny_settings(variants=("bn", "none"), budget=6.0)
    path = tmp_path / "short.jsonl"
    begin(path, settings, fixed_plan(settings, workers=1, sweep_steps=100_000))
    began, before = time.monotonic(), offspring(os.getpid())
    comparison = carry_on(path, settings)
    assert 5.9 < time.monotonic() - began < 10
    assert comparison.machine["ended_by"] == "budget"
    assert comparison.records == []
    assert {claim.verdict for claim in comparison.claims} == {"undecided"}
    new = offspring(os.getpid()) - before
    assert [words for words in map(command_line, new) if "resource_tracker" not in words] == []


def command_line(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def test_a_request_to_stop_is_answered_at_once(tmp_path):
    settings = tiny_settings(variants=("bn", "none"))
    path = tmp_path / "stopped.jsonl"
    begin(path, settings, fixed_plan(settings, workers=1))
    comparison = carry_on(path, settings, stop_requested=lambda: signal.SIGINT)
    assert comparison.machine["ended_by"] == "signal"


def test_it_plans_by_its_own_measurement(tmp_path):
    settings = tiny_settings(variants=("bn", "none"), budget=90.0, seeds=1, rates=(0.01, 0.1))
    told = []

    def stop_in_the_sweep():
        return signal.SIGTERM if any(status.finished for status in told) else 0

    comparison = carry_on(
        tmp_path / "planned.jsonl", settings, tell=told.append, stop_requested=stop_in_the_sweep
    )
    plan = comparison.plan
    assert plan.workers * plan.threads <= (os.cpu_count() or 1)
    assert plan.cost["1"]["step_bytes"]["bn"] > 0
    assert set(plan.step_seconds) == {"bn", "none"}
    assert {"pilot", "sweep"} <= {status.stage for status in told}
    shares = [status.share for status in told if status.stage != "pilot"]
    assert max(shares) <= 1.0
    assert all(claim.verdict == "undecided" for claim in comparison.claims), "one seed"


def test_a_worker_that_dies_is_an_error_with_what_to_do():
    with Workers(1, 1, held(), bf16=False) as workers:
        os.kill(workers.processes[0].pid, signal.SIGKILL)
        workers.processes[0].join()
        message = r"ended .exit code -9.*run the same command again"
        with pytest.raises(GammabetaError, match=message):
            list(workers.hear(5.0))
