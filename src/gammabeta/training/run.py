"""A run folder: where one training keeps its configuration, metrics, model and state."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import nn

import gammabeta
from gammabeta import data
from gammabeta.data.dataset import Dataset, Files, Normalization, Progress
from gammabeta.errors import DamagedError, RunError, advising
from gammabeta.files import (
    NO_SEAL,
    flush_folder,
    folder_beside,
    is_intact,
    leftovers,
    seal,
    sweep,
    to_json,
    write_atomically,
)
from gammabeta.models import Net
from gammabeta.runtime import MOST_THREADS
from gammabeta.schema import STRICT, parse
from gammabeta.training.checkpoint import check_safetensors, load_state, save_model
from gammabeta.training.folder import not_a_run
from gammabeta.training.recipe import Recipe
from gammabeta.training.state import progress_of
from gammabeta.training.weights import load_into

CONFIG = "config.json"
_UNSEAL = (
    'undo what was changed; a change on purpose stands once the field "sha256" is taken out, and '
    "the run is then no longer checked"
)


UNKNOWN_SPLIT = (
    "the run kept no list of its images, so the split was drawn anew: images that it was trained "
    "on may be in the test split, and accuracy may look better than it is; train a new run to know"
)
MOST_PIXELS = 1 << 15
"""Of an image's edge: more in a configuration is damage, not a wish."""


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

    __pydantic_config__ = STRICT

    data: Annotated[str, Field(min_length=1)]
    root: str | None
    image_size: Annotated[int, Field(ge=8, le=MOST_PIXELS, multiple_of=8)]
    skip_unreadable: bool
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    normalization: Normalization
    recipe: Recipe
    precision: Annotated[str, Field(pattern="^(fp32|bf16)$")]
    device: Annotated[str, Field(pattern="^(cpu|cuda)$")]
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)]
    grid: Annotated[int, Field(ge=1, le=MOST_PIXELS)] | None = None
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


@dataclass(frozen=True, kw_only=True)
class _Sealed(Config):
    sha256: str | None = None


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
        self.previous = path / "previous.pt"
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
            sweep(path)
            flush_folder(path.parent)
        except OSError as error:
            raise RunError(f"{path}: cannot be made into a run folder: {error.strerror}") from None
        run = cls(path, config)
        run.save_config()
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open an existing run folder.

        Raises:
            RunError: If there is no ``config.json`` in it, or another than was written.
        """
        try:
            return cls(path, read_config(path / CONFIG))
        except OSError as error:
            raise not_a_run(path, error) from None

    def save_config(self, folder: Path | None = None) -> None:
        """Write the configuration, into the run's folder or another.

        Raises:
            RunError: If it cannot be written.
        """
        write_config((folder or self.path) / CONFIG, self.config)

    def build_model(self) -> Net:
        """Return a new, untrained network of the run's shape."""
        return self.config.build_model()

    def load_model(self, *, broken_statistics: bool = False) -> Net:
        """Return the trained network.

        Args:
            broken_statistics: Accept NaN in running statistics, to measure them anew.

        Raises:
            RunError: If its file is missing, damaged, does not fit, holds NaN, or is not the model
                of the training's last step.
        """
        self._check_model()
        model = self.build_model()
        load_into(model, self.model, broken_statistics=broken_statistics)
        return model

    def _check_model(self) -> None:
        """Refuse a model file that is damaged, or after which the training went on."""
        resume = f"`gammabeta train --resume {shlex.quote(str(self.path))}`"
        if not self.model.exists():
            raise RunError(f"{self.model}: no such file; {resume} goes on to write it")
        if not self.state.exists():
            with advising("make the run anew from the one that it was made of"):
                check_safetensors(self.model, ours=True)
            return
        with advising(f"{self.back_to_previous()}; remove it to use {self.model.name} as it is"):
            now = progress_of(load_state(self.state), self.state).position.step
        with advising(f"{resume} writes it anew"):
            step = check_safetensors(self.model, ours=True)
        if step is not None and step != now:
            raise RunError(
                f"{self.model}: is of step {step}, but {self.state.name} of step {now}: the "
                f"training is still writing, or was killed between the two; {resume} writes what "
                "is left"
            )

    def back_to_previous(self) -> str:
        """Say how to go back to the checkpoint before the last, for a message."""
        if not self.previous.exists():
            return "there is no checkpoint before it, so train the run anew"
        state, previous = (shlex.quote(str(p)) for p in (self.state, self.previous))
        return f"`cp {previous} {state}` goes back to the checkpoint before it, for --resume"

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


def write_config(path: Path, config: Config) -> None:
    """Write ``config.json``, sealed by its last field.

    Raises:
        RunError: If it cannot be written, or holds what could not be read back.
    """
    fields = dataclasses.asdict(config) | {"sha256": NO_SEAL.decode()}
    content = to_json(fields, indent=2).encode() + b"\n"
    parse(_Sealed, content, path)
    parts = seal(content, content.rindex(NO_SEAL))
    write_atomically(path, lambda file: file.writelines(parts))


def read_config(path: Path) -> Config:
    """Read ``config.json``; one without a seal is of an older version, or changed on purpose.

    Raises:
        OSError: If there is no such file.
        RunError: If it is not what was written; the message names the field.
    """
    content = path.read_bytes()
    found = re.search(rb'"sha256": "([0-9a-f]{64})"\s*}\s*$', content)
    if found and not is_intact(io.BytesIO(content), found.start(1)):
        raise DamagedError(path, _UNSEAL)
    read: _Sealed = parse(_Sealed, content, path)
    if read.sha256 and not found:
        raise DamagedError(path, _UNSEAL)
    return Config(**{field.name: getattr(read, field.name) for field in dataclasses.fields(Config)})


def refuse_occupied(path: Path, *, training: bool = True) -> None:
    """Raise a RunError if the path exists and is anything but an empty folder.

    What a kill left behind does not count.
    """
    if path.is_dir() and {*path.iterdir()} <= {*leftovers(path)}:
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
