"""What a person sees while work goes on: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gammabeta.data.dataset import Progress as DataProgress
from gammabeta.files import to_json
from gammabeta.training.events import BatchDone, EpochDone, Event, Listener, LossLogged

PAUSE = 10.0
"""Seconds between two lines of progress where there is no terminal."""
_BYTES_FROM = 2**20  # totals from here on are bytes of a transfer, not files


class Screen(Console):
    """A console that knows whether the user wants to see work go on, or its result alone."""

    shows_work = True

    def narrate(self, text: str) -> None:
        """Print what belongs to the work, not to its result."""
        if self.shows_work:
            self.print(text)


def open_console(as_json: bool, quiet: bool = False) -> Screen:
    """Return where progress and results for people go: stdout, or stderr beside JSON."""
    stream = sys.stderr if as_json else sys.stdout
    screen = Screen(file=stream, highlight=False, soft_wrap=True, markup=False)
    screen.shows_work = not quiet
    if not screen.is_terminal:
        screen.width = 10_000  # a table in a file or a pipe keeps its long paths whole
    return screen


class Pace:
    """Says when a line of progress is due where there is no terminal: not often.

    Args:
        seconds: Between two lines at least; also before the first.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = PAUSE if seconds is None else seconds
        self.rest()

    def rest(self) -> None:
        """Begin another pause; something has just been said."""
        self.due_at = time.monotonic() + self.seconds

    def is_due(self) -> bool:
        """Tell whether to print a line now; if so, another pause begins."""
        due = time.monotonic() >= self.due_at
        if due:
            self.rest()
        return due


def print_json(document: Mapping[str, Any]) -> None:
    """Print the one JSON document of a command to stdout, with null for NaN and infinity."""
    sys.stdout.write(to_json(document, indent=2))
    sys.stdout.write("\n")


@contextmanager
def side_result(what: str) -> Iterator[None]:
    """Let the block fail with a warning alone: no picture is worth a command's result."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - a drawing library may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(f"gammabeta: warning: without {what}: {reason}", file=sys.stderr)


class SideListener:
    """A listener that is dropped, with a warning, when it fails.

    Args:
        what: What it writes, in words.
        make: Makes it; may fail too.
    """

    def __init__(self, what: str, make: Callable[[], Listener]) -> None:
        self.what = what
        self.listener: Listener | None = None
        with side_result(what):
            self.listener = make()

    def __call__(self, event: Event) -> None:
        """Pass one event on."""
        listener, self.listener = self.listener, None
        if listener:
            with side_result(self.what):
                listener(event)
                self.listener = listener


@contextmanager
def training_listener(console: Screen, epochs: int, batches: int, done: int) -> Iterator[Listener]:
    """Show a training: a bar with loss, accuracy, rate, speed and time left, or the log lines.

    Args:
        console: Where to show it.
        epochs: Epochs of the whole training.
        batches: Batches an epoch.
        done: Batches already done by the run that is resumed.
    """
    if not (console.is_terminal and console.shows_work):
        yield _TrainingLines(console, epochs * batches, done) if console.shows_work else _ignore
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=epochs * batches, completed=done, numbers="")

        def show(event: Event) -> None:
            if isinstance(event, BatchDone):
                bar.update(
                    task,
                    advance=1,
                    description=f"epoch {event.epoch}/{epochs}",
                    numbers=f"loss {event.loss:.3f}  acc {100 * event.accuracy:.1f} %  "
                    f"lr {event.lr:.4f}  {event.images_per_second:,.0f} images/s",
                )
            elif isinstance(event, EpochDone):
                _print_line(console, event)

        yield show


def _ignore(*_: object) -> None:
    """Take what nobody wants to see."""


class _TrainingLines:
    """Prints the log's lines, and a line of progress where these come seldom."""

    def __init__(self, console: Console, steps: int, done: int) -> None:
        self.console = console
        self.began = time.monotonic()
        self.steps_left = self.steps = steps - done
        self.pace = Pace()

    def __call__(self, event: Event) -> None:
        if isinstance(event, BatchDone):
            self.steps_left -= 1
            if self.pace.is_due():
                self.console.print(self._progress(event))
        elif isinstance(event, LossLogged | EpochDone):
            _print_line(self.console, event)
            self.pace.rest()

    def _progress(self, event: BatchDone) -> str:
        spent = time.monotonic() - self.began
        left = self.steps_left * spent / (self.steps - self.steps_left)
        return (
            f"epoch {event.epoch}, batch {event.batch} of {event.batches}: loss {event.loss:.3f}, "
            f"{event.images_per_second:,.0f} images/s, about {duration(left)} left"
        )


def _print_line(console: Console, event: Event) -> None:
    if isinstance(event, LossLogged):
        console.print(f"[{event.epoch}, {event.batch:5d}] loss: {event.loss:.3f}", markup=False)
    elif isinstance(event, EpochDone):
        console.print(
            f"epoch {event.epoch}/{event.epochs}: train loss {event.train_loss:.3f}, "
            f"{100 * event.train_accuracy:.2f} %; test loss {event.test_loss:.3f}, "
            f"{100 * event.test_accuracy:.2f} %; {event.images_per_second:,.0f} images/s, "
            f"{duration(event.seconds)}"
        )


@contextmanager
def data_progress(console: Console) -> Iterator[DataProgress]:
    """Show downloads and decoding: a bar on a terminal, else a line from time to time."""
    if isinstance(console, Screen) and not console.shows_work:
        yield _ignore
        return
    if not console.is_terminal:
        yield _DataLines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total, amount="")
            bar.update(tasks[what], completed=done, total=total, amount=_amount(done, total))

        yield show


class _DataLines:
    """Prints ``what: 30 % (51 of 170 MB)`` from time to time."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.pace = Pace()

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.pace.is_due():
            share = 100 * done // max(total, 1)
            self.console.print(f"{what}: {share} % ({_amount(done, total)})")


def _amount(done: int, total: int) -> str:
    if total >= _BYTES_FROM:
        return f"{done / 1e6:.0f} of {total / 1e6:.0f} MB"
    return f"{done} of {total}"


def duration(seconds: float) -> str:
    """Return a span of time as people say it.

    Example:
        >>> duration(7.25), duration(200), duration(7322)
        ('7.2 s', '3 min 20 s', '2 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
