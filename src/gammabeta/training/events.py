"""What a training tells its listeners, and the listeners that write it down.

A listener is any callable that takes an event. The trainer knows none of them by name, so a
progress bar, a log file and TensorBoard are all the same to it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gammabeta.errors import RunError
from gammabeta.extras import require
from gammabeta.files import write_atomically

LOG_EVERY = 100
"""Batches between two logged losses, as in the tutorial."""


@dataclass(frozen=True)
class BatchDone:
    """A step was taken. ``batch`` and ``epoch`` count from 1; loss and accuracy are the epoch's."""

    epoch: int
    batch: int
    batches: int
    loss: float
    accuracy: float
    lr: float
    images_per_second: float


@dataclass(frozen=True)
class LossLogged:
    """Every ``LOG_EVERY`` batches: the mean loss since the last such event."""

    epoch: int
    batch: int
    step: int
    loss: float
    lr: float
    images_per_second: float


@dataclass(frozen=True)
class Evaluating:
    """Some images of the test split have been measured."""

    done: int
    total: int


@dataclass(frozen=True)
class EpochDone:
    """An epoch was trained and measured."""

    epoch: int
    epochs: int
    step: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    lr: float
    images_per_second: float
    seconds: float


Event = BatchDone | LossLogged | Evaluating | EpochDone
Listener = Callable[[Event], None]


class MetricsFile:
    """Appends a JSON line to ``metrics.jsonl`` for each logged loss and each epoch, flushed.

    Args:
        path: The file. Lines past the given position are cut off first: they were written after
            the checkpoint that is being resumed, and will be written again.
        epochs: Complete epochs in that checkpoint.
        steps: Steps in that checkpoint.
    """

    def __init__(self, path: Path, epochs: int = 0, steps: int = 0) -> None:
        self.path = path
        kept = [
            r
            for r in read_metrics(path)
            if r["step"] <= steps and (r["kind"] == "step" or r["epoch"] <= epochs)
        ]
        content = "".join(json.dumps(r) + "\n" for r in kept).encode()
        write_atomically(path, lambda file: file.write(content))

    def __call__(self, event: Event) -> None:
        """Write one event down, if it is one to keep."""
        if not isinstance(event, LossLogged | EpochDone):
            return
        kind = "step" if isinstance(event, LossLogged) else "epoch"
        line = json.dumps({"kind": kind} | dataclasses.asdict(event)) + "\n"
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot be written ({error.strerror}); the last checkpoint beside it "
                "is whole. Free some space, then continue with --resume"
            ) from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics file; a line cut off by a crash ends the list."""
    records: list[dict[str, Any]] = []
    if not path.exists():
        return records
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


class TensorBoard:
    """Writes the same numbers as TensorBoard events.

    Args:
        folder: Where the event files go.
        step: First step to come; older events from a resumed run past it are hidden.

    Raises:
        GammabetaError: If the package tensorboard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        require("tensorboard")
        from torch.utils.tensorboard.writer import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=step)

    def __call__(self, event: Event) -> None:
        """Write one event, if it is one to keep."""
        if not isinstance(event, LossLogged | EpochDone):
            return
        for name, value in dataclasses.asdict(event).items():
            if isinstance(value, float):
                prefix = "step" if isinstance(event, LossLogged) else "epoch"
                self.writer.add_scalar(f"{prefix}/{name}", value, event.step)
        self.writer.flush()
