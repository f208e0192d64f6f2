"""What a training tells its listeners, and the listeners that write it down.

A listener is any callable that takes an event. The trainer knows none of them by name, so a
progress bar, a log file and TensorBoard are all the same to it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidatorFunctionWrapHandler, WrapValidator

from gammabeta.errors import RunError
from gammabeta.extras import require
from gammabeta.files import to_json, write_atomically
from gammabeta.schema import STRICT, parse

LOG_EVERY = 100
"""Batches between two logged losses, as in the tutorial."""


def _or_null(value: object, number: ValidatorFunctionWrapHandler) -> object:
    """Take null for a number that JSON does not know: NaN or infinity."""
    return math.nan if value is None else number(value)


Number = Annotated[int, Field(ge=1)]
Real = Annotated[float, WrapValidator(_or_null)]


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

    __pydantic_config__ = STRICT

    epoch: Number
    batch: Number
    step: Number
    loss: Real
    lr: Real
    images_per_second: Real
    kind: Literal["step"] = "step"


@dataclass(frozen=True)
class Evaluating:
    """Some images of the test split have been measured."""

    done: int
    total: int


@dataclass(frozen=True)
class EpochDone:
    """An epoch was trained and measured."""

    __pydantic_config__ = STRICT

    epoch: Number
    epochs: Number
    step: Number
    train_loss: Real
    train_accuracy: Real
    test_loss: Real
    test_accuracy: Real
    lr: Real
    images_per_second: Real
    seconds: Real
    kind: Literal["epoch"] = "epoch"


Record = LossLogged | EpochDone
"""What is written down: a line of ``metrics.jsonl`` each."""
Line = Annotated[Record, Field(discriminator="kind")]
Event = BatchDone | Evaluating | Record
Listener = Callable[[Event], None]


class MetricsFile:
    """Appends a JSON line to ``metrics.jsonl`` for each logged loss and each epoch, flushed.

    Args:
        path: The file; it is begun anew.
        records: What it begins with: the history of the training that is resumed.
    """

    def __init__(self, path: Path, records: Iterable[Record] = ()) -> None:
        self.path = path
        content = "".join(map(_line, records)).encode()
        write_atomically(path, lambda file: file.write(content))

    def __call__(self, event: Event) -> None:
        """Write one event down, if it is one to keep."""
        if not isinstance(event, Record):
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(event))
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot be written ({error.strerror}); the last checkpoint beside it "
                "is whole. Free some space, then continue with --resume"
            ) from error


def _line(record: Record) -> str:
    return to_json({"kind": record.kind} | dataclasses.asdict(record)) + "\n"


def read_metrics(path: Path) -> list[Record]:
    """Return the records of a metrics file; a last line that a crash cut off is left out.

    Raises:
        RunError: If any other line is not a record; the message says which.
    """
    if not path.exists():
        return []
    *whole, last = path.read_bytes().split(b"\n")  # the last one is empty, or cut off
    records = [_record(line, f"{path}: line {i}") for i, line in enumerate(whole, 1)]
    with suppress(RunError):
        records.append(_record(last, path))
    return records


def _record(line: bytes, source: object) -> Record:
    record: Record = parse(Line, line, source)
    return record


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
        if not isinstance(event, Record):
            return
        for name, value in dataclasses.asdict(event).items():
            if isinstance(value, float):
                prefix = "step" if isinstance(event, LossLogged) else "epoch"
                self.writer.add_scalar(f"{prefix}/{name}", value, event.step)
        self.writer.flush()
