"""Population statistics: ours against torch's ``update_bn`` and fvcore's precise batch norm.

    python -m benchmarks.recalibrate RUN --root FOLDER

On the network of a run of CIFAR-10, in torch's own layers, channels-last, float32; the same 10,000
training images for all, augmented as in training, cut into batches of 2 to 512. The truth is the
statistics of what eval mode feeds each layer, computed in float64. Rivals take turns in each round.
fvcore is no dependency of this project: without ``pip install fvcore`` it is left out.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from benchmarks.harness import print_machine, print_table, save_rows
from gammabeta import recalibrate, runtime
from gammabeta.bench.models import TorchNet
from gammabeta.data import Dataset
from gammabeta.data.loader import Loader
from gammabeta.training.evaluate import evaluate
from gammabeta.training.run import Run

SAMPLES, SIZES = 10_000, (2, 8, 32, 128, 512)
Method = Callable[[nn.Module, Sequence[Tensor]], Any]
METHODS: dict[str, Method] = {
    "gammabeta": recalibrate,
    "gammabeta, one pass": lambda m, batches: recalibrate(m, batches, sequential=False),
    "torch update_bn": lambda m, batches: update_bn(batches, m),
}


def add_fvcore() -> None:
    """Add the rival if it is installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from fvcore.nn.precise_bn import update_bn_stats
    except ImportError:
        print("note: fvcore is not installed, and so left out")
        return
    METHODS["fvcore"] = lambda m, b: update_bn_stats(m.train(), b, len(b), progress=None)


def found(model: nn.Module) -> dict[str, Tensor]:
    """Return all running statistics in float64."""
    return {k: v.double() for k, v in model.state_dict().items() if ".running_" in k}


def distance(got: dict[str, Tensor], want: dict[str, Tensor]) -> tuple[float, float]:
    """Return the largest errors: of a mean in standard deviations, of a variance in itself."""
    means, variances = [0.0], [0.0]
    for key, value in want.items():
        off = (got[key] - value).abs()
        if key.endswith("running_var"):
            variances.append(float((off / value).max()))
        else:
            means.append(float((off / want[key.replace("_mean", "_var")].sqrt()).max()))
    return max(means), max(variances)


def timed(method: Method, model: nn.Module, batches: Sequence[Tensor]) -> float:
    """Run a method, and return its seconds."""
    began = time.perf_counter()
    method(model, batches)
    return time.perf_counter() - began


def row(
    network: nn.Module,
    data: Dataset,
    name: str,
    images: Tensor,
    size: int,
    truth: dict[str, Tensor],
) -> tuple[dict[str, object], Callable[[], float]]:
    """Measure how right a method is at a batch size; return that, and what times it."""
    model, turned = copy.deepcopy(network), copy.deepcopy(network)
    batches = images.split(size)
    METHODS[name](model, batches)
    METHODS[name](turned, images.flip(0).contiguous(memory_format=torch.channels_last).split(size))
    mean, var = distance(found(model), truth)
    order = distance(found(turned), found(model))
    result = evaluate(model.eval(), data.test, data.normalization)
    cells: dict[str, object] = {
        "batch": size,
        "method": name,
        "accuracy": f"{100 * result.accuracy:.2f} %",
        "mean off by": f"{mean:.1e} σ",
        "variance off by": f"{var:.1e}",
        "reversed order": f"{max(order):.1e}",
    }
    return cells, lambda: timed(METHODS[name], model, batches)


def main() -> None:
    """Print and save a row for each batch size and method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--rounds", type=int, default=5, help="below 32 images a batch: one")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    options = parser.parse_args()
    runtime.configure("fp32", "cpu")
    print_machine()
    add_fvcore()
    run = Run.open(options.run)
    data = run.config.load_data(options.root)
    network = TorchNet(len(data.classes), data.image_size)
    network.load_state_dict(run.load_model().state_dict())
    network = network.to(memory_format=torch.channels_last)
    loader = Loader(data.train, 500, data.normalization, data.augmentation)
    taken = [next_images for _, (next_images, _) in zip(
        range(-(-options.samples // 500)), loader.epoch(0), strict=False)]  # fmt: skip
    images = torch.cat(taken)[: options.samples].contiguous(memory_format=torch.channels_last)
    before = evaluate(network.eval(), data.test, data.normalization)
    print(f"{len(images)} images; before: {100 * before.accuracy:.2f} %\n", flush=True)
    exact = copy.deepcopy(network).double()
    recalibrate(exact, images.double().split(500))
    rows: list[dict[str, object]] = []
    for size in SIZES:
        measured = [row(network, data, name, images, size, found(exact)) for name in METHODS]
        seconds: list[list[float]] = [[] for _ in measured]
        for _ in range(options.rounds if size >= 32 else 1):
            for times, (_, again) in zip(seconds, measured, strict=True):
                times.append(again())
        for times, (cells, _) in zip(seconds, measured, strict=True):
            middle = statistics.median(times)
            share = middle / statistics.median(seconds[list(METHODS).index("torch update_bn")])
            rows.append(cells | {"s (median)": f"{middle:.2f}", "min": f"{min(times):.2f}",
                        "max": f"{max(times):.2f}", "of update_bn": f"{share:.2f}"})  # fmt: skip
        print_table(rows[-len(METHODS) :])
    save_rows("recalibrate", rows)


if __name__ == "__main__":
    main()
