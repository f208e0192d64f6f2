"""``gammabeta predict``: name what is on image files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gammabeta.cli import options
from gammabeta.errors import GammabetaError

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from gammabeta.training.predict import Labels


def predict(
    run: Annotated[
        Path,
        typer.Argument(
            help="The run's folder, or an exported .onnx file. Optional beside --weights.",
            show_default=False,
        ),
    ],
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Image files, or folders of them, of any size.", show_default=False),
    ] = None,
    weights: options.Weights = None,
    top: Annotated[int, typer.Option(min=1, help="Classes to name for each image.")] = 3,
    threads: options.Threads = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Name what is on image files, with probabilities.

    Images are resized and scaled as in training. An unreadable file is
    reported, the others are still named, and the exit status is 2.

    Examples:
      gammabeta predict runs/cifar10-anneal-1 cat.jpg dog.png
      gammabeta predict runs/cifar10-anneal-1 photos/ --top 1 --json
      gammabeta predict model.onnx cat.jpg
      gammabeta predict --weights tutorial.pth cat.jpg
    """
    import sys

    from gammabeta.training.folder import expect_run

    if not weights:
        expect_run(run)

    from rich.table import Column, Table
    from rich.text import Text

    from gammabeta import runtime
    from gammabeta.cli.console import open_console, print_json
    from gammabeta.data.image import printable
    from gammabeta.training import predict as naming

    console = open_console(as_json)
    machine = runtime.configure("fp32", "cpu", threads)
    if verbose:
        console.print(machine.describe(), markup=False)
    place, files = _arrange(run, images or [], weights)
    model, labels = _open(console, place, weights, machine.threads)
    predictions = list(naming.predict(model, labels, files, top))
    table = Table(Column("image", overflow="fold"), Column("class", overflow="fold"), "probability",
                  box=None)  # a path cut short would look like another  # fmt: skip
    for prediction in predictions:
        for i, (name, probability) in enumerate(prediction.classes):
            table.add_row(
                Text("" if i else printable(prediction.path)),
                Text(name),
                f"{100 * probability:.1f} %",
            )
    if table.rows:
        console.print(table)
    if as_json:
        rows = [
            {
                "path": str(p.path),
                "predictions": [{"class": name, "probability": v} for name, v in p.classes],
            }
            | ({"error": p.error} if p.error else {})
            for p in predictions
        ]
        print_json({"run": str(weights or run), "images": rows})
    failed = [p for p in predictions if p.error]
    for prediction in failed:
        print(f"gammabeta: error: {prediction.error}", file=sys.stderr)
    if failed:
        raise typer.Exit(2)


def _arrange(
    first: Path, others: list[Path], weights: Path | None
) -> tuple[Path | None, list[Path]]:
    """Tell the run from the images: beside ``--weights`` it may be left out."""
    from gammabeta.cli.model_file import is_model_file

    if weights and is_model_file(first):
        raise GammabetaError(f"{first}: has weights of its own; leave out --weights")
    if weights and not (first / "config.json").exists():
        return None, [first, *others]
    if not others:
        raise GammabetaError(f"no image to name: add image files or folders after {first}")
    return first, others


def _open(
    console: Console, path: Path | None, weights: Path | None, threads: int
) -> tuple[nn.Module, Labels]:
    """Return a network, or an exported file in its place, and what it says of images."""
    from gammabeta.cli.model_file import is_model_file
    from gammabeta.cli.source import load_model, of_cifar10, open_run

    if path and is_model_file(path):
        from gammabeta.deploy import open_onnx

        model = open_onnx(path, threads)
        return model, model
    if path is None and weights:
        return of_cifar10(console, weights)
    run = open_run(path or Path())
    return load_model(console, run, weights), run.config
