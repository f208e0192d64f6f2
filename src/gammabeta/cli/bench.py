"""``gammabeta bench``: the speed and memory of every backend on this machine, as ratios."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from gammabeta.cli import options

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from gammabeta.bench.report import Report, Row
    from gammabeta.cli.console import Screen


def bench(
    model: Annotated[
        str,
        typer.Option(
            help="Whose training step is measured; batch norms of its largest layers are the "
            "blocks.",
            metavar="[net|torchvision:NAME|timm:NAME]",
        ),
    ] = "net",
    precision: Annotated[
        str | None,
        typer.Option(
            help="Default: both where the CPU has bf16 instructions, else fp32.",
            metavar="[fp32|bf16|both]",
            autocompletion=options.one_of("fp32", "bf16", "both"),
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=2, help="Images a step. [net 128, others 32]", show_default=False),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=1, help="Pixels a side. [net 32, others 64]", show_default=False),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Times that everyone takes a turn. Default: as often as fits into the time.",
            show_default=False,
        ),
    ] = None,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Whether torch.compile takes part. Default: in blocks, and in the step of net; "
            "a deep model takes it minutes.",
            show_default=False,
        ),
    ] = None,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure speed and memory on this machine: eager torch, torch.compile, gammabeta.

    Blocks (batch norm, ReLU, pooling; forward and backward) and whole
    training steps, in turn, in one process with one allocator. Each is held
    against eager PyTorch and against a floor: copying the bytes that a block
    must move; a model's convolutions and linear layers alone. Under two
    minutes for net on two cores, otherwise idle.

    Examples:
      gammabeta bench
      gammabeta bench --model torchvision:resnet18 --precision fp32
      gammabeta bench --model timm:mobilenetv3_small_100 --image-size 96 --json
    """
    from gammabeta import runtime
    from gammabeta.bench.jobs import Settings
    from gammabeta.bench.run import bench as measure
    from gammabeta.cli.console import open_console, print_json

    machine = runtime.configure("fp32", "cpu", threads)  # the allocator, before any tensor
    settings = Settings(
        model,
        _precisions(precision),
        batch_size,
        image_size,
        rounds,
        compile_model=compiled,
        compile_blocks=compiled is not False,
    )
    with _progress(open_console(True, quiet)) as progress:
        report = measure(settings, machine, progress)
    if as_json:
        print_json(report.to_dict())
    else:
        _print(open_console(False), report)


def _precisions(asked: str | None) -> tuple[str, ...]:
    from gammabeta.errors import GammabetaError
    from gammabeta.runtime import has_bf16_instructions

    if asked is None:
        return ("fp32", "bf16") if has_bf16_instructions() else ("fp32",)
    if asked not in {"fp32", "bf16", "both"}:
        raise GammabetaError(f"precision is {asked!r}, but must be fp32, bf16 or both")
    return ("fp32", "bf16") if asked == "both" else (asked,)


@contextmanager
def _progress(console: Screen) -> Iterator[Callable[[str, float], None]]:
    """Show what is being measured: a bar on a terminal, else a line from time to time."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    if not (console.is_terminal and console.shows_work):
        yield _Lines(console)
        return
    columns = (
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda what, share: bar.update(task, completed=share, description=what)


class _Lines:
    """Prints the piece of work, which stands before the colon, from time to time."""

    def __init__(self, console: Screen) -> None:
        from gammabeta.cli.console import Pace

        self.console = console
        self.pace = Pace()

    def __call__(self, what: str, share: float) -> None:
        if share < 1 and self.pace.is_due():
            self.console.narrate(f"{100 * share:3.0f} % {what.partition(': ')[0]}")


def _print(console: Console, report: Report) -> None:
    head = report.header
    console.print(
        f"{head['cpu']}, {head['threads']} threads, torch {head['torch']}; allocator "
        f"{head['allocator']}; copies move {head['copy_gb_per_second']:.1f} GB/s\n"
        f"{head['model']}: batches of {head['batch_size']}, {head['image_size']} pixels\n"
    )
    for rows in report.groups():
        console.print(f"{rows[0].what}, {rows[0].precision}", style="bold")
        console.print(_table(rows))
    console.print(
        "ms: median; ±: half the interquartile range. NCHW, ch.-last: times as fast as eager torch "
        "in that layout.\nfloor: times as long as the floor. MB: live tensors at their peak; "
        "share: of eager channels-last's.\n"
    )
    for line in [*report.summary(), *(f"note: {note}" for note in report.notes)]:
        console.print(line)


def _table(rows: list[Row]) -> Table:
    """Return one piece of work as a table; fixed widths make all of them line up."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("", min_width=30)
    for header in ("ms", "±", "NCHW", "ch.-last", "floor", "MB", "share"):
        table.add_column(header, justify="right", min_width=5)
    rivals = [row for row in rows if not row.is_floor]
    best = min(rivals, key=lambda row: row.milliseconds)
    for row in rows:
        table.add_row(*_cells(row), style="green" if row is best else None)
    table.add_row()
    return table


def _cells(row: Row) -> list[str]:
    cells = [f"  {row.subject}", figures(row.milliseconds), f"{row.spread_percent / 2:.0f} %"]
    if row.peak_mb is None or row.memory_of_eager_channels_last is None:
        return cells  # of a floor
    return [
        *cells,
        figures(row.speedup_over_eager_nchw),
        figures(row.speedup_over_eager_channels_last),
        figures(row.times_floor),
        figures(row.peak_mb),
        f"{100 * row.memory_of_eager_channels_last:.0f} %",
    ]


def figures(value: float, count: int = 3) -> str:
    """Return a number to three figures, and never with an exponent.

    Example:
        >>> figures(0.12345), figures(1.0), figures(98.76), figures(1234.5)
        ('0.123', '1.00', '98.8', '1234')
    """
    import math

    if value <= 0 or not math.isfinite(value):
        return f"{value:g}"
    rounded = float(f"{value:.{count}g}")  # 0.9999 is 1.00, not 1.000
    return f"{value:.{max(0, count - 1 - math.floor(math.log10(rounded)))}f}"
