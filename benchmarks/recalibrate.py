"""Population statistics: ours against torch's ``update_bn`` and fvcore's precise batch norm.

    python -m benchmarks.recalibrate RUN --root FOLDER

On the network of a run of CIFAR-10, in torch's own layers, channels-last, float32; the same 5,000
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
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
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

SAMPLES, SIZES = 5_000, (2, 8, 32, 128, 512)
RIVAL = "torch update_bn"
Method = Callable[[nn.Module, Sequence[Tensor]], Any]
METHODS: dict[str, Method] = {
    "gammabeta": recalibrate,
    "gammabeta, one pass": lambda m, batches: recalibrate(m, batches, sequential=False),
    RIVAL: lambda m, batches: update_bn(batches, m),
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


def network_of(run: Run, data: Dataset) -> nn.Module:
    """Return the run's network in torch's own layers."""
    network = TorchNet(len(data.classes), data.image_size)
    network.load_state_dict(run.load_model().state_dict())
    return network.to(memory_format=torch.channels_last).eval()


def images_of(data: Dataset, count: int) -> Tensor:
    """Return training images, augmented and in random order, always the same ones."""
    loader = Loader(data.train, 500, data.normalization, data.augmentation)
    taken = [images for images, _ in islice(loader.epoch(0), -(-count // 500))]
    return torch.cat(taken)[:count].contiguous(memory_format=torch.channels_last)


def compare(
    network: nn.Module,
    data: Dataset,
    images: Tensor,
    size: int,
    truth: dict[str, Tensor],
    rounds: int,
) -> Iterator[dict[str, object]]:
    """Yield a row for each method at a batch size."""
    measured = [row(network, data, name, images, size, truth) for name in METHODS]
    seconds: list[list[float]] = [[] for _ in measured]
    for _ in range(rounds):
        for times, (_, again) in zip(seconds, measured, strict=True):
            times.append(again())
    rival = statistics.median(seconds[list(METHODS).index(RIVAL)])
    for times, (cells, _) in zip(seconds, measured, strict=True):
        middle = statistics.median(times)
        low, high = min(times), max(times)
        clock = {"s (median)": middle, "min": low, "max": high, f"of {RIVAL}": middle / rival}
        yield cells | {name: f"{value:.2f}" for name, value in clock.items()} | {"rounds": rounds}


def main() -> None:
    """Print and save a row for each batch size and method."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("--root", type=Path, help="where CIFAR-10 lies")
    parser.add_argument("--rounds", type=int, default=5, help="below 32 images a batch: one")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="batch sizes")
    options = parser.parse_args()
    runtime.configure("fp32", "cpu")
    print_machine()
    add_fvcore()
    run = Run.open(options.run)
    data = run.config.load_data(options.root)
    network, images = network_of(run, data), images_of(data, options.samples)
    before = evaluate(network, data.test, data.normalization)
    print(f"{len(images)} images; before: {100 * before.accuracy:.2f} %\n", flush=True)
    exact = copy.deepcopy(network).double().to(memory_format=torch.contiguous_format)
    recalibrate(exact, images.double().contiguous().split(100))  # slow in channels-last memory
    truth, rows = found(exact), list[dict[str, object]]()
    for size in options.sizes:
        rounds = options.rounds if size >= 32 else 1
        rows += compare(network, data, images, size, truth, rounds)
        print(f"batches of {size} measured", flush=True)
    print_table(rows)
    save_rows("recalibrate", rows)


if __name__ == "__main__":
    main()
