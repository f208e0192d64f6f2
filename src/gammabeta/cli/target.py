"""What a command looks at: the model of a run, or of ``module:callable``, and images for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from gammabeta.cli.source import Place, open_run, read_data
from gammabeta.data import load
from gammabeta.data.loader import Loader
from gammabeta.errors import GammabetaError
from gammabeta.memory import require
from gammabeta.training.evaluate import eval_mode
from gammabeta.training.weights import load_into

if TYPE_CHECKING:
    from gammabeta.data.dataset import Dataset, Progress, Split
    from gammabeta.training.folder import newest_run
from gammabeta.training.run import Run

POPULATION = 2048
"""Training images at most that stand for the whole data; more change no digit worth showing."""


@dataclass(frozen=True, eq=False)
class Target:
    """A model and a batch for it.

    Args:
        name: Of the model, for a reader.
        model: In the mode in which it was made.
        images: float32, (N, 3, H, W), as the model wants them.
        labels: int64, (N,), or None where the data's classes are not the model's.
        classes: Names of the classes, or None.
        data: Name of the data, or None for random images.
        population: Batches of training images, or None.
        notes: Sentences for the user.
    """

    name: str
    model: nn.Module
    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None
    data: str | None = None
    population: list[Tensor] | None = None
    notes: list[str] = field(default_factory=list)


def open_target(
    target: str | None,
    data: str | None = None,
    root: Path | None = None,
    batch_size: int = 128,
    image_size: int | None = None,
    weights: Path | None = None,
    skip_unreadable: bool = False,
    progress: Progress | None = None,
) -> Target:
    """Load what a command was pointed at.

    Args:
        target: A run's folder, ``module:callable`` that returns a model, or None for the newest
            run under ``runs/``.
        data: A data set; by default the run's own, or random images for a callable.
        root: Where CIFAR-10 lies.
        batch_size: Images in the batch, drawn from the test split at random, always the same.
        image_size: Of random images and of data that is resized; by default what the model says.
        weights: A checkpoint in place of the model's own weights.
        skip_unreadable: Leave out image files that cannot be read.
        progress: Called while data is read.

    Raises:
        GammabetaError: If there is no such target, or its model does not take such images.
    """
    if target is None or Path(target).exists() or ":" not in target:
        path = newest_run(Path("runs")) if target is None else Path(target)
        return _of_run(path, data, root, batch_size, weights, skip_unreadable, progress)
    model = build(target)
    notes = load_into(model, weights) if weights else []
    size = image_size or native_size(model)
    if data is None:
        _require_memory(batch_size, size)
        images = torch.randn(
            (batch_size, 3, size, size), generator=torch.Generator().manual_seed(0)
        )
        outputs(model, images, target)
        notes.append("the images are random: name data with --data to see what real ones do")
        return Target(target, model, images, notes=notes)
    dataset = load(
        data, root=root, image_size=size, skip_unreadable=skip_unreadable, progress=progress
    )
    images, labels = _batch(dataset, dataset.test, batch_size)
    matched = outputs(model, images, target) == len(dataset.classes)
    notes += dataset.notes
    notes += [] if matched else [f"{target} does not have {dataset.name}'s classes; labels unused"]
    return Target(
        target,
        model,
        images,
        labels if matched else None,
        dataset.classes if matched else None,
        dataset.name,
        list(_population(dataset)),
        notes,
    )


def _of_run(
    path: Path,
    data: str | None,
    root: Path | None,
    batch_size: int,
    weights: Path | None,
    skip_unreadable: bool,
    progress: Progress | None,
) -> Target:
    run = open_run(path)
    model = run.build_model() if weights else run.load_model()
    notes = load_into(model, weights) if weights else []
    _, dataset = read_data(run, Place(data, root, skip_unreadable), progress)
    matched = dataset.classes == run.config.classes
    images, labels = _batch(dataset, dataset.test, batch_size, run)
    notes += dataset.notes
    notes += [] if matched else [f"{dataset.name} has other classes than {path}; labels unused"]
    return Target(
        path.resolve().name,
        model,
        images,
        labels if matched else None,
        run.config.classes,
        dataset.name,
        list(_population(dataset, run)),
        notes,
    )


def _batch(
    dataset: Dataset, split: Split, size: int, run: Run | None = None
) -> tuple[Tensor, Tensor]:
    """Draw images without replacement, the same ones every time, unaugmented."""
    from gammabeta.data.dataset import Split

    _require_memory(min(size, len(split)), dataset.image_size)
    chosen = np.random.default_rng(0).permutation(len(split))[:size]
    drawn = Split(np.ascontiguousarray(split.images[chosen]), split.labels[chosen])
    scaling = run.config.normalization if run else dataset.normalization
    return next(Loader(drawn, size, scaling).epoch(0))


def _require_memory(count: int, size: int) -> None:
    """Refuse images that would not fit as float32, in three channels."""
    require(
        count * size**2 * 3 * 4,
        f"{count} images of {size}x{size} pixels",
        "choose a smaller --image-size or --batch-size",
    )


def _population(dataset: Dataset, run: Run | None = None) -> Iterator[Tensor]:
    images, _ = _batch(dataset, dataset.train, POPULATION, run)
    yield from images.split(256)


def build(name: str) -> nn.Module:
    """Call ``module:callable`` and return the model that it makes.

    The module is looked for in the current folder too, as ``python -m`` would.

    Raises:
        GammabetaError: If it cannot be imported or called, or returns anything else.

    Example:
        >>> type(build("gammabeta:Net")).__name__
        'Net'
    """
    module, _, attribute = name.partition(":")
    sys.path.insert(0, "")
    try:
        found: Any = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        model = found if isinstance(found, nn.Module) else found()
    except Exception as error:  # the user's own code may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise GammabetaError(
            f"{name}: cannot be made into a model ({reason}); name a run's folder, or "
            "module:callable, a function without arguments that returns a torch.nn.Module"
        ) from error
    finally:
        sys.path.remove("")
    if not isinstance(model, nn.Module):
        raise GammabetaError(
            f"{name}: returned a {type(model).__name__}, but must return a torch.nn.Module"
        )
    return model


def native_size(model: nn.Module) -> int:
    """Return the image size a model says it wants (``image_size``, or timm's way), else 32.

    Example:
        >>> from gammabeta.bench.models import TorchNet
        >>> native_size(TorchNet(image_size=16)), native_size(nn.Identity())
        (16, 32)
    """
    size = getattr(model, "image_size", None)
    if isinstance(size, int):
        return size
    shape = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 32, 32))
    return int(shape[-1])


def outputs(model: nn.Module, images: Tensor, name: str) -> int | None:
    """Return how many logits the model gives an image, None if its output is no (N, K).

    Raises:
        GammabetaError: If the model cannot take such images.
    """
    try:
        with eval_mode(model), torch.inference_mode():
            logits = model(images[:2])
    except Exception as error:  # a model may raise anything on a wrong shape
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        shape = tuple(images.shape)
        raise GammabetaError(
            f"{name}: the model fails on images of shape {shape} ({reason}); choose another "
            "--image-size or --data"
        ) from error
    good = isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == len(images[:2])
    return int(logits.shape[1]) if good else None
