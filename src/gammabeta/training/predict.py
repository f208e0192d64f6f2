"""Naming what is on image files, with the scaling and the classes a run was trained with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gammabeta.data.dataset import Normalization, Split
from gammabeta.data.image import EXTENSIONS, read_image
from gammabeta.data.loader import Loader
from gammabeta.errors import DataError
from gammabeta.training.evaluate import eval_mode

BATCH_SIZE = 250


class Labels(Protocol):
    """What is known of a classifier's images and classes; a run's ``Config`` is one."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""

    @property
    def normalization(self) -> Normalization:
        """How bytes become numbers."""


@dataclass(frozen=True)
class Named:
    """The plainest :class:`Labels`."""

    classes: tuple[str, ...]
    image_size: int
    normalization: Normalization


@dataclass(frozen=True)
class Prediction:
    """What one file shows.

    Args:
        path: The image file.
        classes: (name, probability), most probable first; empty if there is an error.
        error: Why the file is unreadable or cannot be named, or None.
    """

    path: Path
    classes: tuple[tuple[str, float], ...] = ()
    error: str | None = None


def predict(
    model: nn.Module, labels: Labels, paths: Iterable[Path], top: int = 3
) -> Iterator[Prediction]:
    """Classify image files and folders of them; an unreadable file does not stop the others.

    Args:
        model: The trained network; its modes are given back.
        labels: Image size, scaling and class names: a run's configuration, say.
        paths: Files, and folders that are searched for images.
        top: How many classes to name for each file.

    Yields:
        A prediction for each file, in the order given; folders in alphabetical order.
    """
    files = [file for path in paths for file in find_images(path)]
    for start in range(0, len(files), BATCH_SIZE):
        yield from _predict_batch(model, labels, files[start : start + BATCH_SIZE], top)


def find_images(path: Path) -> list[Path]:
    """Return the path itself, or for a folder the image files anywhere below it, sorted."""
    if not path.is_dir():
        return [path]
    found = (file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS)
    return sorted(file for file in found if file.is_file()) or [path]


def _predict_batch(
    model: nn.Module, labels: Labels, files: Sequence[Path], top: int
) -> Iterator[Prediction]:
    read = [_read(file, labels.image_size) for file in files]
    images = [image for image in read if not isinstance(image, str)]
    rows = iter(_probabilities(model, labels, np.stack(images)) if images else ())
    for file, image in zip(files, read, strict=True):
        if isinstance(image, str):
            yield Prediction(file, error=image)
        else:
            probabilities = next(rows)
            if not bool(torch.isfinite(probabilities).all()):
                yield Prediction(file, error=f"{file}: the model computes NaN for it")
                continue
            best = probabilities.topk(min(top, len(labels.classes)))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            yield Prediction(file, tuple((labels.classes[i], value) for i, value in pairs))


def _read(file: Path, image_size: int) -> np.ndarray | str:
    try:
        if file.is_dir():
            raise DataError(f"{file}: holds no image file")
        return read_image(file, image_size)
    except DataError as error:
        return str(error)


def _probabilities(model: nn.Module, labels: Labels, images: np.ndarray) -> Tensor:
    split = Split(images, np.zeros(len(images), np.int64))
    batch, _ = next(Loader(split, len(images), labels.normalization).epoch(0))
    with eval_mode(model), torch.inference_mode():
        probabilities: Tensor = model(batch).softmax(dim=1)
    return probabilities
