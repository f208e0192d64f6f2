"""Small real comparisons, and journals of made-up trainings with a planted effect."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from gammabeta.data import Dataset
from gammabeta.insight.compare import Comparison, compare
from gammabeta.insight.compare.comparison import machine
from gammabeta.insight.compare.job import FULL, SWEEP
from gammabeta.insight.compare.journal import Journal
from gammabeta.insight.compare.plan import Plan
from gammabeta.insight.compare.settings import HeldOut, Settings, hold_out
from gammabeta.models import VARIANTS
from training_helpers import digits

CLOCK = {"train_seconds", "wall_seconds", "seconds"}
RATES = (0.003, 0.03, 0.3)


def tiny_settings(dataset: Dataset | None = None, **changes: Any) -> Settings:
    """Settings as compare() makes them for digits of 8 pixels."""
    of = dataset or digits()
    given = {"data": of.name, "budget": 300.0, "rates": RATES, "batch_size": 64, "image_size": 8}
    return Settings(**given | {"seeds": 2} | changes)


def fixed_plan(settings: Settings, **changes: Any) -> Plan:
    """A settled plan of a few steps a training, so that no clock decides the lengths."""
    times = dict.fromkeys(settings.variants, 0.005)
    images = dict.fromkeys(settings.variants, 0.0001)
    given = {
        "workers": 2, "threads": 1, "rates": settings.rates, "step_seconds": times,
        "evaluation_seconds": images, "cost": {}, "sweep_steps": 8, "full_steps": 24,
        "settled": True, "finalists": 1,
    }  # fmt: skip
    return Plan(**given | changes)


def begin(path: Path, settings: Settings, plan: Plan) -> None:
    """Write a journal that holds a plan and no training yet."""
    journal = Journal(path, settings.identity(held()), machine(None))
    journal.keep_plan(plan)
    journal.close()


@functools.cache
def held() -> HeldOut:
    """Digits with a tenth held out."""
    return hold_out(digits())


def carry_on(path: Path, settings: Settings, **options: Any) -> Comparison:
    """Call compare() so that its settings are these."""
    return compare(
        digits(),
        journal=path,
        variants=settings.variants,
        seeds=settings.seeds,
        seed=settings.seed,
        budget=settings.budget / 60,
        rates=settings.rates,
        batch_size=settings.batch_size,
        precision=settings.precision,
        **options,
    )


@functools.cache
def finished(folder: Path) -> tuple[Path, Comparison]:
    """A whole comparison of all variants, really trained, once for each test process."""
    settings = tiny_settings(variants=VARIANTS)
    plan = fixed_plan(settings, batch_images=128, cost=_pilot(settings))
    path = folder / "finished.jsonl"
    begin(path, settings, plan)
    return path, carry_on(path, settings, command="gammabeta compare --data digits")


def _pilot(settings: Settings) -> dict[str, Any]:
    sizes = dict.fromkeys(settings.variants, 10**7)
    return {"1": {"step_bytes": sizes, "model_bytes": sizes, "threads": 2}}


def without_clock(value: Any) -> Any:
    """A record without what a clock decides."""
    if isinstance(value, dict):
        return {k: without_clock(v) for k, v in value.items() if k not in CLOCK}
    return [without_clock(v) for v in value] if isinstance(value, list) else value


def by_key(comparison: Comparison) -> dict[str, Any]:
    """Trainings by what they are of, without what a clock decides."""
    names = ("stage", "variant", "lr", "seed", "batch_size")
    return {json.dumps([r[name] for name in names]): without_clock(r) for r in comparison.records}


def made_up(
    *, seeds: int = 3, gain: float = 0.0, speed: float = 1.0, dropout: float = 0.0,
    fewer: int = 0, noise: tuple[float, ...] = (0.001, -0.001, 0.0005, 0.0, -0.0007),
) -> Comparison:  # fmt: skip
    """A finished comparison of invented trainings: batch norm differs from none as asked.

    Args:
        seeds: How many.
        gain: Accuracy that batch norm adds.
        speed: How many times as fast it rises.
        dropout: Accuracy that Dropout adds without batch norm; with it, nothing.
        fewer: Highest rates of the grid that train only with batch norm.
        noise: Added to accuracies, one a seed.
    """
    rates = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    settings = tiny_settings(seeds=seeds, rates=rates, variants=VARIANTS)
    plan = fixed_plan(settings)
    lines: list[dict[str, Any]] = [
        {"kind": "settings", **settings.identity(held())},
        {"kind": "session", "began": "2026-01-01T00:00:00+00:00", **machine(None)},
        {"kind": "plan", **plan.to_dict()},
    ]
    for seed in settings.all_seeds:
        for name in VARIANTS:
            with_bn = name.startswith("bn")
            usable = rates if with_bn else rates[: len(rates) - fewer]
            lines += [_sweep(name, seed, lr, trains=lr in usable) for lr in rates]
            top = 0.6 + gain * with_bn + dropout * (name == "dropout")
            top += noise[seed % len(noise)] * (1 + with_bn)
            lines.append(_full(name, seed, top, speed if with_bn else 1.0))
    lines.append({"kind": "end", "by": "done", "at": "2026-01-01T00:01:00+00:00"})
    return Comparison.of_lines(json.loads(json.dumps(lines)))


def _sweep(name: str, seed: int, lr: float, *, trains: bool) -> dict[str, Any]:
    accuracy = 0.5 if trains and lr == 0.01 else 0.3 if trains else 0.1
    return _record(SWEEP, name, seed, lr, "trained" if trains else "chance", [(8, 0.4, accuracy)])


def _full(name: str, seed: int, top: float, speed: float) -> dict[str, Any]:
    times = [i / 12 for i in range(1, 13)]
    points = [(2 * i + 2, x, min(top, top * speed * x + 0.1)) for i, x in enumerate(times)]
    test = {"last": top, "best": top}
    return _record(FULL, name, seed, 0.01, "trained", points) | {"test": test}


def _record(
    stage: str, name: str, seed: int, lr: float, outcome: str, points: list[Any]
) -> dict[str, Any]:
    return {
        "kind": "job", "stage": stage, "variant": name, "lr": lr, "seed": seed,
        "steps": points[-1][0], "batch_size": 64, "outcome": outcome, "train_seconds": 1.0,
        "wall_seconds": 1.0, "test": None, "loss": [2.0], "gradient_norm": [1.0, 1.1, 1.0],
        "landscape": [], "final_loss": 2.0, "steps_taken": points[-1][0],
        "points": [
            {"step": s, "epoch": e, "seconds": e, "train_loss": 2.0, "accuracy": a}
            for s, e, a in points
        ],
    }  # fmt: skip
