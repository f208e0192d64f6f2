"""A run folder: where one training keeps its configuration, metrics, model and state."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import gammabeta
from gammabeta import data
from gammabeta.data.dataset import Dataset, Files, Normalization, Progress
from gammabeta.errors import GammabetaError, RunError
from gammabeta.files import flush_folder, folder_beside, sweep, write_atomically
from gammabeta.models import Net
from gammabeta.training.checkpoint import save_model
from gammabeta.training.folder import not_a_run
from gammabeta.training.recipe import Recipe
from gammabeta.training.weights import load_into

UNKNOWN_SPLIT = (
    "the run kept no list of its images, so the split was drawn anew: images that it was trained "
    "on may be in the test split, and accuracy may look better than it is; train a new run to know"
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """All that decides a run's numbers, as saved in ``config.json``.

    Args:
        data: "cifar10", "digits" or an absolute folder.
        root: Where CIFAR-10 was looked for, or None for the default place.
        image_size: Height and width of the network's input.
        skip_unreadable: Whether unreadable images were left out.
        classes: Class names in the order of the logits.
        normalization: How bytes become numbers.
        recipe: How it is trained.
        precision: "fp32" or "bf16".
        device: "cpu" or "cuda".
        threads: Threads inside one operator; another number may change the last bits.
        grid: See :class:`gammabeta.Net`; None in runs that older versions wrote.
        files: The images of a folder that it is trained and measured on; None for other data.
        init: The checkpoint that it began with, or None for new weights.
        version: The gammabeta that wrote it.
    """

    data: str
    root: str | None
    image_size: int
    skip_unreadable: bool
    classes: tuple[str, ...]
    normalization: Normalization
    recipe: Recipe
    precision: str
    device: str
    threads: int
    grid: int | None = None
    files: Files | None = None
    init: str | None = None
    version: str = gammabeta.__version__

    def build_model(self) -> Net:
        """Return a new, untrained network of the run's shape."""
        return Net(len(self.classes), self.image_size, grid=self.grid)

    def load_data(
        self,
        root: Path | None = None,
        progress: Progress | None = None,
        *,
        measure: str | None = None,
    ) -> Dataset:
        """Read the run's data set again.

        Of a folder, the images that the run began with are read, in their order.

        Args:
            root: Where CIFAR-10 lies, if not where it did.
            progress: Called while data is read.
            measure: Read only what is to be measured; see :func:`gammabeta.data.load`.
        """
        found = data.load(
            self.data,
            root=root or self.root,
            image_size=self.image_size,
            skip_unreadable=self.skip_unreadable,
            files=self.files,
            measure=measure,
            progress=progress,
        )
        if self.files is None and found.files and found.files.drawn:
            return dataclasses.replace(found, notes=(*found.notes, UNKNOWN_SPLIT))
        return found


class Run:
    """A run folder on the disk.

    Args:
        path: The folder.
        config: What is, or will be, in its ``config.json``.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config = config
        self.metrics = path / "metrics.jsonl"
        self.model = path / "model.safetensors"
        self.state = path / "state.pt"
        self.curves = path / "curves.png"
        self.tensorboard = path / "tensorboard"

    @classmethod
    def create(cls, path: Path, config: Config) -> Run:
        """Make a new run folder.

        Raises:
            RunError: If the folder already holds anything, or cannot be made.
        """
        refuse_occupied(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{path}: cannot be made into a run folder: {error.strerror}") from None
        run = cls(path, config)
        run.save_config()
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open an existing run folder.

        Raises:
            RunError: If there is no readable ``config.json`` in it.
        """
        file = path / "config.json"
        try:
            return cls(path, _parse(json.loads(file.read_text(encoding="utf-8"))))
        except OSError as error:
            raise not_a_run(path, error) from None
        except (ValueError, TypeError, KeyError, GammabetaError) as error:
            raise RunError(f"{file}: is damaged or of another version: {error}") from None

    def save_config(self, folder: Path | None = None) -> None:
        """Write the configuration, into the run's folder or another.

        Raises:
            RunError: If it cannot be written.
        """
        content = json.dumps(dataclasses.asdict(self.config), indent=2).encode()
        path = (folder or self.path) / "config.json"
        write_atomically(path, lambda file: file.write(content + b"\n"))

    def build_model(self) -> Net:
        """Return a new, untrained network of the run's shape."""
        return self.config.build_model()

    def load_model(self, *, broken_statistics: bool = False) -> Net:
        """Return the trained network.

        Args:
            broken_statistics: Accept NaN in running statistics, to measure them anew.

        Raises:
            RunError: If its file is missing, damaged, does not fit or holds NaN.
        """
        model = self.build_model()
        load_into(model, self.model, broken_statistics=broken_statistics)
        return model

    def copy_with(self, path: Path, model: nn.Module, files: Mapping[str, bytes]) -> Run:
        """Save another model as a run of its own, with this one's configuration and history.

        The folder appears whole or not at all. It has no training state: what follows a training
        does not continue it.

        Args:
            path: The new run's folder.
            model: Of the run's shape.
            files: What else goes into the folder, by name.

        Raises:
            RunError: If the folder already holds anything, or cannot be written.
        """
        refuse_occupied(path, training=False)
        sweep(path.parent)
        try:
            with folder_beside(path) as stage:
                self.save_config(stage)
                for name in (self.metrics.name, self.curves.name):
                    if (self.path / name).exists():
                        shutil.copyfile(self.path / name, stage / name)
                for name, content in files.items():
                    (stage / name).write_bytes(content)
                save_model(stage / self.model.name, model)
                stage.rename(path)
            flush_folder(path.parent)
        except OSError as error:
            raise RunError(f"{path}: cannot be made into a run folder: {error.strerror}") from None
        return Run(path, self.config)


def _parse(read: dict[str, Any]) -> Config:
    read["recipe"] = Recipe(**read["recipe"])
    read["normalization"] = Normalization(
        *(tuple(read["normalization"][key]) for key in ("mean", "std"))
    )
    read["classes"] = tuple(read["classes"])
    if files := read.get("files"):
        read["files"] = Files(tuple(files["train"]), tuple(files["test"]), files["drawn"])
    for key in ("image_size", "threads"):
        if not isinstance(read.get(key), int):
            raise TypeError(f"{key} is {read.get(key)!r}, but must be a whole number")
    return Config(**read)


def refuse_occupied(path: Path, *, training: bool = True) -> None:
    """Raise a RunError if the path exists and is anything but an empty folder."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if os.path.lexists(path):
        remedy = f"continue it with --resume {path} or " if training else ""
        raise RunError(
            f"{path}: already exists and is not overwritten; {remedy}choose another --out"
        )


def refuse_unwritable(path: Path) -> None:
    """Raise a RunError unless a folder can be made at the path; it is tried nearby, and undone.

    A command asks before its work, so that hours do not end in a folder that cannot be made.
    """
    whole = path.absolute()
    nearest = next(p for p in (whole, *whole.parents) if os.path.lexists(p))
    try:
        with tempfile.TemporaryDirectory(prefix=".", dir=nearest):
            pass
    except OSError as error:
        raise RunError(f"{path}: cannot be made into a run folder: {error.strerror}") from None


def fresh_path(parent: Path, stem: str) -> Path:
    """Return the first of ``stem-1``, ``stem-2``, … that does not exist in ``parent``."""
    number = 1
    while os.path.lexists(parent / f"{stem}-{number}"):
        number += 1
    return parent / f"{stem}-{number}"
