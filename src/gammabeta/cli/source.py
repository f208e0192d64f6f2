"""Where a command's model and images come from: a run, weights in its place, other data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from gammabeta.errors import GammabetaError

if TYPE_CHECKING:
    from rich.console import Console

    from gammabeta.data.dataset import Dataset, Progress
    from gammabeta.models import Net
    from gammabeta.training.predict import Labels
    from gammabeta.training.run import Run


def open_run(path: Path) -> Run:
    """Open a run's folder; a file in its place is answered with the option for weights.

    Raises:
        GammabetaError: If it is no run.
    """
    from gammabeta.training.run import Run

    if path.exists() and not path.is_dir():
        raise GammabetaError(
            f"{path}: is a file, but a run is a folder; if it holds weights, name it with "
            f"--weights {path}"
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


def load_data(
    console: Console, run: Run, data: str | None, root: Path | None, skip_unreadable: bool
) -> Dataset:
    """Read a run's data, or other data of its classes, and say how.

    Args:
        console: Where progress and notes go.
        run: Decides image size and classes.
        data: Another data set, or None for the run's own.
        root: Where CIFAR-10 lies, or None for where the run found it.
        skip_unreadable: Leave out unreadable images even if the training did not.

    Raises:
        GammabetaError: If the data cannot be read or have other classes.
    """
    from gammabeta.cli.console import data_progress
    from gammabeta.cli.model_file import match_classes

    with data_progress(console) as progress:
        found = read_data(run, data, root, skip_unreadable, progress)
    match_classes(run.path, run.config.classes, found)
    say(console, found.notes)
    return found


def read_data(
    run: Run,
    data: str | None,
    root: Path | None,
    skip_unreadable: bool,
    progress: Progress | None = None,
) -> Dataset:
    """Do what :func:`load_data` does, for any classes, and leave the notes to the caller."""
    config = run.config
    skip = skip_unreadable or config.skip_unreadable
    files = config.files if data is None else None
    wanted = dataclasses.replace(
        config, data=data or config.data, skip_unreadable=skip, files=files
    )
    return wanted.load_data(root, progress)


def say(console: Console, notes: Iterable[str]) -> None:
    """Print sentences for the user, a line each."""
    for note in notes:
        console.print(note)
