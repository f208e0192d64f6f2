"""Carries a comparison out: pilot, plan, stages, until it is done or the time is over."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gammabeta.insight.compare.job import BATCH, Job, job_of
from gammabeta.insight.compare.journal import Journal
from gammabeta.insight.compare.pilot import Pilot
from gammabeta.insight.compare.plan import (
    BATCH_VARIANTS,
    Plan,
    batch_jobs,
    chosen_rates,
    final_jobs,
    finalist_jobs,
    make_plan,
    outline,
    settle,
    sweep_jobs,
)
from gammabeta.insight.compare.settings import HeldOut, Settings
from gammabeta.insight.compare.worker import PROGRESS, READY, RESULT, Workers
from gammabeta.runtime import available_cores

MOST_WORKERS = 8
TICK = 0.2  # seconds between two looks at the clock and at signals
PILOT_SHARE, LEAST_ROUNDS, MOST_ROUNDS = 0.03, 3, 7


@dataclass(frozen=True)
class Status:
    """How far a comparison is.

    Args:
        stage: "pilot", "sweep", "full" or "batch".
        what: The training that was begun or finished last, in words; or what is measured.
        finished: Whether that training is over.
        share: Of the planned work, 0 to 1.
        seconds_left: Until all planned work is done, at most until the budget is spent.
    """

    stage: str
    what: str
    finished: bool
    share: float
    seconds_left: float


class Runner:
    """One session of a comparison.

    Args:
        settings: What is compared.
        data: On what.
        journal: Where records are kept.
        tell: Told of every change.
        stop_requested: Returns the number of a signal that asks to stop, or 0.
    """

    def __init__(
        self,
        settings: Settings,
        data: HeldOut,
        journal: Journal,
        *,
        tell: Callable[[Status], None] = lambda _: None,
        stop_requested: Callable[[], int] = lambda: 0,
        began: float | None = None,
    ) -> None:
        self.settings, self.data, self.journal = settings, data, journal
        self.tell, self.stop_requested = tell, stop_requested
        self.began = time.monotonic() if began is None else began
        self.deadline = self.began + settings.budget
        self.ended_by = ""
        self.shares: dict[int, tuple[Job, float]] = {}

    def run(self) -> str:
        """Work until all is done; return "done", "budget" or "signal"."""
        plan = self.journal.plan
        if plan and self._complete(plan):
            return "done"
        bf16 = self.settings.precision == "bf16"
        cores = min(available_cores(), MOST_WORKERS)
        count, threads = (plan.workers, plan.threads) if plan else (cores, 1)
        with Workers(count, threads, self.data, bf16=bf16) as workers:
            idle = self._wait_ready(workers)
            if idle and plan is None:
                plan = self._pilot(workers, cores)
            if plan:
                self._stages(workers, plan)
        return self.ended_by or "done"

    def _complete(self, plan: Plan) -> bool:
        """Tell whether nothing of the plan is left to do."""
        done = self.journal.done
        stages = [lambda: sweep_jobs(self.settings, plan), *self._later_stages(plan)]
        return plan.settled and all(job.key in done for stage in stages for job in stage())

    def _later_stages(self, plan: Plan) -> list[Callable[[], list[Job]]]:
        """Return what makes each stage's jobs, once the stage before it is done."""
        settings, journal = self.settings, self.journal
        names = [name for name in BATCH_VARIANTS if name in settings.variants]
        return [
            lambda: finalist_jobs(settings, plan, journal.records),
            lambda: final_jobs(settings, plan, journal.records),
            lambda: batch_jobs(settings, plan, names, chosen_rates(settings, journal.records)),
        ]

    def _wait_ready(self, workers: Workers) -> bool:
        waiting = len(workers.processes)
        while waiting and not self._over():
            waiting -= sum(m.kind == READY for m in workers.hear(TICK))
        return not waiting

    def _over(self) -> bool:
        if not self.ended_by:
            if self.stop_requested():
                self.ended_by = "signal"
            elif time.monotonic() >= self.deadline:
                self.ended_by = "budget"
        return bool(self.ended_by)

    def _pilot(self, workers: Workers, cores: int) -> Plan | None:
        """Time one process of all threads, then all processes of one thread; plan by the faster."""
        found: dict[int, Mapping[str, Any]] = {}
        for count in sorted({1, cores}):
            threads = cores // count
            self._report("pilot", f"{count} × {threads}", finished=False)
            pilot = Pilot(
                self.settings.variants,
                self.settings.batch_size,
                threads,
                LEAST_ROUNDS if self.settings.budget < 600 else MOST_ROUNDS,
                memory=count == 1,
            )
            answers = self._ask(workers, pilot, count)
            if len(answers) < count:
                return None
            slowest = max(answers, key=lambda a: sum(a["step_seconds"].values()))
            found[count] = slowest | {"threads": threads}
        left = self.deadline - time.monotonic()
        plan = make_plan(self.settings, self.data, found, left)
        workers.close(keep=plan.workers)
        self.journal.keep_plan(plan)
        return plan

    def _ask(self, workers: Workers, pilot: Pilot, count: int) -> list[dict[str, Any]]:
        for worker in range(count):
            workers.send(worker, pilot)
        answers: list[dict[str, Any]] = []
        while len(answers) < count and not self._over():
            answers += [m.value for m in workers.hear(TICK) if m.kind == RESULT]
        return answers

    def _stages(self, workers: Workers, plan: Plan) -> None:
        self._do(workers, plan, sweep_jobs(self.settings, plan))
        if self._over():
            return
        if not plan.settled:
            records, left = self.journal.records, self.deadline - time.monotonic()
            plan = settle(plan, self.settings, self.data, records, left)
            self.journal.keep_plan(plan)
        for stage in self._later_stages(plan):
            self._do(workers, plan, stage())
            if self._over():
                return

    def _do(self, workers: Workers, plan: Plan, jobs: Sequence[Job]) -> None:
        """Hand out jobs in order, one to each idle worker, until all are done or time is over."""
        done = self.journal.done
        queue = deque(job for job in jobs if job.key not in done)
        idle = deque(range(len(workers.processes)))
        while (queue or self.shares) and not self._over():
            while queue and idle:
                worker = idle.popleft()
                self.shares[worker] = (queue.popleft(), 0.0)
                workers.send(worker, self.shares[worker][0])
                self._report_job(plan, self.shares[worker][0], finished=False)
            for message in workers.hear(TICK):
                job, _ = self.shares[message.worker]
                if message.kind == PROGRESS:
                    self.shares[message.worker] = (job, message.value)
                    self._report_job(plan, job, finished=False)
                elif message.kind == RESULT:
                    self._keep(plan, message.worker, message.value)
                    idle.append(message.worker)

    def _keep(self, plan: Plan, worker: int, record: dict[str, Any]) -> None:
        job, _ = self.shares.pop(worker)
        self.journal.keep_line(record)
        self._report_job(plan, job, finished=True)

    def _report_job(self, plan: Plan, job: Job, *, finished: bool) -> None:
        what = f"{job.variant}, lr {job.lr:g}, seed {job.seed}"
        what += f", batches of {job.batch_size}" if job.stage == BATCH else ""
        self._report(job.stage, what, finished=finished, plan=plan)

    def _report(self, stage: str, what: str, *, finished: bool, plan: Plan | None = None) -> None:
        budget_left = max(0.0, self.deadline - time.monotonic())
        if plan is None:
            self.tell(Status(stage, what, finished, 0.0, budget_left))
            return
        total, done = self._work(plan)
        left = min(budget_left, (total - done) / plan.workers)
        self.tell(Status(stage, what, finished, done / total, left))

    def _work(self, plan: Plan) -> tuple[float, float]:
        """Return the planned and the finished seconds of all processes together."""
        size = self.settings.batch_size

        def seconds(job: Job) -> float:
            return plan.seconds(job, self.data, size)

        total = sum(seconds(job) for job in outline(self.settings, plan))
        done = sum(seconds(job_of(record)) for record in self.journal.records)
        done += sum(share * seconds(job) for job, share in self.shares.values())
        return total, min(done, total)
