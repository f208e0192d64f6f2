"""Measuring a model on a split: eval mode, no augmentation, float32, nothing left changed.

Evaluation computes in float32 whatever the training's precision, so that an image near the border
of two classes does not change sides with the batch that it happens to sit in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gammabeta.data.dataset import Normalization, Split
from gammabeta.data.loader import Loader

BATCH_SIZE = 128
"""Images a forward pass; more would set the peak of a training's memory, not its speed."""
BATCH_BYTES = 2**30
BYTES_PER_PIXEL = 600
"""Memory of a forward pass at most, of which the network takes about so much a pixel."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How a model did on a split.

    Args:
        loss: Mean cross entropy, without label smoothing.
        confusion: int64, (K, K); ``confusion[i, j]`` counts images of class i called class j.
    """

    loss: float
    confusion: npt.NDArray[np.int64]

    @property
    def correct(self) -> int:
        """Number of images whose class was named."""
        return int(np.trace(self.confusion))

    @property
    def total(self) -> int:
        """Number of images measured."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of correct images, 0 to 1."""
        return self.correct / self.total

    @property
    def class_accuracy(self) -> list[float | None]:
        """Share of correct images of each class; None for a class without images."""
        counts = self.confusion.sum(axis=1)
        hits = np.diagonal(self.confusion)
        return [float(h / n) if n else None for h, n in zip(hits, counts, strict=True)]


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and give every module its own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def images_at_once(image_size: int, most: int) -> int:
    """Return how many images a forward pass may take: ``most``, fewer of large images.

    Example:
        >>> images_at_once(32, 128), images_at_once(1024, 128)
        (128, 1)
    """
    return max(1, min(most, BATCH_BYTES // (BYTES_PER_PIXEL * image_size**2)))


def evaluate(
    model: nn.Module,
    split: Split,
    normalization: Normalization,
    *,
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure a classifier in eval mode; its buffers, modes and gradients stay as they were.

    Args:
        model: Maps (N, 3, H, W) to logits (N, K).
        split: Images and labels.
        normalization: The scaling that the model was trained with.
        batch_size: Images a forward pass; fewer are taken if they are large.
        on_batch: Called after each batch with the images done and their total; may raise.
    """
    device = _device(model)
    batch_size = images_at_once(split.images.shape[1], batch_size)
    loader = Loader(split, batch_size, normalization)
    predicted: list[Tensor] = []
    loss = 0.0
    with eval_mode(model), torch.inference_mode():
        for images, labels in loader.epoch(0):
            logits = model(images.to(device)).cpu().double()
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            predicted.append(logits.argmax(dim=1))
            if on_batch:
                on_batch(sum(map(len, predicted)), len(split))
    pairs = split.labels * logits.shape[1] + torch.cat(predicted).numpy()
    confusion = np.bincount(pairs, minlength=logits.shape[1] ** 2)
    return Evaluation(loss / len(split), confusion.reshape(logits.shape[1], -1))


def _device(model: nn.Module) -> torch.device:
    """Return where a model computes: on the CPU if it holds no tensor that would tell."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device
