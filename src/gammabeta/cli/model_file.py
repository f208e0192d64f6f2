"""An exported file where a command otherwise takes a run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gammabeta.errors import GammabetaError

if TYPE_CHECKING:
    from rich.console import Console

    from gammabeta.cli.source import Place
    from gammabeta.data.dataset import Dataset
    from gammabeta.deploy import OnnxModel


def is_model_file(path: Path) -> bool:
    """Tell whether a path names an exported file, and no run.

    Raises:
        GammabetaError: For a ``.pt2`` file, which only torch reads.
    """
    if path.is_dir():
        return False
    if path.suffix == ".pt2":
        raise GammabetaError(
            f"{path}: is for torch.export.load in a program of your own; name a run's folder or an "
            ".onnx file"
        )
    return path.suffix == ".onnx"


def load_data(
    console: Console,
    path: Path,
    model: OnnxModel,
    place: Place,
) -> Dataset:
    """Read the data to measure a file on: what it was trained on, or another of its classes.

    Raises:
        GammabetaError: If the file does not say what it was trained on, or the classes differ.
    """
    from gammabeta.cli.console import data_progress
    from gammabeta.cli.source import say
    from gammabeta.data import load

    name = place.data or model.labelled.data
    if name is None:
        raise GammabetaError(
            f"{path}: was trained on a folder of images, which it does not name; add --data DIR"
        )
    with data_progress(console) as progress:
        dataset = load(
            name,
            root=place.root,
            image_size=model.image_size,
            skip_unreadable=place.skip_unreadable,
            measure=place.measure,
            progress=progress,
        )
    match_classes(path, model.classes, dataset)
    say(console, dataset.notes)
    return dataset


def match_classes(path: Path, classes: tuple[str, ...], dataset: Dataset) -> None:
    """Refuse data of other classes than a model's.

    Raises:
        GammabetaError: With both.
    """
    if classes != dataset.classes:
        raise GammabetaError(
            f"{dataset.name} has the classes {', '.join(dataset.classes)}, but {path} was trained "
            f"on {', '.join(classes)}"
        )
