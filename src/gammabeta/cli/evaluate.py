"""``gammabeta evaluate``: measure a saved model on the test split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gammabeta.cli import options

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from gammabeta.cli.source import Place
    from gammabeta.data.dataset import Dataset, Normalization
    from gammabeta.training.evaluate import Evaluation


def evaluate(
    run: Annotated[
        Path | None,
        typer.Argument(
            help="The run's folder, or an exported .onnx file. Optional beside --weights.",
            show_default=False,
        ),
    ] = None,
    weights: options.Weights = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Another data set with the same classes. Default: the run's own; cifar10 beside "
            "--weights alone.",
            metavar="[cifar10|digits|DIR]",
            autocompletion=options.one_of("cifar10", "digits"),
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            help="What to measure. own: the test split; all images of a --data folder that has no "
            "splits. Of a folder also val, dev or eval.",
            metavar="[own|test|train|all]",
            autocompletion=options.one_of("own", "test", "train", "all"),
        ),
    ] = "own",
    root: options.Root = None,
    skip_unreadable: options.SkipUnreadable = False,
    confusion: Annotated[
        Path | None,
        typer.Option(
            help="Where the confusion matrix is drawn (PNG). Default: RUN/confusion.png, or "
            "nowhere with --weights or an .onnx file.",
            show_default=False,
        ),
    ] = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Measure a saved model: loss, accuracy, each class, confusion matrix.

    Eval mode, no augmentation, float32; the same counts every time. Measured is
    the test split, or all of a folder that has none and was not trained on.

    Examples:
      gammabeta evaluate runs/digits-anneal-1
      gammabeta evaluate --weights tutorial.pth
      gammabeta evaluate model.onnx
    """
    from gammabeta.training.folder import expect_run

    if run:
        expect_run(run)

    from contextlib import nullcontext
    from math import isfinite
    from time import perf_counter

    from gammabeta import runtime
    from gammabeta.cli.console import open_console, print_json, side_result
    from gammabeta.cli.model_file import is_model_file
    from gammabeta.cli.source import Place
    from gammabeta.errors import GammabetaError
    from gammabeta.training import evaluate as measuring

    console = open_console(as_json, quiet)
    machine = runtime.configure("fp32", device, threads)
    if verbose:
        console.print(machine.describe(), markup=False)
    where = Place(data, root, skip_unreadable, split)
    exported = run is not None and is_model_file(run)
    if run and exported:
        source, model, dataset, scaling = _open_file(console, run, weights, where, machine.threads)
    else:
        source, model, dataset = _open(console, run, weights, where)
        scaling = dataset.normalization
    began = perf_counter()
    result = measuring.evaluate(model.to(machine.device), dataset.test, scaling)
    speed = result.total / (perf_counter() - began)
    if not isfinite(result.loss):
        raise GammabetaError(
            f"{source}: computes NaN or infinity on {dataset.name}, so there is nothing to count; "
            "its weights or statistics are broken, or the images are not what it was trained on"
        )
    _print(console, result, dataset, source, split)
    if as_json:
        print_json(_document(result, dataset, source, speed) | {"split": split})
    unasked = run / "confusion.png" if run and not weights and not exported else None
    if picture := confusion or unasked:
        title = f"{source.name}: {100 * result.accuracy:.2f} % of {result.total}"
        with nullcontext() if confusion else side_result("the confusion matrix's picture"):
            from gammabeta.training.plots import plot_confusion

            plot_confusion(result.confusion, dataset.classes, title, picture)
            console.print(f"confusion matrix: {picture}")


def _open(
    console: Console,
    run: Path | None,
    weights: Path | None,
    where: Place,
) -> tuple[Path, nn.Module, Dataset]:
    """Return where the model comes from, the model, and the data to measure it on."""
    from gammabeta.cli.console import data_progress
    from gammabeta.cli.source import load_data, load_model, open_run, say
    from gammabeta.data import load
    from gammabeta.errors import GammabetaError
    from gammabeta.models import Net
    from gammabeta.training.weights import load_into

    source = weights or run
    if source is None:
        raise GammabetaError("nothing to evaluate: name a run's folder, or a file with --weights")
    if run:
        opened = open_run(run)
        model = load_model(console, opened, weights)
        return source, model, load_data(console, opened, where)[1]
    with data_progress(console) as progress:
        dataset = load(
            where.data or "cifar10",
            root=where.root,
            skip_unreadable=where.skip_unreadable,
            measure=where.measure,
            progress=progress,
        )
    say(console, dataset.notes)
    model = Net(len(dataset.classes), dataset.image_size)
    say(console, load_into(model, source))
    return source, model, dataset


def _open_file(
    console: Console,
    file: Path,
    weights: Path | None,
    where: Place,
    threads: int,
) -> tuple[Path, nn.Module, Dataset, Normalization]:
    """Return an exported file as :func:`_open` does a run, and how its images are scaled."""
    from gammabeta.cli.model_file import load_data
    from gammabeta.deploy import open_onnx
    from gammabeta.errors import GammabetaError

    if weights:
        raise GammabetaError(f"{file}: has weights of its own; leave out --weights")
    model = open_onnx(file, threads)
    return file, model, load_data(console, file, model, where), model.normalization


def _named(split: str) -> str:
    """Return what the images that were measured are called."""
    return {"own": "test ", "train": "training ", "all": ""}.get(split, f"{split} ")


def _print(
    console: Console, result: Evaluation, dataset: Dataset, source: Path, split: str
) -> None:
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
        f"Accuracy of {source} on the {result.total} {_named(split)}images of {dataset.name}: "
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
