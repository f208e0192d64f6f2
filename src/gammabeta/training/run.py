"""A run folder: where one training keeps its configuration, metrics, model and state."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from gammabeta.errors import RunError, advising
from gammabeta.files import flush_folder, folder_beside, leftovers, sweep
from gammabeta.models import Net
from gammabeta.training.checkpoint import check_safetensors, load_state, save_model
from gammabeta.training.config import CONFIG, Config, read_config, write_config
from gammabeta.training.folder import not_a_run
from gammabeta.training.state import progress_of
from gammabeta.training.weights import load_into


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
