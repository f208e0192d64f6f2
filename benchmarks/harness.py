"""What every benchmark shares: the machine's name, rows for people and rows for a CSV file."""

from __future__ import annotations

import csv
import datetime
import os
from pathlib import Path

import torch

from gammabeta.bench.report import cpu_name
from gammabeta.runtime import available_cores

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, str]:
    """Return the columns that say where and when a row was measured."""
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "cpu": cpu_name(),
        "cores": str(available_cores()),
        "torch": torch.__version__,
    }


def print_machine() -> None:
    """Print one line that says where and when."""
    print(", ".join(f"{key} {value}" for key, value in machine().items()), flush=True)


def print_table(rows: list[dict[str, object]]) -> None:
    """Print rows as a Markdown table."""
    header = list(rows[0])
    print("| " + " | ".join(header) + " |")
    print("| " + " | ".join("---" for _ in header) + " |")
    for row in rows:
        print("| " + " | ".join(str(row[key]) for key in header) + " |")


def save_rows(name: str, rows: list[dict[str, object]]) -> None:
    """Add rows, with the machine's columns, to ``results/NAME.csv``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    rows = [row | machine() for row in rows]
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())
