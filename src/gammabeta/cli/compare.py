"""``gammabeta compare``: train variants of the network, and judge the claims about batch norm."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gammabeta.cli import options
from gammabeta.cli.streams import stop_requests
from gammabeta.errors import GammabetaError

if TYPE_CHECKING:
    from rich.console import Console

    from gammabeta.cli.console import Screen
    from gammabeta.insight.compare import Comparison
    from gammabeta.insight.compare.run import Status

_TITLES = {
    "faster": "faster: fewer epochs",
    "accurate": "more accurate: points of test",
    "stable": "more stable: learning rates",
    "dropout": "less Dropout: points of its gain",
}
_ENDS = {
    "done": "all that was planned",
    "budget": "then the budget was spent; the same command goes on",
    "signal": "then it was stopped; the same command goes on",
}


def compare(
    data: options.Data = "cifar10",
    root: options.Root = None,
    skip_unreadable: options.SkipUnreadable = False,
    seeds: Annotated[
        int, typer.Option(min=1, help="Seeds a variant is trained with; one gives no verdict.")
    ] = 3,
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES",
            help="Time for everything. Default: 60, or 2.5 with fewer than 10,000 images.",
            show_default=False,
        ),
    ] = None,
    variants: Annotated[
        str, typer.Option(help="Two or more of them.", metavar="NAME,NAME…")
    ] = "bn,none,dropout,bn+dropout,groupnorm",
    rates: Annotated[
        str | None,
        typer.Option(
            help="Learning rates to try. Default: 0.003 to 3, half a decade apart.",
            metavar="LR,LR…",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Images a step. Default: 128, or 64 with fewer than 10,000 images.",
            show_default=False,
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=8, help="Pixels a side. [digits 16, others 32]", show_default=False),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="Of every variant. auto: bf16 where the CPU has instructions for it.",
            metavar="[auto|fp32|bf16]",
            autocompletion=options.one_of("auto", "fp32", "bf16"),
        ),
    ] = "auto",
    lang: Annotated[
        str | None,
        typer.Option(
            help="Language of the page. Default: the locale's.",
            metavar="[en|zh]",
            autocompletion=options.one_of("en", "zh"),
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The page; results (.json) and the journal (.jsonl) lie beside it. Default: "
            "compare-DATA.html.",
            show_default=False,
        ),
    ] = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Is it true? Train with and without batch norm, and judge four claims.

    Faster, more accurate, more stable, less Dropout: each variant over a sweep
    of learning rates and several seeds, in the same order of the same data,
    within a budget of minutes. Stop it at any time; the same command goes on.

    Examples:
      gammabeta compare --data digits
      gammabeta compare --budget 60 --out claims.html
      gammabeta compare --variants bn,none --seeds 5 --lang zh
    """
    from gammabeta.cli.console import open_console, print_json
    from gammabeta.insight.compare import compare as run
    from gammabeta.insight.render import default_lang

    page = out or Path(f"compare-{Path(data).name}.html")
    if page.suffix != ".html":
        raise GammabetaError(f"out is {page}, but the page's name must end in .html")
    chosen = lang or default_lang()
    if chosen not in {"en", "zh"}:
        raise GammabetaError(f"lang is {chosen!r}, but must be en or zh")
    console = open_console(as_json, quiet)
    with stop_requests() as stop_requested, _progress(console) as tell:
        comparison = run(
            data,
            journal=page.with_suffix(".jsonl"),
            root=root,
            variants=[name.strip() for name in variants.split(",")],
            seeds=seeds,
            seed=seed,
            budget=budget,
            **({"rates": _numbers(rates)} if rates is not None else {}),
            batch_size=batch_size,
            image_size=image_size,
            skip_unreadable=skip_unreadable,
            precision=precision,
            note=console.print,
            command=_command(),
            tell=tell,
            stop_requested=stop_requested,
        )
    _write(comparison, page, chosen)
    _print(console, comparison, page)
    if as_json:
        print_json(comparison.to_dict())
    if stop_requested():
        raise typer.Exit(128 + stop_requested())


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise GammabetaError(f"rates is {text!r}, but must be numbers such as 0.01,0.1") from None


def _command() -> str:
    import sys

    from gammabeta.cli.naming import program

    return f"{program()} {shlex.join(sys.argv[1:])}"


@contextmanager
def _progress(console: Screen) -> Iterator[Callable[[Status], None]]:
    """Show a bar with the time left on a terminal, else a line from time to time."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    if not (console.is_terminal and console.shows_work):
        yield _Lines(console)
        return
    columns = (
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=1.0, left="")

        def show(status: Status) -> None:
            text = f"{status.stage}: {status.what}"
            bar.update(task, completed=status.share, description=text, left=_left(status))

        yield show


class _Lines:
    """Prints a finished training, or the pilot's state, from time to time."""

    def __init__(self, console: Screen) -> None:
        from gammabeta.cli.console import Pace

        self.console = console
        self.pace = Pace()

    def __call__(self, status: Status) -> None:
        if (status.finished or status.stage == "pilot") and self.pace.is_due():
            share = f"{100 * status.share:3.0f} %"
            self.console.narrate(f"{share} {status.stage}: {status.what}; {_left(status)}")


def _left(status: Status) -> str:
    from gammabeta.cli.console import duration

    return f"{duration(max(1.0, status.seconds_left))} left"


def _write(comparison: Comparison, page: Path, lang: str) -> None:
    from gammabeta.files import to_json, write_atomically

    text = to_json(comparison.to_dict(), indent=1)
    comparison.to_html(page, lang)
    write_atomically(page.with_suffix(".json"), lambda file: file.write(text.encode() + b"\n"))


def _print(console: Console, comparison: Comparison, page: Path) -> None:
    from gammabeta.insight.compare.page import card

    for claim in comparison.claims:
        shown = card(claim.to_dict())
        interval = " to ".join(shown["interval"] or [])
        console.print(
            f"{_TITLES[claim.id]:32} {claim.verdict:14} {shown['big']}"
            + (f" ({interval})" if interval else "")
        )
    ended = comparison.machine["ended_by"]
    console.print(f"{len(comparison.records)} trainings, {_ENDS[ended]}\npage: {page}")
