"""What each variant did and what it cost, in a few numbers: the tables of the page."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from gammabeta.insight.compare.claims import Evidence
from gammabeta.insight.compare.job import BATCH, SWEEP
from gammabeta.insight.compare.measures import epochs_to, thresholds
from gammabeta.insight.compare.plan import Record, chosen_rates

OUTCOMES = ("trained", "chance", "nonfinite")


def summary(evidence: Evidence) -> dict[str, dict[str, Any]]:
    """Return by variant: rate, accuracies, epochs to thresholds, sweep, cost, batch sizes."""
    return {name: _of_variant(evidence, name) for name in evidence.settings.variants}


def _of_variant(evidence: Evidence, name: str) -> dict[str, Any]:
    full = [record for record in evidence.full(name) if record]
    tested = [record["test"] for record in full if record["test"]]
    return {
        "lr": chosen_rates(evidence.settings, evidence.records).get(name),
        "seeds": [record["seed"] for record in full],
        "best": spread([t["best"] for t in tested]),
        "last": spread([t["last"] for t in tested]),
        "reached": _reached(evidence, full),
        "sweep": _sweep(evidence, name),
        "outcomes": _outcomes(evidence, name),
        "cost": _cost(evidence, name),
        "batch_sizes": _batch_sizes(evidence, name),
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return values with their mean and standard deviation, as far as they have them."""
    return {
        "values": list(values),
        "mean": mean(values) if values else None,
        "deviation": stdev(values) if len(values) > 1 else None,
    }


def _reached(evidence: Evidence, full: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the epochs to the thresholds of batch norm and none, as in the claim."""
    pair = [r for name in ("bn", "none") if evidence.has(name) for r in evidence.full(name) if r]
    return [
        {"accuracy": level, "epochs": [epochs_to(r, level, evidence.classes) for r in full]}
        for level in thresholds(pair, evidence.classes)
    ]


def _of_stage(evidence: Evidence, name: str, stage: str) -> list[Record]:
    return [r for r in evidence.records if r["stage"] == stage and r["variant"] == name]


def _sweep(evidence: Evidence, name: str) -> list[dict[str, Any]]:
    records = _of_stage(evidence, name, SWEEP)
    return [
        {
            "lr": lr,
            "seeds": [r["seed"] for r in records if r["lr"] == lr],
            "outcomes": [r["outcome"] for r in records if r["lr"] == lr],
            "accuracy": [
                r["points"][-1]["accuracy"] if r["points"] else None
                for r in records
                if r["lr"] == lr
            ],
        }
        for lr in evidence.plan.rates
    ]


def _outcomes(evidence: Evidence, name: str) -> dict[str, int]:
    found = [r["outcome"] for r in _of_stage(evidence, name, SWEEP)]
    return {outcome: found.count(outcome) for outcome in OUTCOMES}


def _cost(evidence: Evidence, name: str) -> dict[str, float | None]:
    plan = evidence.plan
    alone = plan.cost.get("1", {})
    return {
        "step_milliseconds": 1000 * plan.step_seconds[name],
        "step_bytes": alone.get("step_bytes", {}).get(name),
        "model_bytes": alone.get("model_bytes", {}).get(name),
    }


def _batch_sizes(evidence: Evidence, name: str) -> list[dict[str, Any]]:
    records = sorted(_of_stage(evidence, name, BATCH), key=lambda r: int(r["batch_size"]))
    return [
        {
            "batch_size": r["batch_size"],
            "lr": r["lr"],
            "outcome": r["outcome"],
            "accuracy": r["points"][-1]["accuracy"] if r["points"] else None,
            "train_seconds": r["train_seconds"],
        }
        for r in records
    ]
