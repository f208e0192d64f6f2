"""Where a command's model and images come from: a run, weights in its place, other data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gammabeta.errors import GammabetaError

if TYPE_CHECKING:
    from rich.console import Console

    from gammabeta.data.dataset import Dataset, Progress
    from gammabeta.models import Net
    from gammabeta.training.config import Config
    from gammabeta.training.predict import Labels
    from gammabeta.training.run import Run


def open_run(path: Path, option: str = "--weights") -> Run:
    """Open a run's folder; a file in its place is answered with the option for weights.

    Args:
        path: The folder.
        option: The command's option for a file of weights.

    Raises:
        GammabetaError: If it is no run.
    """
    from gammabeta.training.run import Run

    if path.exists() and not path.is_dir():
        raise GammabetaError(
            f"{path}: is a file, but a run is a folder; if it holds weights, name it with "
            f"{option} {path}"
        )
    return Run.open(path)


def load_model(
    console: Console, run: Run, weights: Path | None, *, broken_statistics: bool = False
) -> Net:
    """Return a run's network, with other weights where a file of them is named.

    Args:
        console: Where it is said how the file was read.
        run: Decides the shape.
        weights: A checkpoint in place of the run's own.
        broken_statistics: Accept NaN in running statistics, to measure them anew.

    Raises:
        GammabetaError: If the file is missing, damaged, does not fit or holds NaN.
    """
    from gammabeta.training.weights import load_into

    if weights is None:
        return run.load_model(broken_statistics=broken_statistics)
    model = run.build_model()
    say(console, load_into(model, weights, broken_statistics=broken_statistics))
    return model


def of_cifar10(console: Console, weights: Path) -> tuple[Net, Labels]:
    """Return the network of a checkpoint without its run, and what its images are taken for.

    Raises:
        GammabetaError: If the file is missing, damaged, does not fit or holds NaN.
    """
    from gammabeta.data.cifar_files import CLASSES
    from gammabeta.data.dataset import Normalization
    from gammabeta.models import Net
    from gammabeta.training.predict import Named
    from gammabeta.training.weights import load_into

    model = Net(len(CLASSES))
    say(console, load_into(model, weights))
    say(console, ["no run was named, so classes, size and scaling are those of CIFAR-10"])
    return model, Named(CLASSES, 32, Normalization())


@dataclass(frozen=True)
class Place:
    """What a command was told about its data.

    Args:
        data: Another data set, or None for the run's own.
        root: Where CIFAR-10 lies, or None for where the run found it.
        skip_unreadable: Leave out unreadable images even if the training did not.
        measure: Read only this split, as the test split; see :func:`gammabeta.data.load`.
    """

    data: str | None
    root: Path | None
    skip_unreadable: bool
    measure: str | None = None


def load_data(console: Console, run: Run, place: Place) -> tuple[Run, Dataset]:
    """Read a run's data, or other data of its classes, and say how.

    Args:
        console: Where progress and notes go.
        run: Decides image size and classes.
        place: Which data.

    Returns:
        The run, with the new place in its configuration if its own data were moved; and the data.

    Raises:
        GammabetaError: If the data cannot be read or have other classes.
    """
    from gammabeta.cli.console import data_progress
    from gammabeta.cli.model_file import match_classes

    with data_progress(console) as progress:
        run, found = read_data(run, place, progress)
    match_classes(run.path, run.config.classes, found)
    say(console, found.notes)
    return run, found


def read_data(run: Run, place: Place, progress: Progress | None = None) -> tuple[Run, Dataset]:
    """Do what :func:`load_data` does, for any classes, and leave the notes to the caller."""
    from gammabeta.data.splits import NAMED
    from gammabeta.training.run import Run

    began = run.config
    skip = place.skip_unreadable or began.skip_unreadable
    config = dataclasses.replace(began, skip_unreadable=skip)
    measure = place.measure
    notes: tuple[str, ...] = ()
    if place.data is None or Path(place.data).resolve() == Path(config.data).resolve():
        measure = "test" if measure == "own" else measure
    else:
        config, notes = _elsewhere(config, place.data)
    if place.data is None:
        refuse_gone(config.data, run.path)
    moved = config.files is not None and config.data != began.data
    everything = measure in NAMED or (measure == "all" and place.data is not None)
    files = None if everything else config.files
    found = dataclasses.replace(config, files=files).load_data(
        place.root, progress, measure=measure
    )
    now = Run(run.path, dataclasses.replace(began, data=config.data)) if moved else run
    return now, dataclasses.replace(found, notes=(*notes, *found.notes))


def refuse_gone(data: str, run: Path) -> None:
    """Refuse a folder that is not there, and say how to name its new place.

    Raises:
        DataError: If there is no such folder.
    """
    from gammabeta.data import DATA_SETS
    from gammabeta.errors import DataError

    if data not in DATA_SETS and not Path(data).exists():
        raise DataError(
            f"{data!r} is no data set: if the images of {run} were moved, name their new place "
            "with --data"
        )


def _elsewhere(config: Config, data: str) -> tuple[Config, tuple[str, ...]]:
    """Return a configuration with other data; a folder that was moved keeps its list of images."""
    from gammabeta.data import DATA_SETS
    from gammabeta.data.layout import known_images

    if data in DATA_SETS or config.files is None or not Path(data).is_dir():
        return dataclasses.replace(config, data=data, files=None), ()
    trained, all_there = known_images(Path(data), config.files)
    config = dataclasses.replace(config, data=str(Path(data).absolute()))
    if all_there:
        note = (
            f"{data} has all names of the images that the run was trained and measured on, so it "
            "is taken for the run's own folder (`evaluate --split all` measures all of it)"
        )
        return config, (note,)
    note = (
        f"{trained} of these images have the names of images that the run was trained on; if they "
        "are the same, accuracy looks better than it is"
    )
    return dataclasses.replace(config, files=None), (note,) if trained else ()


def say(console: Console, notes: Iterable[str]) -> None:
    """Print sentences for the user, a line each."""
    for note in notes:
        console.print(note)
