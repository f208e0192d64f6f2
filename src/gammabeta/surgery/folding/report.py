"""What folding did to a model, and how far its outputs are from the unfolded model's."""

from __future__ import annotations

from dataclasses import dataclass

from gammabeta.surgery.report import Report


@dataclass(frozen=True)
class Verified:
    """A comparison that held.

    Args:
        error: Largest difference between folded and unfolded, in the output that comes nearest to
            its bound.
        bound: What it may be for that output.
        how: What was compared, and where the bound comes from.
    """

    error: float
    bound: float
    how: str

    def __str__(self) -> str:
        """Return the line of the report.

        Example:
            >>> str(Verified(3.14e-6, 4e-5, "on example_inputs"))
            'largest difference 3.1e-06, bound 4e-05 (on example_inputs)'
        """
        return f"largest difference {self.error:.2g}, bound {self.bound:.2g} ({self.how})"


@dataclass
class FoldReport(Report):
    """What was done and what was left, in the model's order, and what verified it."""

    verified: Verified | None = None

    @property
    def merged(self) -> int:
        """How many batch norms a neighbour took."""
        return sum(entry.what.startswith("merged") for entry in self.done)

    @property
    def affine(self) -> int:
        """How many batch norms became a scale and a shift a channel."""
        return len(self.done) - self.merged

    def __str__(self) -> str:
        """Return a line for each layer, and one for the verification."""
        lines = [text for text in [super().__str__()] if text]
        return "\n".join(lines + ([f"verified: {self.verified}"] if self.verified else []))
