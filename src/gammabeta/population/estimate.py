"""What one batch norm layer saw over many batches, and how sure that is.

Values of one batch resemble each other (a pixel its neighbours, and every batch before a layer was
normalised by statistics of its own), so that a standard error from the number of values would be
far too small. Consecutive batches are gathered into blocks instead, and the blocks compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gammabeta.moments import Array, Moments

MOST_BLOCKS = 64
"""Blocks kept of a layer; beyond it neighbours are merged, so that memory does not grow."""


class Estimate:
    """The moments of one layer's input, batch by batch.

    Args:
        channels: C.

    Example:
        >>> seen = Estimate(1)
        >>> for batch, values in enumerate(([1.0, 3.0], [2.0, 6.0])):
        ...     seen.add(batch, Moments.of(np.array([values]).T))
        >>> seen.pooled.mean, seen.pooled.unbiased_var, seen.mean_of_variances
        (array([3.]), array([4.66666667]), array([5.]))
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.batches = 0
        self._blocks: dict[int, Moments] = {}
        self._size = 1  # batches a block
        self._last = -1
        self._pooled: Moments | None = None
        self._variances, self._measured = np.zeros(channels), 0

    def add(self, batch: int, moments: Moments) -> None:
        """Add what one call saw; calls of one batch belong together.

        Args:
            batch: Its number, from 0, not below the one before.
            moments: Of the input, over C channels.
        """
        if moments.count == 0:
            return
        self._pooled = None
        self.batches += batch != self._last
        self._last = batch
        if moments.count > 1:
            self._variances += moments.unbiased_var
            self._measured += 1
        self._put(batch // self._size, moments)
        if len(self._blocks) > MOST_BLOCKS:
            self._halve()

    def _put(self, block: int, moments: Moments) -> None:
        before = self._blocks.get(block)
        self._blocks[block] = moments if before is None else before + moments

    def _halve(self) -> None:
        self._size *= 2
        blocks, self._blocks = self._blocks, {}
        for number, moments in blocks.items():
            self._put(number // 2, moments)

    @property
    def blocks(self) -> list[Moments]:
        """The moments of the blocks, in order."""
        return [self._blocks[number] for number in sorted(self._blocks)]

    @property
    def pooled(self) -> Moments:
        """The moments of all values together (the law of total variance, nothing averaged)."""
        if self._pooled is None:
            self._pooled = Moments.merge_all([Moments.empty(self.channels), *self.blocks])
        return self._pooled

    @property
    def mean_of_variances(self) -> Array:
        """The plain mean of the calls' unbiased variances; NaN if none had two values a channel."""
        if not self._measured:
            return np.full(self.channels, np.nan)
        return self._variances / self._measured

    @classmethod
    def of_all(cls, parts: list[Estimate]) -> Estimate:
        """Return what several processes saw together, the same bits for the same parts in order."""
        whole = cls(parts[0].channels)
        for number, moments in enumerate(b for part in parts for b in part.blocks):
            whole._blocks[number] = moments
        for part in parts:
            whole.batches += part.batches
            whole._variances += part._variances
            whole._measured += part._measured
        return whole

    def errors(self) -> Errors | None:
        """Return the standard errors of mean and variance; None of fewer than two blocks."""
        blocks, pooled = self.blocks, self.pooled
        if len(blocks) < 2:
            return None
        shares = np.array([[block.count / pooled.count] for block in blocks])
        means = np.stack([block.mean for block in blocks])
        squares = np.stack([b.var + (b.mean - pooled.mean) ** 2 for b in blocks])
        return Errors(
            _error(means, pooled.mean, shares),
            _error(squares, pooled.var, shares),
        )


@dataclass(frozen=True, eq=False)
class Errors:
    """Standard errors, (C,) each.

    Args:
        mean: Of the mean.
        var: Of the variance.
    """

    mean: Array
    var: Array


def _error(values: Array, whole: Array, shares: Array) -> Array:
    """Return the standard error of a mean of blocks, which weigh as many values as they hold.

    √(K / (K − 1) · Σ wᵢ² (bᵢ − b)²): the ratio estimator of cluster sampling (Cochran 1977,
    "Sampling Techniques", chapter 9A, clusters of unequal sizes).
    """
    count = len(values)
    spread: Array = (shares**2 * (values - whole) ** 2).sum(axis=0)
    return np.asarray(np.sqrt(spread * count / (count - 1)))
