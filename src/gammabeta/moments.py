"""Count, mean and M2 = Σ(x − mean)² of each channel, in float64, with an exact merge.

Batches, chunks of a large array and processes all describe what they saw by these three numbers,
and merging them gives the moments of all values together: nothing is averaged, so neither unequal
sizes nor the order matter beyond rounding. torch is not imported, though tensors are welcome.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gammabeta.errors import GammabetaError

if TYPE_CHECKING:
    from typing import Any

    from torch import Tensor

    Values: TypeAlias = NDArray[Any] | Tensor

Array: TypeAlias = NDArray[np.float64]

BLOCK = 2**16
"""Values converted to float64 at a time: 512 KiB, so that a block stays in the cache."""


@dataclass(frozen=True, eq=False)
class Moments:
    r"""How many values each channel had, their mean, and the sum of squares about it.

    Two parts are pooled by the update of Chan, Golub & LeVeque (1979, Stanford report
    STAN-CS-79-773; 1983, The American Statistician 37(3)), with :math:`\delta = \bar b - \bar a`:

    .. math:: \bar x = \bar a + \delta \frac{n_b}{n}, \qquad
              M = M_a + M_b + \delta^2 \frac{n_a n_b}{n}, \qquad n = n_a + n_b.

    It is free of the cancellation in E[x²] − E[x]², so data far from zero keep their variance.
    A NaN or an infinity makes its channel, and no other, NaN or infinite.

    Args:
        count: Values per channel; 0 is the empty set, the neutral element of merging.
        mean: (C,) float64.
        m2: (C,) float64.

    Example:
        >>> whole = Moments.of(np.array([[1.0], [2.0], [6.0]]))
        >>> whole.mean, whole.var, whole.unbiased_var
        (array([3.]), array([4.66666667]), array([7.]))
        >>> parts = Moments.of(np.array([[1.0]])) + Moments.of(np.array([[2.0], [6.0]]))
        >>> parts.count, parts.mean, parts.m2
        (3, array([3.]), array([14.]))
    """

    count: float
    mean: Array
    m2: Array

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.m2.shape:
            raise GammabetaError(
                f"moments need a mean and an M2 of one shape (C,), not {self.mean.shape} and "
                f"{self.m2.shape}"
            )

    @classmethod
    def empty(cls, channels: int) -> Moments:
        """Return the moments of no values at all."""
        return cls(0, np.zeros(channels), np.zeros(channels))

    @classmethod
    def of(cls, x: Values) -> Moments:
        """Measure an array or a tensor, on any device and in any real dtype and memory layout.

        Its axes are halved, the first first, until a block has ``BLOCK`` values or fewer; blocks
        are measured in two passes in float64 and merged as a tree. They depend on the shape alone,
        so equal values give equal bits in every memory layout.

        Args:
            x: (N, C, *). Left unchanged and never copied as a whole.

        Raises:
            GammabetaError: If x has fewer than two axes.
        """
        shape = tuple(x.shape)
        if len(shape) < 2:
            raise GammabetaError(f"moments need values of shape (N, C, ...), not {shape}")
        if np.prod(shape, dtype=float) <= BLOCK:
            return _two_pass(_block(x))
        axis = next(i for i, size in enumerate(shape) if size > 1)
        before, half = (slice(None),) * axis, shape[axis] // 2
        low, high = cls.of(x[*before, :half]), cls.of(x[*before, half:])
        if axis != 1:
            return low.merge(high)
        join = np.concatenate
        return cls(low.count, join([low.mean, high.mean]), join([low.m2, high.m2]))

    @classmethod
    def from_vector(cls, vector: NDArray[np.float64]) -> Moments:
        """Read what :meth:`to_vector` wrote.

        Raises:
            GammabetaError: If the vector's length is not 2C + 1.
        """
        if vector.ndim != 1 or vector.size % 2 == 0:
            raise GammabetaError(f"a vector of moments has shape (2C + 1,), not {vector.shape}")
        count = float(vector[0])
        mean, m2 = np.array(vector[1:], dtype=np.float64).reshape(2, -1)
        return cls(int(count) if count.is_integer() else count, mean, m2)

    @classmethod
    def merge_all(cls, parts: Iterable[Moments]) -> Moments:
        """Merge any number of parts as a balanced tree, whose rounding errors grow with log n.

        Processes that merge the same parts in the same order agree to the last bit.

        Raises:
            GammabetaError: If there is no part, since then the width is unknown too.
        """
        level = list(parts)
        if not level:
            raise GammabetaError("there are no moments to merge; begin with Moments.empty(C)")
        while len(level) > 1:
            pairs = zip(level[::2], level[1::2], strict=False)
            odd = level[-1:] if len(level) % 2 else []
            level = [a.merge(b) for a, b in pairs] + odd
        return level[0]

    def to_vector(self) -> NDArray[np.float64]:
        """Return count, mean and M2 as one (2C + 1,) float64 array.

        Gather the vectors of all processes and merge them; their sum means nothing.
        """
        return np.concatenate([[self.count], self.mean, self.m2], dtype=np.float64)

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets of values together, also written ``a + b``.

        Raises:
            GammabetaError: If the numbers of channels differ.
        """
        if self.mean.shape != other.mean.shape:
            raise GammabetaError(
                f"moments of {self.mean.size} and {other.mean.size} channels cannot be merged"
            )
        if self.count == 0 or other.count == 0:
            return self if other.count == 0 else other
        count = self.count + other.count
        with np.errstate(invalid="ignore", over="ignore"):
            delta = other.mean - self.mean
            mean = self.mean + delta * (other.count / count)
            m2 = self.m2 + other.m2 + delta**2 * (self.count * (other.count / count))
        return Moments(count, mean, m2)

    __add__ = merge

    @property
    def var(self) -> Array:
        """The biased variance M2 / count, which normalises; NaN where there are no values."""
        return self._divided(self.count)

    @property
    def unbiased_var(self) -> Array:
        """The unbiased M2 / (count − 1), which running statistics hold; NaN below two values."""
        return self._divided(self.count - 1)

    def _divided(self, by: float) -> Array:
        return self.m2 / by if by > 0 else np.full_like(self.m2, np.nan)


def _block(x: Values) -> Array:
    """Return x as contiguous (C, m) in float64; NumPy sums other layouts in another order."""
    if not isinstance(x, np.ndarray):
        x = x.detach().cpu().double().numpy()
    channels = x.shape[1]
    by_channel = np.moveaxis(np.asarray(x, dtype=np.float64), 1, 0)
    return np.ascontiguousarray(by_channel.reshape(channels, x.size // max(channels, 1)))


def _two_pass(x: Array) -> Moments:
    """Measure (C, m); the second pass also corrects the first (Chan et al. 1983, equation 1.7)."""
    channels, count = x.shape
    if count == 0:
        return Moments.empty(channels)
    with np.errstate(invalid="ignore", over="ignore"):
        mean = x.mean(axis=1)
        deviation = x - mean[:, None]
        rest = deviation.sum(axis=1)
        m2 = (deviation**2).sum(axis=1) - rest**2 / count
    return Moments(count, mean + rest / count, np.maximum(m2, 0))
