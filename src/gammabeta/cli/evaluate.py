"""``gammabeta evaluate``: measure a saved model on the test split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gammabeta.cli import options

if TYPE_CHECKING:
    from rich.console import Console

    from gammabeta.data.dataset import Dataset
    from gammabeta.models import Net
    from gammabeta.training.evaluate import Evaluation


def evaluate(
    run: Annotated[
        Path | None,
        typer.Argument(help="The run's folder. Optional beside --weights.", show_default=False),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Measure this checkpoint instead: safetensors, or torch.save of a state_dict.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Another data set with the same classes. Default: the run's own; cifar10 beside "
            "--weights alone.",
            metavar="[cifar10|digits|DIR]",
            show_default=False,
        ),
    ] = None,
    root: options.Root = None,
    skip_unreadable: options.SkipUnreadable = False,
    confusion: Annotated[
        Path | None,
        typer.Option(
            help="Where the confusion matrix is drawn (PNG). Default: RUN/confusion.png, or "
            "nowhere with --weights.",
            show_default=False,
        ),
    ] = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Measure a saved model on the test split: loss, accuracy, each class, confusion matrix.

    Eval mode, no augmentation, float32; the same counts every time.

    Examples:
      gammabeta evaluate runs/digits-anneal-1
      gammabeta evaluate --weights tutorial.pth
    """
    from time import perf_counter

    from gammabeta import runtime
    from gammabeta.cli.console import open_console, print_json
    from gammabeta.training import evaluate as measuring
    from gammabeta.training.plots import plot_confusion

    console = open_console(as_json)
    machine = runtime.configure("fp32", threads=threads)
    if verbose:
        console.print(machine.describe(), markup=False)
    source, model, dataset = _open(console, run, weights, data, root, skip_unreadable)
    began = perf_counter()
    result = measuring.evaluate(model.to(machine.device), dataset.test, dataset.normalization)
    speed = result.total / (perf_counter() - began)
    _print(console, result, dataset, source)
    if as_json:
        print_json(_document(result, dataset, source, speed))
    picture = confusion or (run / "confusion.png" if run and not weights else None)
    if picture:
        title = f"{source.name}: {100 * result.accuracy:.2f} % of {result.total}"
        plot_confusion(result.confusion, dataset.classes, title, picture)
        console.print(f"confusion matrix: {picture}")


def _open(
    console: Console,
    run: Path | None,
    weights: Path | None,
    data: str | None,
    root: Path | None,
    skip_unreadable: bool,
) -> tuple[Path, Net, Dataset]:
    """Return where the model comes from, the model, and the data to measure it on."""
    from gammabeta.cli.console import data_progress
    from gammabeta.data import load
    from gammabeta.errors import GammabetaError
    from gammabeta.models import Net
    from gammabeta.training.checkpoint import apply_weights, load_weights
    from gammabeta.training.run import Run

    source = weights or run
    if source is None:
        raise GammabetaError("nothing to evaluate: name a run's folder, or a file with --weights")
    opened = Run.open(run) if run else None
    with data_progress(console) as progress:
        if opened and data is None:
            dataset = opened.config.load_data(root, progress)
        else:
            dataset = load(
                data or "cifar10",
                root=root,
                image_size=opened.config.image_size if opened else 32,
                skip_unreadable=skip_unreadable,
                progress=progress,
            )
    if opened:
        _match_classes(opened.path, opened.config.classes, dataset)
        return source, opened.load_model(weights), dataset
    model = Net(len(dataset.classes), dataset.image_size)
    apply_weights(model, load_weights(source), source)
    return source, model, dataset


def _match_classes(path: Path, classes: tuple[str, ...], dataset: Dataset) -> None:
    from gammabeta.errors import GammabetaError

    if classes != dataset.classes:
        raise GammabetaError(
            f"{dataset.name} has the classes {', '.join(dataset.classes)}, but {path} was trained "
            f"on {', '.join(classes)}"
        )


def _print(console: Console, result: Evaluation, dataset: Dataset, source: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    counts = result.confusion.sum(axis=1)
    table = Table("class", "accuracy", "images", "most often taken for", box=None)
    for i, (name, share) in enumerate(zip(dataset.classes, result.class_accuracy, strict=True)):
        others = result.confusion[i].copy()
        others[i] = 0
        worst = others.argmax()
        taken = f"{dataset.classes[worst]} ({others[worst]})" if others[worst] else ""
        table.add_row(
            Text(name),
            "-" if share is None else f"{100 * share:.1f} %",
            str(counts[i]),
            Text(taken),
        )
    console.print(table)
    console.print(
        f"Accuracy of {source} on the {result.total} test images of {dataset.name}: "
        f"{100 * result.accuracy:.2f} % ({result.correct} correct), loss {result.loss:.4f}"
    )


def _document(
    result: Evaluation, dataset: Dataset, source: Path, images_per_second: float
) -> dict[str, Any]:
    return {
        "run": str(source),
        "data": dataset.name,
        "accuracy": result.accuracy,
        "correct": result.correct,
        "total": result.total,
        "loss": result.loss,
        "images_per_second": images_per_second,
        "classes": list(dataset.classes),
        "class_accuracy": result.class_accuracy,
        "confusion": result.confusion.tolist(),
    }
