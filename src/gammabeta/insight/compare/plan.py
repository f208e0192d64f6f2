"""What fits into the budget: how many processes, how long each training is, and in which order.

1. **Sweep**: every variant at every learning rate with every seed, short.
2. **Full**, first seed: each variant at the two most promising learning rates of the sweep, then
   with the other seeds at the better one.
3. **Batch sizes** from 2 to 128, first seed, batch norm and group norm: short.

Whatever is chosen is chosen by validation images. Seeds are the outer loop, so that stopping at any
time leaves the variants with the same seeds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Annotated, Any

from pydantic import Field

from gammabeta.insight.compare.job import BATCH, FULL, SWEEP, WALKS, Job, job_of
from gammabeta.insight.compare.landscape import STEP_SIZES
from gammabeta.insight.compare.settings import HeldOut, Settings
from gammabeta.runtime import MOST_THREADS
from gammabeta.schema import STRICT

Record = Mapping[str, Any]

SHARES = {SWEEP: 0.32, FULL: 0.61, BATCH: 0.07}
"""Of the time: how it is divided among the stages."""
USED = 0.92
"""Of the budget: how much is planned; the rest is for what cannot be known."""
PACE = 1.15
"""Until the sweep tells: what loading and bookkeeping add to the bare steps of the pilot."""
LEAST_SWEEP, LEAST_FULL, MOST_EPOCHS = 20, 60, 30
FINALISTS = 2
BATCH_SIZES = (128, 64, 32, 16, 8, 4, 2)
BATCH_VARIANTS = ("bn", "groupnorm")
FLOAT32_COST = 3.0  # a look at the landscape against a step, both in its units of time


@dataclass(frozen=True)
class Plan:
    """How a comparison is carried out; kept in the journal, so that a resumed one goes on alike.

    Args:
        workers: Processes at a time.
        threads: Threads inside an operator, of each process.
        rates: Learning rates of the sweep.
        step_seconds: Of each variant, as measured under this number of processes and threads.
        evaluation_seconds: The same, of an image.
        cost: All that the pilot measured, by the number of processes at a time.
        finalists: Learning rates of a variant that are trained in full with the first seed.
        sweep_steps: Length of a training of the sweep.
        full_steps: Length of a full training.
        batch_images: Images that each batch size is trained on; 0 leaves batch sizes out.
        pace: How long a job takes, as a multiple of what bare steps and evaluations would.
        settled: Whether lengths have been fitted to the time that the sweep has left over.
        notes: Codes of what had to be given up.
    """

    __pydantic_config__ = STRICT

    workers: Annotated[int, Field(ge=1, le=MOST_THREADS)]
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)]
    rates: tuple[float, ...]
    step_seconds: dict[str, float]
    evaluation_seconds: dict[str, float]
    cost: dict[str, Any]
    finalists: Annotated[int, Field(ge=1)] = FINALISTS
    sweep_steps: Annotated[int, Field(ge=1)] = 1
    full_steps: Annotated[int, Field(ge=1)] = 1
    batch_images: Annotated[int, Field(ge=0)] = 0
    pace: Annotated[float, Field(gt=0)] = PACE
    settled: bool = False
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return dataclasses.asdict(self) | {"notes": list(self.notes), "rates": list(self.rates)}

    def seconds(self, job: Job, data: HeldOut, batch_size: int) -> float:
        """Return how long one process needs for a job, roughly."""
        share = max(0.15, job.batch_size / batch_size)  # a step costs something with any batch
        step = self.step_seconds[job.variant] * share
        image = self.evaluation_seconds[job.variant]
        measured = image * len(data.validation) * len(job.points())
        if job.stage != FULL:
            return self.pace * (job.steps * step + measured)
        looks = len(WALKS) * (1 + len(STEP_SIZES)) * FLOAT32_COST * step
        tests = 1.3 * image * FLOAT32_COST * len(data.test)
        return self.pace * (job.steps * step + measured + looks + tests)


def make_plan(
    settings: Settings, data: HeldOut, pilots: Mapping[int, Mapping[str, Any]], seconds: float
) -> Plan:
    """Choose the number of processes and the lengths of the trainings.

    Where that leaves too short a sweep, every second learning rate must do.

    Args:
        settings: What is compared.
        data: On what.
        pilots: What was measured, by the number of processes at a time.
        seconds: Left of the budget.
    """
    workers = min(pilots, key=lambda n: sum(pilots[n]["step_seconds"].values()) / n)
    found = pilots[workers]
    time = USED * seconds * workers
    plan = Plan(
        workers=workers,
        threads=found["threads"],
        rates=settings.rates,
        step_seconds=found["step_seconds"],
        evaluation_seconds=found["evaluation_seconds"],
        cost={str(n): dict(pilot) for n, pilot in pilots.items()},
    )
    sized = _sized(plan, settings, data, time)
    if sized.notes:
        rates = settings.rates[::2] if len(settings.rates) >= 3 else settings.rates
        fewer = dataclasses.replace(plan, rates=rates)
        sized = _sized(fewer, settings, data, time)
        sized = dataclasses.replace(sized, notes=("few-rates", *sized.notes))
    images = _batch_images(sized, settings, data, time * SHARES[BATCH])
    return dataclasses.replace(sized, batch_images=images)


def settle(
    plan: Plan, settings: Settings, data: HeldOut, records: Sequence[Record], seconds: float
) -> Plan:
    """Fit what follows the sweep to the time that is left, at the sweep's median pace.

    A median, so that trainings that something else on the machine slowed down do not count.

    Args:
        plan: As made before the sweep.
        settings: What is compared.
        data: On what.
        records: Of the sweep.
        seconds: Left of the budget.
    """
    paces = [
        r["wall_seconds"] / plan.seconds(job_of(r), data, settings.batch_size)
        for r in records
        if r["outcome"] != "nonfinite"  # those end early
    ]
    pace = plan.pace * (median(paces) if paces else 1.0)
    plan = dataclasses.replace(plan, pace=pace, settled=True)
    time = USED * seconds * plan.workers / (SHARES[FULL] + SHARES[BATCH])
    full = _fitting(plan, full_outline(settings, plan), time * SHARES[FULL], settings, data)
    most = round(MOST_EPOCHS * len(data.train) / settings.batch_size)
    images = _batch_images(plan, settings, data, time * SHARES[BATCH])
    notes = {*plan.notes} | (set() if full >= LEAST_FULL else {"short"})
    return dataclasses.replace(
        plan,
        full_steps=min(most, max(LEAST_FULL, full)),
        batch_images=images,
        notes=(*sorted(notes), *([] if images else ["no-batch-sizes"])),
    )


def _sized(plan: Plan, settings: Settings, data: HeldOut, time: float) -> Plan:
    """Give the sweep and the full trainings as many steps as fit, or the fewest that make sense."""
    most = round(MOST_EPOCHS * len(data.train) / settings.batch_size)
    fulls, sweeps = full_outline(settings, plan), sweep_jobs(settings, plan)
    full = min(most, _fitting(plan, fulls, time * SHARES[FULL], settings, data))
    sweep = min(full // 3, _fitting(plan, sweeps, time * SHARES[SWEEP], settings, data))
    return dataclasses.replace(
        plan,
        sweep_steps=max(LEAST_SWEEP, sweep),
        full_steps=max(LEAST_FULL, full),
        notes=() if sweep >= LEAST_SWEEP and full >= LEAST_FULL else ("short",),
    )


def _fitting(
    plan: Plan, jobs: Sequence[Job], seconds: float, settings: Settings, data: HeldOut
) -> int:
    """Return how many steps each of the jobs can have so that all fit into the time."""
    step = plan.pace * sum(plan.step_seconds[job.variant] for job in jobs)
    long = [dataclasses.replace(job, steps=1000) for job in jobs]  # all points are there then
    beside = sum(plan.seconds(job, data, settings.batch_size) for job in long) - 1000 * step
    return max(0, int((seconds - beside) / step))


def _batch_images(plan: Plan, settings: Settings, data: HeldOut, seconds: float) -> int:
    names = [name for name in BATCH_VARIANTS if name in settings.variants]
    for steps in (64, 48, 32, 24, 16, 10):  # of the largest batch
        images = steps * BATCH_SIZES[0]
        jobs = batch_jobs(settings, dataclasses.replace(plan, batch_images=images), names, {})
        total = sum(plan.seconds(job, data, settings.batch_size) for job in jobs)
        if names and total < seconds and images <= 8 * len(data.train):
            return images
    return 0


def sweep_jobs(settings: Settings, plan: Plan) -> list[Job]:
    """Return every variant at every learning rate with every seed."""
    return [
        _job(SWEEP, name, lr, seed, plan.sweep_steps, settings)
        for seed in settings.all_seeds
        for lr in plan.rates
        for name in settings.variants
    ]


def finalist_jobs(settings: Settings, plan: Plan, records: Iterable[Record]) -> list[Job]:
    """Return full trainings with the first seed at the best learning rates of the sweep."""
    ranked = ranking(settings, records)
    return [
        _job(FULL, name, ranked[name][place], settings.seed, plan.full_steps, settings)
        for place in range(plan.finalists)
        for name in settings.variants
        if place < len(ranked[name])
    ]


def final_jobs(settings: Settings, plan: Plan, records: Iterable[Record]) -> list[Job]:
    """Return full trainings with the other seeds, each variant at its own learning rate."""
    rates = chosen_rates(settings, list(records))
    return [
        _job(FULL, name, rates[name], seed, plan.full_steps, settings)
        for seed in settings.all_seeds[1:]
        for name in settings.variants
        if name in rates
    ]


def batch_jobs(
    settings: Settings, plan: Plan, names: Sequence[str], rates: Mapping[str, float]
) -> list[Job]:
    """Return short trainings of every batch size, the learning rate in proportion to it."""
    if not plan.batch_images:
        return []
    return [
        Job(
            stage=BATCH,
            variant=name,
            lr=rates.get(name, 0.1) * size / settings.batch_size,
            seed=settings.seed,
            steps=plan.batch_images // size,
            batch_size=size,
        )
        for size in BATCH_SIZES
        for name in names
    ]


def ranking(settings: Settings, records: Iterable[Record]) -> dict[str, list[float]]:
    """Return each variant's learning rates, the most promising first, by the sweep.

    First comes the best validation accuracy, then the lowest training loss: a variant that has
    hardly begun to learn guesses as well at any rate, but its loss already tells them apart (and
    is that of new images, as hardly one was seen twice). The rest follow by accuracy. Means over
    seeds; a training that exploded counts as accuracy 0 and infinite loss.
    """
    accuracy: dict[str, dict[float, list[float]]] = {name: {} for name in settings.variants}
    loss: dict[str, dict[float, list[float]]] = {name: {} for name in settings.variants}
    for r in records:
        if r["stage"] == SWEEP:
            known = math.inf if r["final_loss"] is None else r["final_loss"]
            accuracy[r["variant"]].setdefault(r["lr"], []).append(validation(r))
            loss[r["variant"]].setdefault(r["lr"], []).append(known)
    return {name: _ranked(accuracy[name], loss[name]) for name in settings.variants}


def _ranked(
    accuracy: Mapping[float, Sequence[float]], loss: Mapping[float, Sequence[float]]
) -> list[float]:
    by_accuracy = sorted(accuracy, key=lambda lr: (-mean(accuracy[lr]), lr))
    by_loss = sorted(loss, key=lambda lr: (mean(loss[lr]), lr))
    return list(dict.fromkeys([*by_accuracy[:1], *by_loss[:1], *by_accuracy]))


def chosen_rates(settings: Settings, records: Sequence[Record]) -> dict[str, float]:
    """Return each variant's own learning rate: the better one in full with the first seed."""
    chosen = {}
    for name in settings.variants:
        tried = {
            r["lr"]: validation(r)
            for r in records
            if r["stage"] == FULL and r["variant"] == name and r["seed"] == settings.seed
        }
        if tried:
            chosen[name] = max(tried, key=lambda lr: (tried[lr], -lr))
    return chosen


def validation(record: Record) -> float:
    """Return the last validation accuracy of a training, 0 if it exploded."""
    return float(record["points"][-1]["accuracy"]) if record["outcome"] != "nonfinite" else 0.0


def _job(stage: str, name: str, lr: float, seed: int, steps: int, settings: Settings) -> Job:
    return Job(
        stage=stage, variant=name, lr=lr, seed=seed, steps=steps, batch_size=settings.batch_size
    )


def full_outline(settings: Settings, plan: Plan) -> list[Job]:
    """Return as many full trainings of each variant as there will be, at rates not yet known."""
    many = plan.finalists + settings.seeds - 1
    return [
        _job(FULL, name, 1.0 + number, settings.seed, plan.full_steps, settings)
        for name in settings.variants
        for number in range(many)
    ]


def outline(settings: Settings, plan: Plan) -> list[Job]:
    """Return jobs that cost what all stages of the plan will cost."""
    names = [name for name in BATCH_VARIANTS if name in settings.variants]
    batches = batch_jobs(settings, plan, names, {})
    return [*sweep_jobs(settings, plan), *full_outline(settings, plan), *batches]
