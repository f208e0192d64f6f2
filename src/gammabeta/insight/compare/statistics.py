"""From differences between two variants, one a seed, to a verdict by a rule stated beforehand.

The two variants of a pair share initial weights, data order and augmentation, so that much of a
seed's luck cancels in their difference. The rule:

- *supported*: the 95 % interval of the mean difference lies above the smallest effect that would
  matter, and the seeds agree: up to five of them all have the same sign, more pass the exact
  sign-flip test at 5 %.
- *not supported*: the interval lies below that smallest effect.
- *undecided*: anything else; always with a single seed.

The interval is the wider, end by end, of Student's paired one and of the bootstrap's percentiles.
With three seeds the bootstrap has ten different means to draw and is too narrow, so that Student's
decides; with many and lopsided differences it may be the other way round.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

SUPPORTED, REFUTED, UNDECIDED = "supported", "not supported", "undecided"
CONFIDENCE = 0.95
RESAMPLES = 10_000
FEW = 5
"""Up to so many seeds must all agree; no exact test can reach 5 % with them."""
EXACT = 14
"""Up to so many seeds all sign flips are counted; beyond, as many are drawn."""
STUDENT = (
    12.706, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
"""Student's 97.5 % quantiles for 1 to 30 degrees of freedom."""
Interval = tuple[float, float]


@dataclass(frozen=True)
class Judgement:
    """What the differences say.

    Args:
        differences: One a seed; above 0 speaks for the claim.
        smallest: The smallest mean difference that would matter, above 0.
        resolution: How finely a difference can be measured at all; the interval is widened by half
            of it at both ends.
        mean: Of the differences; None without any.
        interval: The one that decides; None with fewer than two differences.
        student: Student's paired interval.
        bootstrap: The bootstrap's percentiles.
        effect_size: Mean by standard deviation (Cohen's d for pairs); None if that is 0.
        sign_flip_p: Two-sided, exact: share of sign flips with a mean as far from 0.
        verdict: "supported", "not supported" or "undecided".
        reason: Why: "above", "below", "across", "signs", "one-seed" or "no-data".
    """

    differences: tuple[float, ...]
    smallest: float
    resolution: float
    mean: float | None
    interval: Interval | None
    student: Interval | None
    bootstrap: Interval | None
    effect_size: float | None
    sign_flip_p: float | None
    verdict: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return dataclasses.asdict(self)


def judge(differences: Sequence[float], smallest: float, resolution: float = 0.0) -> Judgement:
    """Apply the rule to differences of which positive ones speak for the claim.

    Example:
        >>> judge([2.0, 2.2, 1.9], smallest=0.5).verdict
        'supported'
        >>> judge([0.1, -0.1, 0.0], smallest=0.5).verdict
        'not supported'
        >>> judge([2.0], smallest=0.5).verdict, judge([2.0, 4.0, -1.0], smallest=0.5).verdict
        ('undecided', 'undecided')
    """
    d = np.asarray(differences, np.float64)
    if len(d) < 2:
        mean = float(d[0]) if len(d) else None
        reason = "one-seed" if len(d) else "no-data"
        return Judgement(
            tuple(map(float, d)), smallest, resolution, mean,
            None, None, None, None, None, UNDECIDED, reason,
        )  # fmt: skip
    student, bootstrap = student_interval(d), bootstrap_interval(d)
    low = min(student[0], bootstrap[0]) - resolution / 2
    high = max(student[1], bootstrap[1]) + resolution / 2
    p = sign_flip_p(d)
    agree = bool((d > 0).all()) if len(d) <= FEW else p <= 1 - CONFIDENCE
    verdict, reason = _verdict(low, high, smallest, agree=agree)
    spread = float(d.std(ddof=1))
    return Judgement(
        differences=tuple(map(float, d)),
        smallest=smallest,
        resolution=resolution,
        mean=float(d.mean()),
        interval=(low, high),
        student=student,
        bootstrap=bootstrap,
        effect_size=float(d.mean()) / spread if spread > 0 else None,
        sign_flip_p=p,
        verdict=verdict,
        reason=reason,
    )


def _verdict(low: float, high: float, smallest: float, *, agree: bool) -> tuple[str, str]:
    if high < smallest:
        return REFUTED, "below"
    if low <= smallest:
        return UNDECIDED, "across"
    return (SUPPORTED, "above") if agree else (UNDECIDED, "signs")


def student_interval(d: npt.NDArray[np.float64]) -> Interval:
    """Return the paired 95 % interval of the mean.

    Example:
        >>> [round(end, 3) for end in student_interval(np.array([1.0, 2.0, 3.0]))]
        [-0.484, 4.484]
    """
    freedom = len(d) - 1
    # beyond the table the next term of the expansion in 1/freedom is below 0.001
    t = STUDENT[freedom - 1] if freedom <= len(STUDENT) else 1.95996 + 2.3723 / freedom
    half = t * float(d.std(ddof=1)) / math.sqrt(len(d))
    return float(d.mean()) - half, float(d.mean()) + half


def bootstrap_interval(d: npt.NDArray[np.float64], seed: int = 0) -> Interval:
    """Return the 2.5 and 97.5 % percentiles of the means of resampled differences, seeded."""
    drawn = np.random.default_rng(seed).integers(0, len(d), (RESAMPLES, len(d)))
    tails = (1 - CONFIDENCE) / 2
    low, high = np.quantile(d[drawn].mean(axis=1), [tails, 1 - tails])
    return float(low), float(high)


def sign_flip_p(d: npt.NDArray[np.float64]) -> float:
    """Return the share of sign flips that give a mean at least as far from 0.

    Example:
        >>> sign_flip_p(np.array([1.0, 2.0, 3.0]))
        0.25
    """
    if len(d) <= EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(d))))
    else:
        drawn = np.random.default_rng(0).integers(0, 2, (2**EXACT - 1, len(d)))
        signs = np.vstack([np.ones(len(d)), 1.0 - 2.0 * drawn])
    return float((np.abs(signs @ d) >= abs(d.sum()) * (1 - 1e-12)).mean())
