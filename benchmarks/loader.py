"""Images a second out of the loader, against torchvision's DataLoader with two workers.

    python -m benchmarks.loader --root FOLDER

Both serve the tutorial's augmentation in batches of 128. Rounds of the two alternate; medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from benchmarks.harness import print_machine, print_table, save_rows
from benchmarks.tutorial_loop import WORKERS, data_loader
from gammabeta.data import load
from gammabeta.data.loader import Loader

BATCH_SIZE = 128


def images_per_second(batches: Iterable[object], count: int) -> float:
    """Read ``count`` batches after a first one, which starts workers and threads."""
    served = iter(batches)
    next(served)
    began = time.perf_counter()
    read = sum(1 for _ in islice(served, count))
    return read * BATCH_SIZE / (time.perf_counter() - began)


def main() -> None:
    """Measure both loaders in turn and print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    data = load("cifar10", root=options.root)
    ours = Loader(data.train, BATCH_SIZE, data.normalization, data.augmentation)
    theirs = data_loader(data.train, BATCH_SIZE)
    speeds: dict[str, list[float]] = {"torchvision": [], "gammabeta": []}
    print_machine()
    for turn in range(options.rounds):
        speeds["torchvision"].append(images_per_second(theirs, 100))
        speeds["gammabeta"].append(images_per_second(ours.epoch(turn), 380))
    base = statistics.median(speeds["torchvision"])
    rows: list[dict[str, object]] = [
        {
            "loader": name,
            "workers": {"torchvision": f"{WORKERS} processes", "gammabeta": "1 thread"}[name],
            "images/s (median)": round(statistics.median(values)),
            "min": round(min(values)),
            "max": round(max(values)),
            "ratio": round(statistics.median(values) / base, 1),
        }
        for name, values in speeds.items()
    ]
    print_table(rows)
    save_rows("loader", rows)


if __name__ == "__main__":
    main()
