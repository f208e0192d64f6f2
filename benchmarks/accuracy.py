"""Test accuracy over seeds: trains with the command line and prints mean and spread.

    python -m benchmarks.accuracy --recipe anneal --epochs 8 --precision fp32 --seeds 3

With ``--as-tutorial`` each model is also measured the way the tutorial's script does it: in train
mode, so with batch statistics, on test images under the training's random augmentation.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.harness import print_machine, print_table, save_rows
from gammabeta.data.loader import Loader
from gammabeta.training.run import Run


def train(seed: int, out: Path, options: argparse.Namespace) -> dict[str, object]:
    """Train one run with the command line and return its JSON document."""
    command = [sys.executable, "-m", "gammabeta", "train", "--json", "--out", str(out)]
    for name in ("data", "recipe", "epochs", "precision", "root"):
        if getattr(options, name) is not None:
            command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(
        [*command, "--seed", str(seed)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def measure_as_tutorial(out: Path, root: Path | None, draws: int = 3) -> float:
    """Return the accuracy in train mode on augmented test images, the mean of some draws."""
    run = Run.open(out)
    dataset = run.config.load_data(root)
    trained = run.load_model()
    recipe = run.config.recipe
    split, scale = dataset.test, dataset.normalization
    loader = Loader(split, recipe.batch_size, scale, dataset.augmentation, seed=recipe.seed)
    correct = 0
    with torch.no_grad():
        for draw in range(draws):
            model = copy.deepcopy(trained).train()
            for images, labels in loader.epoch(draw):
                correct += int((model(images).argmax(dim=1) == labels).sum())
    return correct / (draws * len(split))


def main() -> None:
    """Train each seed, print the rows, and add them to results/accuracy.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--recipe", default="anneal")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--as-tutorial", action="store_true")
    parser.add_argument("--keep", type=Path, help="keep the runs in this folder")
    options = parser.parse_args()
    print_machine()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(options.seeds):
            folder = f"{options.data}-{options.recipe}-{options.precision}-seed{seed}"
            out = (options.keep or Path(scratch)) / folder
            result = train(seed, out, options)
            row: dict[str, object] = {
                "data": options.data,
                "recipe": options.recipe,
                "epochs": result["epochs"],
                "precision": result["precision"],
                "seed": seed,
                "last %": round(100 * result["accuracy"], 2),
                "best %": round(100 * result["best_accuracy"], 2),
                "train mode, augmented %": "",
            }
            if options.as_tutorial:
                measured = measure_as_tutorial(out, options.root)
                row["train mode, augmented %"] = round(100 * measured, 2)
            rows.append(row)
            save_rows("accuracy", [row])
    print_table(rows)
    for name in ("last %", "best %"):
        values = [row[name] for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name}: {statistics.mean(values):.2f} ± {spread:.2f} over {len(values)} seeds")


if __name__ == "__main__":
    main()
