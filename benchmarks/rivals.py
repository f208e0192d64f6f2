"""What the benchmarks of kernels share: one process, one allocator, rivals taking turns."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from benchmarks.harness import print_machine
from gammabeta import runtime
from gammabeta.bench.jobs import Job
from gammabeta.bench.measure import Samples
from gammabeta.bench.report import FLOORS
from gammabeta.bench.run import Measured, run_job
from gammabeta.bench.subjects import OURS, SUBJECTS, Subject, compiler
from gammabeta.runtime import Runtime

PRECISIONS = ("fp32", "bf16")


def parser(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with the options that every such benchmark has."""
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--precision", choices=PRECISIONS, action="append", help="default: both")
    made.add_argument("--no-compile", action="store_true", help="leave Inductor out")
    return made


def precisions(options: argparse.Namespace) -> Sequence[str]:
    """Return what was asked for, or all."""
    return options.precision or PRECISIONS


def start() -> Runtime:
    """Tune threads and allocator before the first tensor, and print what the figures hold for."""
    machine = runtime.configure("fp32", "cpu")
    print_machine()
    print(f"{machine.threads} threads, allocator {machine.allocator}\n", flush=True)
    return machine


def everyone(no_compile: bool) -> tuple[Subject, ...]:
    """Return all subjects, or those that need no compiler."""
    compiles = not no_compile and compiler() is not None
    return tuple(subject for subject in SUBJECTS if compiles or not subject.compiled)


def run(job: Job, rounds: int) -> Measured:
    """Measure a job, and print who was left out."""
    measured = run_job(job, rounds)
    for note in measured.notes:
        print(f"note: {note}", flush=True)
    return measured


def rows_of(job: Job, measured: Measured, machine: Runtime) -> Iterator[dict[str, object]]:
    """Yield a row for each subject: its time, and how ours compares with it."""
    ours, floor = measured.timed[OURS], measured.timed[FLOORS[job.kind]]
    for name, samples in measured.timed.items():
        yield {
            "what": job.what,
            "precision": job.precision,
            "subject": name,
            **times(samples),
            "ours is faster by": f"{samples.times(ours):.2f}",
            "times the floor": f"{samples.times(floor):.2f}",
            **_memory(measured.peaks, name),
            "threads": machine.threads,
            "allocator": machine.allocator,
        }


def times(samples: Samples) -> dict[str, object]:
    """Return the columns of a subject's time."""
    low, high = min(samples.seconds), max(samples.seconds)
    return {
        "ms (median)": f"{1e3 * samples.median:.4g}",
        "min": f"{1e3 * low:.4g}",
        "max": f"{1e3 * high:.4g}",
        "rounds": len(samples.seconds),
    }


def _memory(peaks: dict[str, int], name: str) -> dict[str, object]:
    if name not in peaks:
        return {"peak MB": "", "ours needs": ""}
    share = 100 * peaks[OURS] / peaks[name]
    return {"peak MB": f"{peaks[name] / 1e6:.1f}", "ours needs": f"{share:.0f} %"}
