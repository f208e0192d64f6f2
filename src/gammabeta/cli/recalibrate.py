"""``gammabeta recalibrate``: a copy of a run whose batch norms know the training data exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gammabeta.cli import options

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from gammabeta.data.dataset import Dataset
    from gammabeta.data.loader import Loader
    from gammabeta.models import Net
    from gammabeta.population import Recalibration
    from gammabeta.training.evaluate import Evaluation
    from gammabeta.training.run import Run

SAMPLES = 10_000
"""Wu & Johnson 2021, arXiv:2105.07576, section 3: 10³ to 10⁴ samples are enough."""


def recalibrate(
    run: Annotated[Path, typer.Argument(help="The run's folder.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The new run's folder. Default: RUN-recalibrated-1, -2, … beside it.",
            show_default=False,
        ),
    ] = None,
    weights: options.Weights = None,
    data: options.OtherData = None,
    root: options.Root = None,
    skip_unreadable: options.SkipUnreadable = False,
    samples: Annotated[
        int, typer.Option(min=2, help="Training images to measure, drawn at random.")
    ] = SAMPLES,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a forward pass.")] = 128,
    sequential: Annotated[
        bool,
        typer.Option(
            "--sequential/--one-pass",
            help="Feed each layer as eval mode will (the result depends on no batch size), or by "
            "layers that use each batch's own statistics, as in training.",
        ),
    ] = True,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Give a run's batch norms the exact statistics of its training data, in a new run.

    Running statistics lag behind the weights; these are measured under the
    final ones, on images augmented as in training. Accuracy on the test split
    is shown before and after; RUN itself is left as it is.

    Examples:
      gammabeta recalibrate runs/cifar10-anneal-1
      gammabeta recalibrate runs/cifar10-anneal-1 --samples 50000 --out runs/exact
    """
    from gammabeta.training.folder import expect_run

    expect_run(run)

    from gammabeta import runtime
    from gammabeta.cli.console import open_console, print_json
    from gammabeta.cli.source import Place, load_data, load_model, open_run
    from gammabeta.training.evaluate import evaluate
    from gammabeta.training.run import fresh_path, refuse_occupied, refuse_unwritable
    from gammabeta.training.weights import broken, check_finite

    console = open_console(as_json, quiet)
    machine = runtime.configure("fp32", device, threads)
    if verbose:
        console.print(machine.describe())
    opened = open_run(run)
    home = run.resolve()
    path = out or fresh_path(home.parent if run.name in {"", "."} else run.parent,
                             f"{home.name}-recalibrated")  # fmt: skip
    refuse_occupied(path, training=False)
    refuse_unwritable(path)
    model = load_model(console, opened, weights, broken_statistics=True).to(machine.device)
    opened, dataset = load_data(console, opened, Place(data, root, skip_unreadable))
    config = opened.config
    before = None if broken(model) else evaluate(model, dataset.test, config.normalization)
    report = _measure(console, opened, model, dataset, (samples, batch_size, sequential))
    check_finite(model, weights or run)
    after = evaluate(model, dataset.test, config.normalization)
    document = _document(report, before, after, path, weights or run)
    _save(opened, path, model, document)
    _print(console, report, before, after, path)
    if as_json:
        print_json(document)


def _measure(
    console: Console, run: Run, model: Net, dataset: Dataset, how: tuple[int, int, bool]
) -> Recalibration:
    """Recalibrate on training images, augmented and shuffled as an epoch of the training was."""
    from gammabeta.cli.console import data_progress
    from gammabeta.data.loader import Loader
    from gammabeta.population import recalibrate as measure

    samples, batch_size, sequential = how
    config = run.config
    seed, epoch = config.recipe.seed, config.recipe.epochs  # the epoch after the last
    loader = Loader(
        dataset.train, batch_size, config.normalization, dataset.augmentation, seed=seed
    )
    with data_progress(console) as progress:
        images = _Images(loader, epoch, min(samples, len(dataset.train)))
        return measure(model, images, sequential=sequential, progress=progress)


@dataclass(frozen=True)
class _Images:
    """The first images of an epoch, in batches."""

    loader: Loader
    epoch: int
    samples: int

    def __len__(self) -> int:
        return min(-(-self.samples // self.loader.batch_size), len(self.loader))

    def __iter__(self) -> Iterator[Tensor]:
        left = self.samples
        for images, _ in self.loader.epoch(self.epoch):
            yield images[:left]
            left -= len(images)
            if left <= 0:
                return


def _document(
    report: Recalibration, before: Evaluation | None, after: Evaluation, path: Path, source: Path
) -> dict[str, Any]:
    return {
        "run": str(path),
        "source": str(source),
        "accuracy_before": before.accuracy if before else None,
        "accuracy": after.accuracy,
        "correct_before": before.correct if before else None,
        "correct": after.correct,
        "total": after.total,
        "loss_before": before.loss if before else None,
        "loss": after.loss,
        **report.to_dict(),
    }


def _save(run: Run, path: Path, model: Net, document: dict[str, Any]) -> None:
    from gammabeta.files import to_json

    content = to_json(document, indent=2).encode() + b"\n"
    run.copy_with(path, model, {"recalibration.json": content})


def _print(
    console: Console,
    report: Recalibration,
    before: Evaluation | None,
    after: Evaluation,
    path: Path,
) -> None:
    import shlex

    from gammabeta.cli.naming import program

    console.print(str(report))
    console.print(
        f"measured {report.samples:,} images (se: standard errors, σ: the channel's deviation)\n"
        f"accuracy on the {after.total} test images: {_compared(before, after)}\n"
        f"saved in {path}\n"
        f"Try next:\n  {program()} export {shlex.quote(str(path))} model.onnx"
    )


def _compared(before: Evaluation | None, after: Evaluation) -> str:
    """Say what recalibration changed; a model with broken statistics had no accuracy."""
    if before is None:
        return f"none before, {100 * after.accuracy:.2f} % after; loss {after.loss:.4f}"
    return (
        f"{100 * before.accuracy:.2f} % before, {100 * after.accuracy:.2f} % after "
        f"({after.correct - before.correct:+d} images); "
        f"loss {before.loss:.4f} before, {after.loss:.4f} after"
    )
