"""Small real trainings and calls of the program, for the tests of training and command line."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gammabeta.cli import app
from gammabeta.data import Augmentation, Dataset, Split, load
from gammabeta.training.config import CONFIG, Config, write_config
from gammabeta.training.events import MetricsFile
from gammabeta.training.recipe import Recipe
from gammabeta.training.run import Run
from gammabeta.training.trainer import Trainer

PROGRAM = (sys.executable, "-m", "gammabeta")
TIMED = {"seconds", "images_per_second"}


def one_thread() -> None:
    """Share the cores with other test workers: threads that wait for each other spin."""
    torch.set_num_threads(1)


one_thread()


@functools.cache
def digits(image_size: int = 8) -> Dataset:
    """All digits, unaugmented: at 8 pixels a crop would leave nothing of them."""
    return dataclasses.replace(load("digits", image_size=image_size), augmentation=STILL)


STILL = Augmentation(padding=0, flip=False)


def slice_of(split: Split, count: int) -> Split:
    """The first images of a split."""
    return Split(split.images[:count].copy(), split.labels[:count].copy())


def small(train: int = 44, test: int = 30) -> Dataset:
    """A few digits of 8 by 8 pixels, augmented so that the random streams matter."""
    whole = digits()
    return dataclasses.replace(
        whole,
        train=slice_of(whole.train, train),
        test=slice_of(whole.test, test),
        augmentation=Augmentation(padding=1, flip=True),
    )


def make_run(path: Path, dataset: Dataset, *, precision: str = "fp32", **recipe: Any) -> Run:
    """A new run folder with a recipe of the given numbers."""
    config = Config(
        data="digits",
        root=None,
        image_size=dataset.image_size,
        skip_unreadable=False,
        classes=dataset.classes,
        normalization=dataset.normalization,
        recipe=Recipe(**recipe),
        precision=precision,
        device="cpu",
        threads=1,
    )
    return Run.create(path, config)


def reconfigure(path: Path, **fields: Any) -> None:
    """Write a run's configuration anew with other values, as if it had been begun so."""
    write_config(path / CONFIG, dataclasses.replace(Run.open(path).config, **fields))


def start(run: Run, dataset: Dataset, **options: Any) -> tuple[Trainer, MetricsFile]:
    """A trainer and its metrics file, as the command line puts them together."""
    trainer = Trainer(run, dataset, **options)
    return trainer, MetricsFile(run.metrics, trainer.records)


@functools.cache
def trained_run(folder: Path) -> Run:
    """Digits of 16 pixels learned in one epoch; once for each process, so give it one folder."""
    dataset = digits(16)
    run = make_run(folder / "digits-16", dataset, epochs=1, batch_size=32, lr=0.1)
    trainer, metrics = start(run, dataset)
    trainer.fit([metrics])
    return run


def untimed(metrics: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl without what a clock decides."""
    lines = metrics.read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(s).items() if k not in TIMED} for s in lines]


def leftovers(folder: Path) -> list[str]:
    """Temporary files that a write should have removed."""
    return sorted(p.name for p in folder.rglob(".*"))


def black(count: int, size: int = 8) -> np.ndarray:
    """Images without anything on them."""
    return np.zeros((count, size, size, 3), np.uint8)


@dataclasses.dataclass(frozen=True)
class Answer:
    """How a call of the program ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The JSON on stdout; fails if there is anything beside one document."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The only line on stderr that is an error; fails if the call did not end in one."""
        assert self.code == 2, self
        assert "Traceback" not in self.err
        found = [s for s in self.err.splitlines() if s.startswith("gammabeta: error: ")]
        assert len(found) == 1, self.err
        assert self.err.splitlines()[-1] == found[0], "an error is one line, and the last"
        return found[0]


def call(capsys: pytest.CaptureFixture[str], *args: object) -> Answer:
    """Call the program inside this process: the same code without the seconds of an import."""
    capsys.readouterr()
    before, sys.argv = sys.argv, ["gammabeta", *map(str, args)]
    try:
        app.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    finally:
        sys.argv = before
    return Answer(code, *capsys.readouterr())


def environment(**changes: str) -> dict[str, str]:
    """An environment in which the suggested `python -m gammabeta` is this very one."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONWARNINGS": "error", "NO_COLOR": "1", **changes}


def run_program(*args: object, cwd: Path, **options: Any) -> Answer:
    """Run the program as a process of its own, to its end."""
    done = subprocess.run(
        [*PROGRAM, *map(str, args)], cwd=cwd, env=environment(), capture_output=True, text=True,
        timeout=180, check=False, **options,
    )  # fmt: skip
    return Answer(done.returncode, done.stdout, done.stderr)
