"""``gammabeta export``: a run as a file that runs without gammabeta, verified on real images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gammabeta.cli import options

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from gammabeta.data.dataset import Dataset, Split
    from gammabeta.deploy import Exported, Metadata
    from gammabeta.models import Net
    from gammabeta.training.evaluate import Evaluation
    from gammabeta.training.run import Run

IMAGES = 1000
"""Test images that a file is verified on, and training images that int8 is calibrated on."""
POINT = 0.01


def export(
    run: Annotated[Path, typer.Argument(help="The run's folder.", show_default=False)],
    file: Annotated[
        Path,
        typer.Argument(
            help="The new file; .onnx, or .pt2 for torch.export.load.", show_default=False
        ),
    ],
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="8-bit weights and activations, calibrated on training images (.onnx)."
        ),
    ] = False,
    with_preprocessing: Annotated[
        bool,
        typer.Option(
            "--with-preprocessing",
            help="Let the file take bytes, uint8 (N, H, W, 3) in RGB, and scale them itself.",
        ),
    ] = False,
    fold: Annotated[
        bool, typer.Option("--fold/--no-fold", help="Merge batch norms into their neighbours.")
    ] = True,
    weights: options.Weights = None,
    data: options.OtherData = None,
    root: options.Root = None,
    skip_unreadable: options.SkipUnreadable = False,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Write a run as ONNX or for torch.export, and verify the file on real images.

    Batch norms are folded away. The file is run on a thousand test images and
    in several batch sizes, and is only left if it agrees with the model up to
    rounding. It holds class names, scaling and image size as metadata.

    Examples:
      gammabeta export runs/cifar10-anneal-1 model.onnx
      gammabeta export runs/cifar10-anneal-1 small.onnx --int8
      gammabeta evaluate model.onnx
    """
    from gammabeta.training.folder import expect_run

    expect_run(run)

    from gammabeta import runtime
    from gammabeta.cli.console import open_console, print_json
    from gammabeta.cli.source import Place, load_data, load_model, open_run
    from gammabeta.deploy.export import check_target

    console = open_console(as_json, quiet)
    machine = runtime.configure("fp32", "cpu", threads)
    if verbose:
        console.print(machine.describe())
    check_target(file, int8=int8)
    opened = open_run(run)
    model = load_model(console, opened, weights)
    dataset = load_data(console, opened, Place(data, root, skip_unreadable))[1]
    done = _export(opened, model, file, dataset, (int8, with_preprocessing, fold))
    accuracies = _accuracies(file, model, dataset) if int8 else None
    _print(console, done, dataset, accuracies, _where(opened, data, root))
    if as_json:
        print_json(_document(weights or run, done, dataset, accuracies))


def _export(
    run: Run, model: Net, file: Path, dataset: Dataset, how: tuple[bool, bool, bool]
) -> Exported:
    from gammabeta.deploy import export as write

    int8, with_preprocessing, fold = how
    images = _images(dataset.test, run, with_preprocessing)
    calibration = _images(dataset.train, run, with_preprocessing) if int8 else None
    return write(
        model,
        file,
        images,
        fold=fold,
        metadata=_metadata(run),
        with_preprocessing=with_preprocessing,
        int8=calibration,
    )


def _metadata(run: Run) -> Metadata:
    from gammabeta.data import DATA_SETS
    from gammabeta.deploy import Metadata

    config = run.config
    return Metadata(
        classes=config.classes,
        normalization=config.normalization,
        image_size=config.image_size,
        data=config.data if config.data in DATA_SETS else None,
    )


def _images(split: Split, run: Run, as_bytes: bool) -> Tensor:
    """Draw images without replacement, the same ones every time, unaugmented."""
    import numpy as np
    import torch

    from gammabeta.data.dataset import Split
    from gammabeta.data.loader import Loader

    seed = run.config.recipe.seed
    chosen = np.random.default_rng(seed).permutation(len(split))[:IMAGES]
    images = np.ascontiguousarray(split.images[chosen])
    if as_bytes:
        return torch.from_numpy(images)
    drawn = Split(images, split.labels[chosen])
    return next(Loader(drawn, len(drawn), run.config.normalization).epoch(0))[0]


def _accuracies(file: Path, model: Net, dataset: Dataset) -> tuple[Evaluation, Evaluation]:
    """Measure the model and the int8 file on the whole test split; stopped, leave no file."""
    from gammabeta.deploy import open_onnx
    from gammabeta.training.evaluate import evaluate

    try:
        opened = open_onnx(file)
        before = evaluate(model, dataset.test, opened.labelled.normalization)
        return before, evaluate(opened, dataset.test, opened.normalization)
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def _print(
    console: Console,
    done: Exported,
    dataset: Dataset,
    accuracies: tuple[Evaluation, Evaluation] | None,
    where: str,
) -> None:
    import shlex

    from gammabeta.cli.naming import program
    from gammabeta.deploy.exported import megabytes

    checked = done.checked
    runner = "torch.export.load" if done.opset is None else "onnxruntime"
    kind = "torch.export" if done.opset is None else f"ONNX opset {done.opset}"
    if done.fold is not None:
        console.print(str(done.fold))
    console.print(
        f"verified in {runner} on {checked.images:,} test images of {dataset.name}, in batches of "
        f"{', '.join(map(str, checked.batch_sizes))}: {checked}"
    )
    if done.int8 and accuracies:
        before, after = accuracies
        console.print(
            f"int8: {megabytes(done.int8.float_size_bytes)} before, {megabytes(done.size_bytes)} "
            f"after; accuracy on the {after.total} test images: {100 * before.accuracy:.2f} % "
            f"before, {100 * after.accuracy:.2f} % after ({after.correct - before.correct:+d})"
        )
        if before.accuracy - after.accuracy > POINT:
            console.print(
                "note: int8 costs more than a point of accuracy; a file without --int8 keeps it"
            )
    precision = "int8" if done.int8 else "float32"
    console.print(f"saved {done.path}: {kind}, {precision}, {megabytes(done.size_bytes)}")
    if done.opset is not None:
        name = shlex.quote(str(done.path))
        console.print(
            f"Try next:\n  {program()} evaluate {name}{where}\n"
            f"  {program()} predict {name} IMAGE..."
        )


def _where(run: Run, data: str | None, root: Path | None) -> str:
    """Return the options with which ``evaluate`` finds the data: a file keeps no paths."""
    import shlex

    from gammabeta.data import DATA_SETS

    name, folder = data or run.config.data, root or run.config.root
    if name not in DATA_SETS or name != run.config.data:
        drawn = data is None and run.config.files is not None and run.config.files.drawn
        return f" --data {shlex.quote(name)}" + " --split test" * drawn
    return f" --root {shlex.quote(str(folder))}" if folder and name == "cifar10" else ""


def _document(
    run: Path,
    done: Exported,
    dataset: Dataset,
    accuracies: tuple[Evaluation, Evaluation] | None,
) -> dict[str, Any]:
    document = {"run": str(run), "data": dataset.name, **done.to_dict()}
    if accuracies:
        before, after = accuracies
        document |= {
            "accuracy_before": before.accuracy,
            "accuracy": after.accuracy,
            "correct_before": before.correct,
            "correct": after.correct,
            "total": after.total,
        }
    return document
