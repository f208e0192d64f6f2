"""What a check found: one result a behaviour, as objects, as a dictionary and as a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["passed", "failed", "not applicable"]
MARKS: dict[Status, str] = {"passed": "✓", "failed": "✗", "not applicable": "–"}


@dataclass(frozen=True)
class Result:
    """How one behaviour fared.

    Args:
        name: The behaviour.
        status: "passed", "failed" or "not applicable".
        reason: Why it failed, or does not apply; empty if it passed.
        error: Largest difference from what was expected, relative to the largest expected magnitude
            (at least 1); None where nothing numeric was compared. Of a failure, that of ``input``.
        input: Of a failure, the first and so smallest input that shows it.
    """

    name: str
    status: Status
    reason: str = ""
    error: float | None = None
    input: str = ""


@dataclass(frozen=True)
class Report:
    """The results of one class, in the order of the behaviours.

    Example:
        >>> print(Report("my.Norm", [Result("eval keeps every buffer", "passed", error=0.0)]))
        |   | behaviour               | error | detail |
        | - | ----------------------- | ----- | ------ |
        | ✓ | eval keeps every buffer | 0     |        |
    """

    subject: str
    results: list[Result]

    @property
    def passed(self) -> bool:
        """Whether no behaviour failed."""
        return not self.failures

    @property
    def failures(self) -> list[Result]:
        """The results that failed."""
        return [result for result in self.results if result.status == "failed"]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values fit for JSON; an infinite or undefined error is None."""
        rows = [asdict(result) for result in self.results]
        for row in rows:
            if row["error"] is not None and not math.isfinite(row["error"]):
                row["error"] = None
        return {"class": self.subject, "passed": self.passed, "results": rows}

    def summary(self) -> str:
        """Return one line of counts."""
        counts = Counter(result.status for result in self.results)
        parts = ", ".join(f"{counts[status]} {status}" for status in MARKS)
        return f"{self.subject}: {parts}"

    def __str__(self) -> str:
        """Return an aligned Markdown table."""
        return markdown(["", "behaviour", "error", "detail"], map(_cells, self.results))


def _cells(result: Result) -> list[str]:
    error = "" if result.error is None else f"{result.error:.1g}"
    detail = result.reason + (f" [{result.input}]" if result.input else "")
    return [MARKS[result.status], result.name, error, detail.replace("|", "\\|")]


def markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    """Return a Markdown table whose columns, but the last, are aligned."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)]
    widths.append(len(head[-1]))
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )
