"""What the page of a comparison is made from: its numbers in words, and thinned for the figures."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from gammabeta.insight import render
from gammabeta.insight.compare.job import FULL

if TYPE_CHECKING:
    from gammabeta.insight.compare.comparison import Comparison

MOST_STEPS = 160
"""Gradient norms of a training that a figure shows, at most; each is a median of its neighbours."""


def write_page(comparison: Comparison, path: str | os.PathLike[str], lang: str) -> None:
    """Write the page whole or not at all."""
    found = context(comparison)
    if lang in render.LANGUAGES:
        words = render.messages("compare", lang)
        lines = [(words.get(name, name), value) for name, value in found["meta"]["lines"]]
        found["meta"]["lines"] = lines
    render.write(path, render.page("compare", found, lang))


def context(comparison: Comparison) -> dict[str, Any]:
    """Return what the template reads."""
    document = comparison.to_dict()
    settings, plan = document["settings"], document["plan"]
    lines = [("Python", document["python"]), ("CPU", f"{document['cpu']}, {document['cores']} ×")]
    if plan:
        lines.append(("meta.processes", f"{plan['workers']} × {plan['threads']}"))
    lines.append(("meta.seeds", ", ".join(map(str, comparison.settings.all_seeds))))
    lines.append(("meta.precision", settings["precision"]))
    return {
        "meta": {**document, "lines": lines},
        "result": document,
        "cards": [card(claim) for claim in document["claims"]],
        "rows": [row(claim["id"], m) for claim in document["claims"] for m in claim["measures"]],
        "epochs": plan and epochs(plan["full_steps"], document),
        "sweep_epochs": plan and epochs(plan["sweep_steps"], document),
        "data": document | {"trainings": [thin(r) for r in document["trainings"]]},
    }


def epochs(steps: int, document: dict[str, Any]) -> str:
    """Return steps as epochs, to two figures.

    Example:
        >>> epochs(100, {"settings": {"batch_size": 50}, "images": {"train": 400}})
        '12'
        >>> epochs(10, {"settings": {"batch_size": 50}, "images": {"train": 400}})
        '1.2'
    """
    value = steps * document["settings"]["batch_size"] / document["images"]["train"]
    return f"{value:.0f}" if value >= 9.95 else f"{value:.2g}"


def card(claim: dict[str, Any]) -> dict[str, Any]:
    """Return a claim with its decisive figure in words."""
    shown = {key: claim[key] for key in ("id", "verdict", "reason")}
    if not claim["measures"]:
        return shown | {"big": "–", "interval": None, "detail": {}}
    first = claim["measures"][0]
    return (
        shown | row(claim["id"], first) | {"verdict": claim["verdict"], "reason": claim["reason"]}
    )


def row(claim: str, measure: dict[str, Any]) -> dict[str, Any]:
    """Return a measure with its numbers in words, for the cards and the table."""
    unit = measure["unit"]
    interval = measure["interval"]
    return {
        "id": claim,
        "measure": measure["id"],
        "threshold": percent(measure["detail"]["threshold"]) if "threshold" in measure["detail"]
        else None,
        "big": amount(measure["mean"], unit),
        "interval": [amount(end, unit) for end in interval] if interval else None,
        "smallest": amount(measure["smallest"], unit),
        "effect_size": "–" if measure["effect_size"] is None else f"{measure['effect_size']:.1f}",
        "count": len(measure["differences"]),
        "verdict": measure["verdict"],
        "reason": measure["reason"],
        "unit": unit,
    }  # fmt: skip


def amount(value: float | None, unit: str) -> str:
    """Return a difference as people read it: a ratio, or points of accuracy with their sign.

    Example:
        >>> amount(1.0, "ratio"), amount(-0.0123, "accuracy"), amount(0.5, "decades")
        ('2.00×', '−1.23', '3.2×')
        >>> amount(None, "ratio")
        '–'
    """
    if value is None:
        return "–"
    if unit == "accuracy":
        return f"{100 * value:+.2f}".replace("-", "−")
    ratio = 2**value if unit == "ratio" else 10**value
    figures = 2 if unit == "ratio" else 1
    return f"{ratio:.0f}×" if ratio >= 100 else f"{ratio:.{figures}f}×"


def percent(value: float) -> str:
    """Return a share as a percentage.

    Example:
        >>> percent(0.67)
        '67 %'
    """
    return f"{100 * value:.0f} %"


def thin(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record without what no figure shows."""
    kept = {key: value for key, value in record.items() if key not in {"loss", "gradient_norm"}}
    if record["stage"] != FULL:
        return kept | {"gradient_norm": []}
    norms = record["gradient_norm"]
    every = max(1, -(-len(norms) // MOST_STEPS))
    blocks = [sorted(n for n in norms[i : i + every] if n) for i in range(0, len(norms), every)]
    medians = [block[len(block) // 2] if block else None for block in blocks]
    return kept | {"gradient_norm": medians, "gradient_norm_every": every}
