"""What was measured, a row for each subject, as data for a table and for JSON."""

from __future__ import annotations

import dataclasses
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gammabeta.bench.measure import NOISY_PERCENT, Samples
from gammabeta.bench.subjects import EAGER_LAST, EAGER_NCHW, OURS
from gammabeta.runtime import Runtime, has_bf16_instructions

FLOORS = {"block": "floor: a copy", "step": "floor: conv and linear alone"}
"""The subject that nothing can beat, by what is measured."""


@dataclass(frozen=True)
class Row:
    """One subject at one piece of work.

    Args:
        kind: "block" or "step".
        what: Which block, or the step of which model.
        precision: "fp32" or "bf16".
        subject: Who did it.
        milliseconds: Median over the rounds.
        milliseconds_min: The fastest round.
        milliseconds_max: The slowest round.
        spread_percent: Interquartile range as a percentage of the median.
        rounds: How many.
        speedup_over_eager_nchw: How many times as fast, the median of the rounds' ratios.
        speedup_over_eager_channels_last: The same against channels-last.
        times_floor: How many times as long as the floor takes.
        peak_mb: Live tensors at their peak, in 10^6 bytes; None for a floor.
        memory_of_eager_nchw: That peak as a share of eager NCHW's.
        memory_of_eager_channels_last: That peak as a share of eager channels-last's.
    """

    kind: str
    what: str
    precision: str
    subject: str
    milliseconds: float
    milliseconds_min: float
    milliseconds_max: float
    spread_percent: float
    rounds: int
    speedup_over_eager_nchw: float
    speedup_over_eager_channels_last: float
    times_floor: float
    peak_mb: float | None
    memory_of_eager_nchw: float | None
    memory_of_eager_channels_last: float | None

    @property
    def is_floor(self) -> bool:
        """Whether the row is a floor, not a rival."""
        return self.subject == FLOORS[self.kind]


def make_rows(
    kind: str, what: str, precision: str, timed: Mapping[str, Samples], peaks: Mapping[str, int]
) -> list[Row]:
    """Turn samples and peaks into rows; both eager subjects and the floor must be among them.

    Args:
        kind: "block" or "step".
        what: Which.
        precision: In which.
        timed: Samples by subject.
        peaks: Live bytes by subject, without the floor.
    """
    return [
        Row(
            kind,
            what,
            precision,
            name,
            milliseconds=1e3 * samples.median,
            milliseconds_min=1e3 * min(samples.seconds),
            milliseconds_max=1e3 * max(samples.seconds),
            spread_percent=samples.spread_percent,
            rounds=len(samples.seconds),
            speedup_over_eager_nchw=timed[EAGER_NCHW].times(samples),
            speedup_over_eager_channels_last=timed[EAGER_LAST].times(samples),
            times_floor=samples.times(timed[FLOORS[kind]]),
            peak_mb=peaks[name] / 1e6 if name in peaks else None,
            memory_of_eager_nchw=_share(peaks, name, EAGER_NCHW),
            memory_of_eager_channels_last=_share(peaks, name, EAGER_LAST),
        )
        for name, samples in timed.items()
    ]


def _share(peaks: Mapping[str, int], name: str, of: str) -> float | None:
    return peaks[name] / peaks[of] if name in peaks else None


@dataclass(frozen=True)
class Report:
    """All rows, and what they hold for.

    Args:
        rows: In the order measured.
        notes: What a reader should know: who was left out and why, where it was noisy.
        header: Machine, versions and settings, by name.
    """

    rows: list[Row]
    notes: list[str]
    header: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return self.header | {
            "notes": self.notes,
            "rows": [dataclasses.asdict(r) for r in self.rows],
        }

    def groups(self) -> list[list[Row]]:
        """Return the rows of each piece of work, together."""
        grouped: dict[tuple[str, str, str], list[Row]] = {}
        for row in self.rows:
            grouped.setdefault((row.kind, row.what, row.precision), []).append(row)
        return list(grouped.values())

    def summary(self) -> list[str]:
        """Say in a line for each training step how ours compares with torch's."""
        return [
            f"{row.what}, {row.precision}: gammabeta takes "
            f"{row.speedup_over_eager_channels_last:.2f} times as many steps as eager "
            f"channels-last, {row.speedup_over_eager_nchw:.2f} times as many as eager NCHW, "
            f"with {100 * (row.memory_of_eager_channels_last or 0):.0f} % of the memory"
            for row in self.rows
            if row.kind == "step" and row.subject == OURS
        ]


def noise(rows: Iterable[Row]) -> list[str]:
    """Name what varied too much to be trusted to the second figure."""
    worst = max(rows, key=lambda row: row.spread_percent)
    if worst.spread_percent <= NOISY_PERCENT:
        return []
    return [
        f"noisy: {worst.what}, {worst.precision}, {worst.subject} varied by "
        f"{worst.spread_percent:.0f} % between rounds; close other programs, or ask for more "
        "--rounds"
    ]


def describe_machine(machine: Runtime, copy_bytes_per_second: float) -> dict[str, Any]:
    """Return what the figures hold for."""
    return {
        "cpu": cpu_name(),
        "threads": machine.threads,
        "torch": torch.__version__,
        "allocator": machine.allocator,
        "copy_gb_per_second": copy_bytes_per_second / 1e9,
    }


def cpu_name() -> str:
    """Return the processor's name and the vector instructions that matter here."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        name = found[1] if found else name
    level = torch.backends.cpu.get_cpu_capability()
    return f"{name} ({level}{', bf16' if has_bf16_instructions() else ''})"
