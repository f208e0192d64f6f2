"""Numbers of one training, or of one variant with one seed: what the claims are judged by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gammabeta.insight.compare.job import SWEEP
from gammabeta.insight.compare.plan import Record

LEVELS = (0.5, 0.75, 0.95)
"""Thresholds, as shares of the way from chance to the best accuracy that every training reaches."""


def thresholds(records: Sequence[Record], classes: int) -> list[float]:
    """Return accuracies that all the trainings reach, in whole percent, rising.

    Example:
        >>> curve = {"points": [{"accuracy": 0.4}, {"accuracy": 0.7}]}
        >>> thresholds([curve], classes=10)
        [0.4, 0.55, 0.67]
    """
    tops = [max((p["accuracy"] for p in r["points"]), default=0.0) for r in records]
    chance = 1 / classes
    top = min(tops, default=0.0)
    found = {math.floor(100 * (chance + level * (top - chance)) + 1e-9) / 100 for level in LEVELS}
    return sorted(value for value in found if value > chance)


def epochs_to(record: Record, accuracy: float, classes: int) -> float | None:
    """Return the epochs after which a validation accuracy is first reached, None if never.

    Between two measurements it is taken to rise in a straight line, from chance at the start.

    Example:
        >>> curve = {"points": [{"epoch": 1.0, "accuracy": 0.5}, {"epoch": 2.0, "accuracy": 0.7}]}
        >>> [epochs_to(curve, a, classes=10) for a in (0.3, 0.6, 0.8)]
        [0.5, 1.5, None]
    """
    epoch, before = 0.0, 1 / classes
    for point in record["points"]:
        if point["accuracy"] >= accuracy:
            share = (accuracy - before) / (point["accuracy"] - before)
            return round(float(epoch + share * (point["epoch"] - epoch)), 9)
        epoch, before = point["epoch"], point["accuracy"]
    return None


def usable_decades(
    records: Sequence[Record], name: str, seed: int, rates: Sequence[float]
) -> float | None:
    """Return how many decades of learning rates train at all, None unless all were tried.

    Each rate of the grid stands for the cell around it.
    """
    trained = _trained(records, name, seed)
    if set(trained) != set(rates):
        return None
    cells = np.gradient(np.log10(rates))
    return float(sum(cell for cell, lr in zip(cells, rates, strict=True) if trained[lr]))


def highest_rate(
    records: Sequence[Record], name: str, seed: int, rates: Sequence[float]
) -> float | None:
    """Return the decimal logarithm of the highest rate that trains, None unless all were tried."""
    trained = _trained(records, name, seed)
    usable = [math.log10(lr) for lr in trained if trained[lr]]
    return max(usable) if usable and set(trained) == set(rates) else None


def _trained(records: Sequence[Record], name: str, seed: int) -> dict[float, bool]:
    return {
        r["lr"]: r["outcome"] == "trained"
        for r in records
        if r["stage"] == SWEEP and r["variant"] == name and r["seed"] == seed
    }


def gradient_variability(record: Record) -> float | None:
    """Return the median change of the gradient norm from step to step, as a factor's logarithm.

    Example:
        >>> round(gradient_variability({"gradient_norm": [1.0, 2.0, 1.0, 2.0]}), 3)
        0.693
    """
    norms = np.array([n for n in record["gradient_norm"] if n], np.float64)
    return float(np.median(np.abs(np.diff(np.log(norms))))) if len(norms) > 1 else None


def roughness(walk: Mapping[str, Any]) -> dict[str, float] | None:
    """Return what one look at the landscape gives, None if the walk left the finite numbers.

    ``loss_range``: the largest loss on the walk less the smallest; ``gradient_change``: how far the
    gradient moved, at most; ``smoothness``: the largest effective β.
    """
    losses = [walk["loss"], *walk["losses"]]
    if None in losses or None in walk["distances"] or None in walk["smoothness"]:
        return None
    return {
        "loss_range": max(losses) - min(losses),
        "gradient_change": max(walk["distances"]),
        "smoothness": max(walk["smoothness"]),
    }


def typical_roughness(first: Record, second: Record, name: str) -> tuple[float, float] | None:
    """Return both trainings' geometric means of a roughness, over walks that both survived."""
    pairs = [
        (a[name], b[name])
        for a, b in zip(
            map(roughness, first["landscape"]), map(roughness, second["landscape"]), strict=False
        )
        if a and b and a[name] > 0 and b[name] > 0
    ]
    if not pairs:
        return None
    one, other = np.exp(np.log(np.array(pairs)).mean(axis=0))
    return float(one), float(other)
