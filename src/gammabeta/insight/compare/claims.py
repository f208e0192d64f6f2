"""The tutorial's four claims, each judged by one measure named beforehand, with others beside it.

Pairs are taken seed by seed, each variant at its own learning rate, which validation images chose.
Ratios are compared by their logarithm to base 2.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gammabeta.insight.compare.job import FULL
from gammabeta.insight.compare.measures import (
    epochs_to,
    gradient_variability,
    highest_rate,
    thresholds,
    typical_roughness,
    usable_decades,
)
from gammabeta.insight.compare.plan import Plan, Record, chosen_rates
from gammabeta.insight.compare.settings import Settings
from gammabeta.insight.compare.statistics import REFUTED, SUPPORTED, UNDECIDED, Judgement, judge

POINT = 0.005
"""Half a percentage point of accuracy: the smallest difference that would matter."""
TENTH = math.log2(1.1)
"""A tenth: the smallest ratio that would matter."""
FACTOR_TWO = math.log10(2)
"""A factor of two in the range of learning rates."""

ROUGHNESS = ("smoothness", "loss_range", "gradient_change")


@dataclass(frozen=True)
class Measure:
    """One comparison of two variants, or of two differences.

    Args:
        id: Its name.
        unit: "ratio" (differences are base 2 logarithms), "accuracy" or "decades".
        values: By variant, one a seed; None where a training is missing or never got there.
        seeds: The seeds of the values.
        judgement: Over the seeds that have all values.
        detail: What else belongs to it, such as a threshold.
    """

    id: str
    unit: str
    values: dict[str, list[float | None]]
    seeds: list[int]
    judgement: Judgement
    detail: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        shown = dataclasses.asdict(self)
        judged: dict[str, Any] = shown.pop("judgement")
        return shown | judged


@dataclass(frozen=True)
class Claim:
    """A claim, its verdict, and the measures, the deciding one first.

    Args:
        id: "faster", "accurate", "stable" or "dropout".
        verdict: "supported", "not supported" or "undecided".
        reason: As in :class:`Judgement`; or "missing-variants", or "dropout-never-helped".
        measures: The first decides.
    """

    id: str
    verdict: str
    reason: str
    measures: list[Measure]

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "id": self.id,
            "verdict": self.verdict,
            "reason": self.reason,
            "measures": [measure.to_dict() for measure in self.measures],
        }


@dataclass(frozen=True)
class Evidence:
    """All trainings of a comparison, and how to find those that a claim needs.

    Args:
        settings: What was compared.
        plan: Lengths and costs.
        records: Finished trainings.
        classes: Number of classes.
        epoch_steps: Steps an epoch.
    """

    settings: Settings
    plan: Plan
    records: Sequence[Record]
    classes: int
    epoch_steps: float

    def full(self, name: str) -> list[Record | None]:
        """Return a variant's full trainings at its own learning rate, one a seed."""
        lr = chosen_rates(self.settings, self.records).get(name)
        found = {
            r["seed"]: r
            for r in self.records
            if r["stage"] == FULL and r["variant"] == name and r["lr"] == lr
        }
        return [found.get(seed) for seed in self.settings.all_seeds]

    def has(self, *names: str) -> bool:
        """Tell whether all these variants take part."""
        return set(names) <= set(self.settings.variants)


def claims(evidence: Evidence) -> list[Claim]:
    """Judge the four claims."""
    return [_faster(evidence), _accurate(evidence), _stable(evidence), _less_dropout(evidence)]


def _paired(
    evidence: Evidence,
    id: str,  # noqa: A002 - the measure's name
    unit: str,
    values: Mapping[str, Sequence[float | None]],
    difference: Callable[..., float],
    smallest: float,
    *,
    resolution: float = 0.0,
    **detail: Any,
) -> Measure:
    """Judge the differences over the seeds that have all values."""
    whole = [row for row in zip(*values.values(), strict=True) if None not in row]
    return Measure(
        id=id,
        unit=unit,
        values={name: list(column) for name, column in values.items()},
        seeds=evidence.settings.all_seeds,
        judgement=judge([difference(*row) for row in whole], smallest, resolution),
        detail=detail,
    )


def _claim(id: str, measures: list[Measure]) -> Claim:  # noqa: A002 - the claim's name
    if not measures:
        return Claim(id, UNDECIDED, "missing-variants", [])
    return Claim(id, measures[0].judgement.verdict, measures[0].judgement.reason, measures)


def _log_ratio(first: float, second: float) -> float:
    """Return log2(second / first): above 0 if the first needs less."""
    return math.log2(second / first)


def _faster(evidence: Evidence) -> Claim:
    """Epochs to the highest accuracy that both always reach; then the seconds, then easier ones."""
    if not evidence.has("bn", "none"):
        return _claim("faster", [])
    full = {name: evidence.full(name) for name in ("bn", "none")}
    there = [r for records in full.values() for r in records if r]
    measures = []
    for accuracy in reversed(thresholds(there, evidence.classes)):
        epochs = {
            name: [epochs_to(r, accuracy, evidence.classes) if r else None for r in records]
            for name, records in full.items()
        }
        seconds = {name: _seconds(evidence, name, column) for name, column in epochs.items()}
        for id_, values in (("epochs", epochs), ("seconds", seconds)):
            measures.append(
                _paired(evidence, id_, "ratio", values, _log_ratio, TENTH, threshold=accuracy)
            )
    return Claim("faster", UNDECIDED, "no-data", []) if not measures else _claim("faster", measures)


def _seconds(evidence: Evidence, name: str, epochs: Sequence[float | None]) -> list[float | None]:
    """Return epochs in seconds of one process, by the step's time as the pilot measured it."""
    epoch = evidence.epoch_steps * evidence.plan.step_seconds[name]
    return [None if value is None else value * epoch for value in epochs]


def _accuracies(evidence: Evidence, name: str, which: str) -> list[float | None]:
    """Return test accuracies; a training that exploded knows nothing: chance."""
    return [
        None if r is None else r["test"][which] if r["test"] else 1 / evidence.classes
        for r in evidence.full(name)
    ]


def _accurate(evidence: Evidence) -> Claim:
    if not evidence.has("bn", "none"):
        return _claim("accurate", [])
    measures = []
    for which in ("best", "last"):
        values = {name: _accuracies(evidence, name, which) for name in ("bn", "none")}
        measures.append(_paired(evidence, which, "accuracy", values, _minus, POINT))
    return _claim("accurate", measures)


def _minus(first: float, second: float) -> float:
    return first - second


def _stable(evidence: Evidence) -> Claim:
    """How wide the range of learning rates is; then gradients and landscape."""
    if not evidence.has("bn", "none"):
        return _claim("stable", [])
    measures = [_of_sweep(evidence, "rates", usable_decades)]
    measures.append(_of_sweep(evidence, "top_rate", highest_rate))
    pairs = list(zip(evidence.full("bn"), evidence.full("none"), strict=True))
    jumps: dict[str, list[float | None]] = {
        name: [gradient_variability(r) if r else None for r in evidence.full(name)]
        for name in ("bn", "none")
    }
    measures.append(_paired(evidence, "gradient_norm", "ratio", jumps, _log_ratio, TENTH))
    for id_ in ROUGHNESS:
        found = [typical_roughness(a, b, id_) if a and b else None for a, b in pairs]
        values: dict[str, list[float | None]] = {
            name: [pair[i] if pair else None for pair in found]
            for i, name in enumerate(("bn", "none"))
        }
        measures.append(_paired(evidence, id_, "ratio", values, _log_ratio, TENTH))
    return _claim("stable", measures)


def _of_sweep(
    evidence: Evidence,
    id: str,  # noqa: A002 - the measure's name
    decades: Callable[..., float | None],
) -> Measure:
    rates, seeds = evidence.plan.rates, evidence.settings.all_seeds
    values = {
        name: [decades(evidence.records, name, seed, rates) for seed in seeds]
        for name in ("bn", "none")
    }
    cell = math.log10(rates[-1] / rates[0]) / (len(rates) - 1)
    return _paired(
        evidence, id, "decades", values, _minus, FACTOR_TWO, resolution=cell, rates=list(rates)
    )


def _less_dropout(evidence: Evidence) -> Claim:
    """What Dropout adds without batch norm, less what it adds with it.

    There must be something to lessen: Dropout has to help without batch norm.
    """
    if not evidence.has("bn", "none", "dropout", "bn+dropout"):
        return _claim("dropout", [])
    of = {name: _accuracies(evidence, name, "best") for name in evidence.settings.variants}
    four = {name: of[name] for name in ("none", "dropout", "bn", "bn+dropout")}
    both = _paired(
        evidence, "interaction", "accuracy", four, lambda n, d, b, bd: (d - n) - (bd - b), POINT
    )
    without, within = (
        _paired(
            evidence, id_, "accuracy", {a: of[a], b: of[b]}, lambda plain, more: more - plain, POINT
        )
        for id_, a, b in (("without", "none", "dropout"), ("with", "bn", "bn+dropout"))
    )
    verdict, reason = both.judgement.verdict, both.judgement.reason
    if verdict != UNDECIDED and without.judgement.verdict != SUPPORTED:
        helped = without.judgement.verdict != REFUTED
        verdict, reason = UNDECIDED, "across" if helped else "dropout-never-helped"
    return Claim("dropout", verdict, reason, [both, without, within])
