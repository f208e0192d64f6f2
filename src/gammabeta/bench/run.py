"""Running the bench: every job in its share of the time, every subject interleaved."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from gammabeta.bench.floor import copy_bandwidth
from gammabeta.bench.jobs import Job, Settings, plan
from gammabeta.bench.measure import Samples, interleave
from gammabeta.bench.report import FLOORS, Report, Row, describe_machine, make_rows, noise
from gammabeta.bench.subjects import Subject
from gammabeta.bench.tasks import Task
from gammabeta.errors import GammabetaError
from gammabeta.memory import ran_out
from gammabeta.runtime import Runtime

Progress = Callable[[str, float], None]
WARM_UP = 2
_PREPARED, _TIMED = 0.4, 0.9  # about where a job stands by then, for the progress bar


def bench(settings: Settings, machine: Runtime, progress: Progress = lambda *_: None) -> Report:
    """Measure blocks and whole training steps of every subject in turn.

    Args:
        settings: What to measure.
        machine: What :func:`gammabeta.runtime.configure` returned, before any tensor was made:
            all subjects share its threads and its allocator.
        progress: Told what is being done, and the share of everything that is done.

    Returns:
        The report.

    Raises:
        GammabetaError: For a model that is not known or does not take such images, or where
            memory is short.
    """
    began = time.perf_counter()
    batch_size, image_size = settings.batch
    try:
        jobs, notes = plan(settings)
        progress("copy bandwidth", 0.0)
        header = describe_machine(machine, copy_bandwidth())
        rows, left_out = _run_all(jobs, settings, began, progress)
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise GammabetaError(
            f"no memory for {settings.model} at --batch-size {batch_size} --image-size "
            f"{image_size}; ask for less of either"
        ) from error
    progress("done", 1.0)
    header |= {"model": settings.model, "batch_size": batch_size, "image_size": image_size}
    return Report(rows, [*notes, *left_out, *noise(rows)], header)


def _run_all(
    jobs: list[Job], settings: Settings, began: float, progress: Progress
) -> tuple[list[Row], list[str]]:
    """Run all jobs; one that overran its share of the time leaves less to the next."""
    weight = sum(job.weight for job in jobs)
    rows: list[Row] = []
    notes: list[str] = []
    done = 0.0
    for job in jobs:
        left = settings.seconds - (time.perf_counter() - began)

        def tell(doing: str, share: float, job: Job = job, done: float = done) -> None:
            what = f"{job.what}, {job.precision}: {doing}"
            progress(what, (done + share * job.weight) / weight)

        measured = run_job(job, settings.rounds, left * job.weight / (weight - done), tell)
        rows += make_rows(job.kind, job.what, job.precision, measured.timed, measured.peaks)
        notes += [note for note in measured.notes if note not in notes]
        done += job.weight
    return rows, notes


@dataclass(frozen=True)
class Measured:
    """What a job gave.

    Args:
        timed: Samples by subject, those of the floor last.
        peaks: Live tensor bytes at their peak by subject, without the floor.
        notes: Who was left out, and why.
    """

    timed: dict[str, Samples]
    peaks: dict[str, int]
    notes: list[str]


def run_job(
    job: Job, rounds: int | None = None, seconds: float = 10.0, progress: Progress = lambda *_: None
) -> Measured:
    """Prepare the subjects of a job, time them in turn, then measure their memory.

    Args:
        job: Who and what.
        rounds: How many; by default as many as fit.
        seconds: For preparing and timing together; what has begun is finished.
        progress: As for :func:`bench`, of this job.
    """
    began = time.perf_counter()
    tasks: dict[str, Task] = {}
    notes: list[str] = []
    for i, subject in enumerate(job.subjects):
        progress(f"preparing {subject.name}", _PREPARED * i / len(job.subjects))
        try:
            tasks[subject.name] = _prepared(job, subject)
        except RuntimeError as error:
            if not subject.compiled:
                raise
            notes.append(f"{subject.name} is left out: {str(error).strip().splitlines()[0]}")
    floor = job.floor()
    floor()
    timed = interleave(
        {name: task.call for name, task in tasks.items()} | {FLOORS[job.kind]: floor},
        rounds=rounds,
        seconds=seconds - (time.perf_counter() - began),
        progress=lambda share: progress("timing", _PREPARED + (_TIMED - _PREPARED) * share),
    )
    progress("memory", _TIMED)
    return Measured(timed, {name: task.peak_bytes() for name, task in tasks.items()}, notes)


def _prepared(job: Job, subject: Subject) -> Task:
    """Make a task and run it until what happens once has happened."""
    task = job.task(subject)
    for _ in range(WARM_UP):
        task.call()
    return task
