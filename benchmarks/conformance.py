"""Which batch norm classes keep which behaviour: the table of docs/conformance.md.

python -m benchmarks.conformance

torchvision's and timm's classes have a column where they are installed. Nothing is timed.
"""

from __future__ import annotations

import warnings
from importlib import import_module, metadata

import torch

from gammabeta.testing import Report, check_batch_norm
from gammabeta.testing.report import MARKS, markdown

CLASSES = {
    "gammabeta BatchNorm1d, 2d, 3d": ("gammabeta", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]),
    "gammabeta BatchNormAct1d, 2d, 3d": (
        "gammabeta",
        ["BatchNormAct1d", "BatchNormAct2d", "BatchNormAct3d"],
    ),
    "torch.nn BatchNorm1d, 2d, 3d": ("torch.nn", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]),
    "torchvision FrozenBatchNorm2d": ("torchvision.ops", ["FrozenBatchNorm2d"]),
    "timm BatchNormAct2d": ("timm.layers", ["BatchNormAct2d"]),
}


def reports() -> dict[str, list[Report]]:
    """Check every class that can be imported, by the heading of its column."""
    found = {}
    for title, (module, names) in CLASSES.items():
        try:
            home = import_module(module)
        except ImportError:
            continue
        found[title] = [check_batch_norm(getattr(home, name)) for name in names]
    return found


def status(column: list[Report], row: int) -> str:
    """Return the mark of a behaviour: the worst of the column's classes."""
    marks = [MARKS[report.results[row].status] for report in column]
    return next(mark for mark in "✗✓–" if mark in marks)


def versions(modules: set[str]) -> str:
    """Return the packages of those modules with their versions."""
    packages = sorted({module.split(".")[0] for module in modules} | {"torch"})
    return ", ".join(f"{package} {metadata.version(package)}" for package in packages)


def main() -> None:
    """Print versions, the table, and every failure in full."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    columns = reports()
    print(versions({CLASSES[title][0] for title in columns}) + ", on the CPU\n")
    behaviours = [result.name for result in next(iter(columns.values()))[0].results]
    rows = [
        [name, *(status(column, i) for column in columns.values())]
        for i, name in enumerate(behaviours)
    ]
    print(markdown(["behaviour", *columns], rows) + "\n")
    for report in (report for column in columns.values() for report in column):
        for failure in report.failures:
            print(f"- {report.subject}: {failure.name}: {failure.reason} [{failure.input}]")


if __name__ == "__main__":
    main()
