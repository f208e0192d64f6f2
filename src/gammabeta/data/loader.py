"""Batches of images for a training loop, prepared one ahead by a background thread.

The data set stays in memory as bytes. A batch is one gather (shuffling, crop and flip) and one
scaling pass, in NumPy: torch's own thread pool stays free for the step that runs meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gammabeta.data.augment import Draw, crop_flip, draw
from gammabeta.data.dataset import Augmentation, Normalization, Split
from gammabeta.errors import DataError

T = TypeVar("T")

_ORDER, _AUGMENT = 0, 1  # independent random streams of one (seed, epoch)


class Loader:
    """Serves a split in batches; a batch is a pure function of (seed, epoch, position).

    Args:
        split: Images and labels, kept as they are.
        batch_size: Images a batch. The last batch holds what remains; a single remaining image
            joins the batch before it in training, because batch norm needs two values a channel.
        normalization: How bytes become numbers.
        augmentation: For training: random changes to each image, and an order of its own for
            each epoch. None, for measuring, serves the images as they are, in order.
        seed: Decides order and augmentation, together with the epoch.

    Raises:
        DataError: If the batch size is below one or the split is empty.

    Example:
        >>> from gammabeta.data import load
        >>> digits = load("digits")
        >>> loader = Loader(digits.train, 128, digits.normalization, digits.augmentation)
        >>> images, labels = next(iter(loader.epoch(0)))
        >>> images.shape, labels.shape
        (torch.Size([128, 3, 32, 32]), torch.Size([128]))
        >>> images.is_contiguous(memory_format=torch.channels_last)
        True
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        normalization: Normalization,
        augmentation: Augmentation | None = None,
        *,
        seed: int = 0,
    ) -> None:
        if batch_size < 1:
            raise DataError(f"batch size is {batch_size}, but a batch needs at least one image")
        if not len(split):
            raise DataError("the split holds no image; check the data set's folder")
        self.split = split
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.seed = seed
        pixels = split.images.shape[1] * split.images.shape[2]
        self._mean = np.tile(np.asarray(normalization.mean, np.float32), pixels)
        self._std = np.tile(np.asarray(normalization.std, np.float32), pixels)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        full, rest = divmod(len(self.split), self.batch_size)
        lonely = rest == 1 and self.augmentation is not None and full > 0
        return full + (rest > 0) - lonely

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch from batch ``start`` on.

        Args:
            epoch: Number of the epoch, from 0; with the seed it decides order and augmentation.
            start: First batch to serve; a resumed run continues in the middle of an epoch.

        Yields:
            Images, float32 (B, 3, H, W) in channels-last memory, and labels, int64 (B,).
        """
        order, drawn = self._shuffle(epoch)
        yield from one_ahead(lambda i: self._batch(order, drawn, i), range(start, len(self)))

    def _shuffle(self, epoch: int) -> tuple[npt.NDArray[np.int64], Draw | None]:
        count = len(self.split)
        if self.augmentation is None:
            return np.arange(count), None
        order = np.random.default_rng((self.seed, epoch, _ORDER)).permutation(count)
        rng = np.random.default_rng((self.seed, epoch, _AUGMENT))
        return order, draw(self.augmentation, count, rng)

    def _batch(
        self, order: npt.NDArray[np.int64], drawn: Draw | None, number: int
    ) -> tuple[Tensor, Tensor]:
        stop = None if number == len(self) - 1 else (number + 1) * self.batch_size
        index = order[number * self.batch_size : stop]
        images = self.split.images
        taken = images[index] if drawn is None else crop_flip(images, index, drawn)
        pixels = torch.from_numpy(self._normalize(taken)).permute(0, 3, 1, 2)
        return pixels, torch.from_numpy(self.split.labels[index])

    def _normalize(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Scale bytes as torchvision's ToTensor and Normalize do, to the same bits."""
        rows = images.reshape(len(images), -1).astype(np.float32)
        rows /= np.float32(255)
        rows -= self._mean
        rows /= self._std
        return rows.reshape(images.shape)


def one_ahead(make: Callable[[int], T], numbers: Iterable[int]) -> Iterator[T]:
    """Yield ``make(n)`` for each number while a thread already makes the next."""
    with ThreadPoolExecutor(1, thread_name_prefix="gammabeta-loader") as pool:
        pending: Future[T] | None = None
        for number in numbers:
            following = pool.submit(make, number)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
