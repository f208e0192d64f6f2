"""One training of a comparison: what is asked for, and the record that comes out.

The step, the schedule's shape, the loss and the loader are those of ``gammabeta train`` with the
recipe ``anneal``: warm-up to the job's learning rate over the first fifth of its steps, then
linearly to zero; SGD with Nesterov momentum. A record is a function of the job, the data and the
number of threads; only what a clock says differs from run to run.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.data.loader import Loader
from gammabeta.insight.compare.landscape import along_the_step, known
from gammabeta.insight.compare.settings import HeldOut
from gammabeta.models import variant
from gammabeta.training.evaluate import evaluate
from gammabeta.training.recipe import RECIPES, Recipe
from gammabeta.training.step import make_optimizer, train_step

SWEEP, FULL, BATCH = "sweep", "full", "batch"
NEAR_CHANCE = 0.99
"""A training whose last loss is above this share of ln(classes) has learned nothing."""
TAIL = 0.1
"""Share of the steps, at the end, whose mean loss is the final training loss."""
POINTS = 12
"""Measurements during a full training; closer together at its beginning."""
WALKS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Where in a full training the landscape is looked at, as shares of its steps."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training to be done.

    Args:
        stage: "sweep" (short), "full" or "batch" (short, of another batch size).
        variant: One of ``gammabeta.models.VARIANTS``.
        lr: Peak of the learning rate.
        seed: Decides initial weights, order, augmentation and Dropout.
        steps: Length.
        batch_size: Images a step.
    """

    stage: str
    variant: str
    lr: float
    seed: int
    steps: int
    batch_size: int

    @property
    def key(self) -> str:
        """A name that no other job of the comparison has."""
        return " ".join(str(value) for value in dataclasses.astuple(self))

    def recipe(self) -> Recipe:
        """Return the recipe ``anneal`` with this job's numbers."""
        return dataclasses.replace(
            RECIPES["anneal"], lr=self.lr, seed=self.seed, batch_size=self.batch_size
        )

    def points(self) -> set[int]:
        """Return the steps after which validation images are measured."""
        if self.stage != FULL:
            return {self.steps}
        return {math.ceil(self.steps * (i / POINTS) ** 1.5) for i in range(1, POINTS + 1)}

    def walks(self) -> set[int]:
        """Return the steps before which the landscape is looked at."""
        return {int(self.steps * share) for share in WALKS} if self.stage == FULL else set()


def job_of(record: Mapping[str, Any]) -> Job:
    """Return the job that a record is of."""
    return Job(**{field.name: record[field.name] for field in dataclasses.fields(Job)})


class Training:
    """A job under way.

    Args:
        job: What to train.
        data: On what.
        bf16: Whether convolutions and linear layers compute in bfloat16.
    """

    def __init__(self, job: Job, data: HeldOut, *, bf16: bool) -> None:
        self.job, self.data, self.bf16 = job, data, bf16
        self.recipe = job.recipe()
        self.loader = Loader(
            data.train,
            job.batch_size,
            data.dataset.normalization,
            data.dataset.augmentation,
            seed=job.seed,
        )
        self.model, self.optimizer = prepare(job, data)
        self.seconds = 0.0
        self.losses: list[float] = []
        self.gradient_norms: list[float] = []
        self.points: list[dict[str, Any]] = []
        self.walks: list[dict[str, Any]] = []
        self.best: tuple[float, dict[str, Any]] = (-1.0, {})

    def run(self, progress: Callable[[float], None] = lambda _: None) -> dict[str, Any]:
        """Train to the end, or until a loss is not finite, and return the record."""
        points, walks = self.job.points(), self.job.walks()
        entered = began = time.perf_counter()
        for step, (images, labels) in enumerate(self._batches()):
            if step in walks:
                self._walk(step, images, labels)
                began = time.perf_counter()
            finite = self._step(step, images, labels)
            self.seconds += time.perf_counter() - began
            if not finite:
                break
            self.gradient_norms.append(gradient_norm(self.model))
            if step + 1 in points:
                self._measure(step + 1)
            progress((step + 1) / self.job.steps)
            began = time.perf_counter()
        record = self._record()
        return record | {"wall_seconds": round(time.perf_counter() - entered, 4)}

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, left = 0, self.job.steps
        while left > 0:
            for batch in self.loader.epoch(epoch):
                if not left:
                    return
                yield batch
                left -= 1
            epoch += 1

    def _step(self, step: int, images: Tensor, labels: Tensor) -> bool:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate(step, self.job.steps)
        outcome = train_step(
            self.model,
            self.optimizer,
            images,
            labels,
            label_smoothing=self.recipe.label_smoothing,
            bf16=self.bf16,
        )
        self.losses.append(outcome.loss)
        return math.isfinite(outcome.loss)

    def _walk(self, step: int, images: Tensor, labels: Tensor) -> None:
        seen = along_the_step(
            self.model, images, labels, label_smoothing=self.recipe.label_smoothing
        )
        self.walks.append({"step": step, "epoch": self._epochs(step)} | seen)

    def _measure(self, step: int) -> None:
        since = self.points[-1]["step"] if self.points else 0
        recent = self.losses[since:]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            split = self.data.validation
            result = evaluate(self.model, split, self.data.dataset.normalization)
        point = {
            "step": step,
            "epoch": self._epochs(step),
            "seconds": round(self.seconds, 4),
            "train_loss": known(sum(recent) / len(recent)),
            "accuracy": result.accuracy,
        }
        self.points.append(point)
        if self.job.stage == FULL and result.accuracy >= self.best[0]:
            self.best = (result.accuracy, copy.deepcopy(self.model.state_dict()))

    def _epochs(self, step: int) -> float:
        return round(step * self.job.batch_size / len(self.data.train), 5)

    def _record(self) -> dict[str, Any]:
        outcome = judge(self.losses, self.job.steps, len(self.data.dataset.classes))
        finished = outcome != "nonfinite" and self.job.stage == FULL
        return {
            "kind": "job",
            **dataclasses.asdict(self.job),
            "outcome": outcome,
            "steps_taken": len(self.losses),
            "final_loss": known(final_loss(self.losses)),
            "train_seconds": round(self.seconds, 4),
            "points": self.points,
            "test": self._test() if finished else None,
            "loss": [known(value, 4) for value in self.losses],
            "gradient_norm": [known(value, 4) for value in self.gradient_norms],
            "landscape": self.walks,
        }

    def _test(self) -> dict[str, Any]:
        """Measure the last weights, and those that were best on the validation images."""
        last = self._test_accuracy()
        accuracy, weights = self.best
        if self.points[-1]["accuracy"] == accuracy:
            return {"last": last, "best": last}
        self.model.load_state_dict(weights)
        return {"last": last, "best": self._test_accuracy()}

    def _test_accuracy(self) -> float:
        return evaluate(self.model, self.data.test, self.data.dataset.normalization).accuracy


def prepare(job: Job, data: HeldOut) -> tuple[nn.Module, torch.optim.SGD]:
    """Return the variant with the weights of the job's seed, and its optimizer."""
    torch.manual_seed(job.seed)
    model = variant(job.variant, len(data.dataset.classes), data.dataset.image_size)
    model = model.to(memory_format=torch.channels_last).train()
    return model, make_optimizer(model, job.recipe())


def gradient_norm(model: nn.Module) -> float:
    """Return the l2 norm of all gradients together."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return float(torch.stack(torch._foreach_norm(gradients)).norm())


def final_loss(losses: list[float]) -> float:
    """Return the mean loss over the last tenth of the steps taken."""
    tail = losses[-max(1, round(TAIL * len(losses))) :]
    return sum(tail) / len(tail)


def judge(losses: list[float], steps: int, classes: int) -> str:
    """Return "trained", "chance" (learned nothing) or "nonfinite" (the loss exploded).

    Example:
        >>> judge([2.3, 1.9], 2, 10), judge([2.3, 2.31], 2, 10), judge([2.3, float("nan")], 5, 10)
        ('trained', 'chance', 'nonfinite')
    """
    if len(losses) < steps or not math.isfinite(losses[-1]):
        return "nonfinite"
    return "chance" if final_loss(losses) > NEAR_CHANCE * math.log(classes) else "trained"
