"""Training speed and memory: the tutorial's loop against ours, and what each measure gives.

    python -m benchmarks.training_loop --root FOLDER

Every variant runs in a process of its own, because the allocator's setting is the process's. The
variants take turns within each round; the table holds medians over the rounds. Each row adds one
measure to the row above. The last two are the product: what ``gammabeta train`` runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks import tutorial_loop
from benchmarks.harness import print_machine, print_table, save_rows
from gammabeta import runtime
from gammabeta.data import Dataset, load
from gammabeta.data.loader import Loader
from gammabeta.errors import GammabetaError
from gammabeta.training.events import BatchDone
from gammabeta.training.recipe import Recipe
from gammabeta.training.run import Config, Run
from gammabeta.training.trainer import StoppedError, Trainer

BATCH_SIZE = 128
WARM_UP, STEPS = 15, 60


def tutorial(data: Dataset) -> Iterator[object]:
    """Run the tutorial's own loop."""
    return tutorial_loop.train(iter(tutorial_loop.data_loader(data.train, BATCH_SIZE)))


def with_loader(data: Dataset) -> Iterator[object]:
    """Run it with our loader."""
    return tutorial_loop.train(_loader(data).epoch(0))


def with_layout(data: Dataset) -> Iterator[object]:
    """Run it with our loader in channels-last memory."""
    return tutorial_loop.train(_loader(data).epoch(0), torch.channels_last)


def with_allocator(data: Dataset) -> Iterator[object]:
    """Run it with the allocator tuned as well."""
    runtime.tune_allocator()
    return with_layout(data)


def trainer_fp32(data: Dataset) -> Iterator[object]:
    """Run what ``gammabeta train --precision fp32`` runs."""
    return _trainer(data, "fp32")


def trainer_bf16(data: Dataset) -> Iterator[object]:
    """Run what ``gammabeta train --precision bf16`` runs."""
    return _trainer(data, "bf16")


VARIANTS: dict[str, Callable[[Dataset], Iterator[object]]] = {
    "the tutorial's loop": tutorial,
    "+ in-memory loader": with_loader,
    "+ channels-last": with_layout,
    "+ tuned allocator": with_allocator,
    "gammabeta train, fp32": trainer_fp32,
    "gammabeta train, bf16": trainer_bf16,
}


def _loader(data: Dataset) -> Loader:
    return Loader(data.train, BATCH_SIZE, data.normalization, data.augmentation)


def _trainer(data: Dataset, precision: str) -> Iterator[object]:
    """Yield after each step of the real trainer, by running it up to there in one go."""
    machine = runtime.configure(precision)
    config = Config(
        data=data.name,
        root=None,
        image_size=data.image_size,
        skip_unreadable=False,
        classes=data.classes,
        normalization=data.normalization,
        recipe=Recipe(batch_size=BATCH_SIZE),
        precision=precision,
        device="cpu",
        threads=machine.threads,
    )
    times: list[float] = []

    def note(event: object) -> None:
        if isinstance(event, BatchDone):
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", config)
        stop = Trainer(run, data, stop_requested=lambda: int(len(times) >= STEPS))
        try:
            stop.fit([note])
        except StoppedError:
            yield from times


def measure(name: str, root: Path | None) -> dict[str, float]:
    """Train some steps of one variant in this process; return images/s and peak memory."""
    data = load("cifar10", root=root)
    torch.set_num_threads(runtime.available_cores())
    times: list[float] = []
    for mark in VARIANTS[name](data):
        times.append(mark if name.startswith("gammabeta") else time.perf_counter())
        if len(times) == STEPS:
            break
    speed = BATCH_SIZE * (STEPS - WARM_UP) / (times[-1] - times[WARM_UP - 1])
    peak = runtime.peak_memory_bytes() or 0
    return {"images_per_second": speed, "peak_gb": peak / 1e9}


def measure_apart(name: str, root: Path | None) -> dict[str, float]:
    """Run :func:`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.training_loop", "--variant", name]
    command += ["--root", str(root)] if root else []
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def summarise(measured: dict[str, list[dict[str, float]]]) -> list[dict[str, object]]:
    """Turn all rounds into one row a variant; ratios are taken round by round."""
    base = [m["images_per_second"] for m in measured["the tutorial's loop"]]
    rows: list[dict[str, object]] = []
    for name, results in measured.items():
        speeds = [m["images_per_second"] for m in results]
        ratios = [ours / theirs for ours, theirs in zip(speeds, base, strict=True)]
        rows.append(
            {
                "variant": name,
                "images/s (median)": round(statistics.median(speeds)),
                "min": round(min(speeds)),
                "max": round(max(speeds)),
                "times the tutorial's": f"{statistics.median(ratios):.2f}",
                "peak resident GB": f"{statistics.median(m['peak_gb'] for m in results):.2f}",
                "rounds": len(results),
            }
        )
    return rows


def main() -> None:
    """Measure all variants in turn, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--variant", choices=VARIANTS)
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(measure(options.variant, options.root)))
        return
    print_machine()
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for turn in range(options.rounds):
        for name in VARIANTS:
            measured[name].append(measure_apart(name, options.root))
            last = measured[name][-1]
            print(
                f"round {turn + 1}: {name}: {last['images_per_second']:.0f} images/s",
                file=sys.stderr,
            )
    rows = summarise(measured)
    print_table(rows)
    save_rows("training_loop", rows)


if __name__ == "__main__":
    try:
        main()
    except GammabetaError as error:
        sys.exit(f"error: {error}")
