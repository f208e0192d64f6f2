"""What an export did, measured, and in words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gammabeta.surgery.report import Report


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A comparison of a file's outputs with the model's, that held.

    Args:
        images: Samples compared.
        batch_sizes: In batches of these sizes.
        max_error: Largest difference, in the output that comes nearest to its bound.
        bound: What it may be for that output; see :mod:`gammabeta.deploy.verify`.
        classified: Samples that have a class, the largest of two or more logits; else 0.
        same: Of these, how many have the model's class.
        ties: The others: their two best logits differ by less than the rounding of both sides.
    """

    images: int
    batch_sizes: tuple[int, ...]
    max_error: float
    bound: float
    classified: int
    same: int
    ties: int

    def __str__(self) -> str:
        """Return the line of the report.

        Example:
            >>> print(Checked(images=3, batch_sizes=(3, 1), max_error=2e-7, bound=5e-6,
            ...               classified=3, same=3, ties=0))
            largest difference 2e-07, bound 5e-06; the same class for 3 of 3
        """
        line = f"largest difference {self.max_error:.2g}, bound {self.bound:.2g}"
        if self.classified:
            line += f"; the same class for {self.same:,} of {self.classified:,}"
        return line + (f" ({self.ties} ties)" if self.ties else "")


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What int8 changed.

    Args:
        float_size_bytes: Size of the float32 file that it was made from.
        calibration_images: Samples that the ranges of activations were measured on.
        noise: Root mean square of its error, as a share of that of the model's outputs about
            their mean.
        classified: Samples that have a class; else 0.
        same: Of these, how many have the model's class.
    """

    float_size_bytes: int
    calibration_images: int
    noise: float
    classified: int
    same: int

    def __str__(self) -> str:
        """Return the line of the report."""
        line = f"noise {100 * self.noise:.1f} % of the outputs' deviation"
        if self.classified:
            line += f"; the same class for {self.same:,} of {self.classified:,}"
        return line


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file that was verified and is in place.

    Args:
        path: The file.
        size_bytes: Its size.
        opset: Of ONNX; None for ``.pt2``.
        inputs: Names of its inputs, in order.
        outputs: Names of its outputs, in order.
        batch_norms: How many batch norms are left in it.
        checked: How it compares with the model; of int8, how the float32 file it was made from did.
        fold: What became of each batch norm; None with ``fold=False``.
        int8: What quantization changed, or None.
    """

    path: Path
    size_bytes: int
    opset: int | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    batch_norms: int
    checked: Checked
    fold: Report | None
    int8: Quantized | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        found: dict[str, Any] = {
            "file": str(self.path),
            "size_bytes": self.size_bytes,
            "opset": self.opset,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "batch_norms": self.batch_norms,
            **vars(self.checked),
            "batch_sizes": list(self.checked.batch_sizes),
            "folded": [vars(entry) for entry in self.fold.done] if self.fold else [],
            "not_folded": [vars(entry) for entry in self.fold.left] if self.fold else [],
        }
        return found | ({"int8": dict(vars(self.int8))} if self.int8 else {})

    def __str__(self) -> str:
        """Return a few lines for people."""
        kind = "torch.export" if self.opset is None else f"ONNX opset {self.opset}"
        precision = "int8" if self.int8 else "float32"
        lines = [
            f"{self.path}: {kind}, {precision}, {megabytes(self.size_bytes)}, "
            f"{', '.join(self.inputs)} to {', '.join(self.outputs)}",
            f"verified on {self.checked.images:,} samples: {self.checked}",
        ]
        if self.int8:
            lines.append(f"int8 ({megabytes(self.int8.float_size_bytes)} before): {self.int8}")
        return "\n".join(lines)


def megabytes(count: int) -> str:
    """Return a size as people say it.

    Example:
        >>> megabytes(18_321_929), megabytes(20_480)
        ('18.3 MB', '20 kB')
    """
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"
