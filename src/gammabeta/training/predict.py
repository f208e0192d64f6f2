"""Naming what is on image files, with the scaling and the classes a run was trained with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gammabeta.data.dataset import Normalization, Split
from gammabeta.data.decode import read_images
from gammabeta.data.image import printable
from gammabeta.data.loader import Loader
from gammabeta.data.tree import is_image, visible_files
from gammabeta.errors import DataError
from gammabeta.training.evaluate import eval_mode, images_at_once

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
    files, errors = [], {}
    for path in paths:
        try:
            files += find_images(path)
        except DataError as error:
            files.append(path)
            errors[path] = str(error)
    size = images_at_once(labels.image_size, BATCH_SIZE)
    for start in range(0, len(files), size):
        yield from _predict_batch(model, labels, files[start : start + size], errors, top)


def find_images(path: Path) -> list[Path]:
    """Return the path itself, or for a folder the images that training would see, sorted.

    Raises:
        DataError: If a folder has no image or cannot be listed.
    """
    if not path.is_dir():
        return [path]
    found = sorted(file for file in visible_files(path) if is_image(file))
    if not found:
        raise DataError(f"{printable(path)}: holds no image file")
    return found


def _predict_batch(
    model: nn.Module,
    labels: Labels,
    files: Sequence[Path],
    errors: Mapping[Path, str],
    top: int,
) -> Iterator[Prediction]:
    readable = [file for file in files if file not in errors]
    read = dict(zip(readable, read_images(readable, labels.image_size), strict=True))
    images = [read[file] for file in readable if not isinstance(read[file], str)]
    rows = iter(_probabilities(model, labels, np.stack(images)) if images else ())
    for file in files:
        if file in errors:
            yield Prediction(file, error=errors[file])
        elif isinstance(read[file], str):
            yield Prediction(file, error=f"{printable(file)}: {read[file]}")
        else:
            probabilities = next(rows)
            if not bool(torch.isfinite(probabilities).all()):
                yield Prediction(file, error=f"{file}: the model computes NaN for it")
                continue
            best = probabilities.topk(min(top, len(labels.classes)))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            yield Prediction(file, tuple((labels.classes[i], value) for i, value in pairs))


def _probabilities(model: nn.Module, labels: Labels, images: np.ndarray) -> Tensor:
    split = Split(images, np.zeros(len(images), np.int64))
    batch, _ = next(Loader(split, len(images), labels.normalization).epoch(0))
    with eval_mode(model), torch.inference_mode():
        probabilities: Tensor = model(batch).softmax(dim=1)
    return probabilities
