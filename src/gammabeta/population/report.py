"""What a recalibration found and changed, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gammabeta.moments import Array
from gammabeta.population.estimate import Errors
from gammabeta.surgery.report import Entry


@dataclass(frozen=True, eq=False)
class Change:
    """The statistics of one layer, old and new, (C,) float64 each.

    Args:
        path: Of the layer in the model.
        values: Values per channel that were measured.
        calls: How often a forward calls the layer, where that was counted.
        old_mean: The running mean before.
        old_var: The running variance before.
        mean: The running mean now.
        var: The running variance now.
        errors: Standard errors of the new ones, None of fewer than two batches.
    """

    path: str
    values: int
    calls: int
    old_mean: Array
    old_var: Array
    mean: Array
    var: Array
    errors: Errors | None

    @property
    def was_broken(self) -> bool:
        """Whether the old statistics held NaN or infinity."""
        return not bool(np.isfinite(self.old_mean).all() and np.isfinite(self.old_var).all())

    @property
    def mean_distance(self) -> Array | None:
        """How many standard errors the old mean lies from the new one, (C,)."""
        return None if self.errors is None else _ratio(self.mean - self.old_mean, self.errors.mean)

    @property
    def var_distance(self) -> Array | None:
        """How many standard errors the old variance lies from the new one, (C,)."""
        return None if self.errors is None else _ratio(self.var - self.old_var, self.errors.var)

    @property
    def relative_error(self) -> float | None:
        """The largest standard error of a mean, as a share of the channel's standard deviation."""
        if self.errors is None:
            return None
        return float(_ratio(self.errors.mean, np.sqrt(self.var)).max(initial=0.0))

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "layer": self.path,
            "values_per_channel": self.values,
            "calls_per_forward": self.calls,
            **{name: _plain(getattr(self, name)) for name in ("old_mean", "old_var")},
            **{name: _plain(getattr(self, name)) for name in ("mean", "var")},
            "mean_standard_error": _plain(self.errors.mean if self.errors else None),
            "var_standard_error": _plain(self.errors.var if self.errors else None),
            "mean_distance_in_standard_errors": _plain(self.mean_distance),
            "var_distance_in_standard_errors": _plain(self.var_distance),
        }


@dataclass(frozen=True, eq=False)
class Recalibration:
    """What :func:`gammabeta.recalibrate` did.

    Args:
        changes: The layers whose statistics were measured, in the model's order.
        left: The layers that were left alone, and why.
        batches: Measured, in all processes.
        samples: In them.
        sequential: Whether each layer was fed as eval mode feeds it.
        variance: "pooled" or "mean-of-batches".
        spilled: Bytes that this process moved to disk on the way.
        notes: What a reader should know of the result.
    """

    changes: list[Change]
    left: list[Entry]
    batches: int
    samples: int
    sequential: bool
    variance: str
    spilled: int = 0
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return a table, and what was left."""
        lines = [_line(cells) for cells in (_HEADER, *map(_row, self.changes))]
        lines += [f"left  {entry.path}: {entry.what}" for entry in self.left]
        return "\n".join([*lines, *(f"note  {note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data, for JSON."""
        return {
            "batches": self.batches,
            "samples": self.samples,
            "sequential": self.sequential,
            "variance": self.variance,
            "spilled_bytes": self.spilled,
            "layers": [change.to_dict() for change in self.changes],
            "left": [{"layer": entry.path, "reason": entry.what} for entry in self.left],
            "notes": self.notes,
        }


_HEADER = ("layer", "values", "mean moved by", "var by", "standard error")
_WIDTHS = (24, 10, 16, 10, 16)


def _line(cells: tuple[str, ...]) -> str:
    return " ".join(cell.rjust(width) for cell, width in zip(cells, _WIDTHS, strict=True))


def _row(change: Change) -> tuple[str, ...]:
    """Return one line: the root mean square distances, and how sure the new mean is."""
    error = change.relative_error
    return (
        change.path or "(the model)",
        f"{change.values:,}",
        _distance(change.mean_distance),
        _distance(change.var_distance),
        "unknown" if error is None else f"{error:.2g} σ",
    )


def _distance(distances: Array | None) -> str:
    if distances is None:
        return "unknown"
    if np.isnan(distances).any():
        return "NaN before"
    return f"{np.sqrt((distances**2).mean()):.1f} se"


def _ratio(a: Array, b: Array) -> Array:
    """Return a / b; nought where both are, and infinity where b alone is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(a == 0, 0.0, a / b)


def _plain(values: Array | None) -> list[float | None] | None:
    """Return numbers as JSON knows them: null for NaN and infinity."""
    if values is None:
        return None
    return [float(v) if np.isfinite(v) else None for v in values]
