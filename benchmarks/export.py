"""Exported files in onnxruntime against the models they were made from, folded and not.

    python -m benchmarks.export [NAME ...] [--run RUN] [--root DIR]

"net" is the trained network of ``--run``, verified on its test images and also quantized; without
``--run`` it learns digits for an epoch first. torchvision's models have random weights, statistics
and images. Everybody has the same threads. onnxruntime's do not spin when idle: in one process with
eager's they would make eager's batches of one ten times slower.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import rivals
from benchmarks.fold import awake
from benchmarks.harness import print_table, save_rows
from gammabeta import fold
from gammabeta.bench.measure import Samples, interleave
from gammabeta.bench.models import build
from gammabeta.bench.tasks import random_images
from gammabeta.data import Dataset, Split
from gammabeta.data.loader import Loader
from gammabeta.deploy import Exported, Metadata, export, open_onnx
from gammabeta.deploy.session import open_session, run_session
from gammabeta.runtime import Runtime
from gammabeta.training.evaluate import evaluate
from gammabeta.training.recipe import resolve
from gammabeta.training.run import Config, Run
from gammabeta.training.trainer import Trainer

MODELS = ("net", "resnet18", "resnet50", "mobilenet_v2", "densenet121", "googlenet")
SIZES = {"densenet121": 64, "resnet50": 64}
PIXELS = 96
IMAGES, RANDOM_IMAGES = 1000, 32
BATCHES = (1, 128)
EAGER, FOLDED, FLOAT, INT8 = "eager", "folded eager", "onnxruntime", "onnxruntime int8"


def trained(folder: Path) -> Run:
    """Return a run that learned digits for an epoch."""
    from gammabeta.data import load

    digits = load("digits")
    config = Config(
        data="digits",
        root=None,
        image_size=digits.image_size,
        skip_unreadable=False,
        classes=digits.classes,
        normalization=digits.normalization,
        recipe=resolve("anneal", None, {"epochs": 1, "batch_size": 32, "lr": 0.1}),
        precision="fp32",
        device="cpu",
        threads=torch.get_num_threads(),
    )
    run = Run.create(folder / "digits", config)
    Trainer(run, digits).fit([])
    return run


def first(split: Split, run: Run, count: int) -> Tensor:
    """Return the first images of a split as the network takes them."""
    some = Split(np.ascontiguousarray(split.images[:count]), split.labels[:count])
    return next(Loader(some, len(some), run.config.normalization).epoch(0))[0]


def race(
    calls: dict[str, Callable[[Tensor], object]], x: Tensor, rounds: int | None
) -> dict[str, Samples]:
    """Time everybody in turn on one batch."""

    def bound(call: Callable[[Tensor], object]) -> Callable[[], object]:
        return lambda: call(x)

    with torch.inference_mode():
        ready = {name: bound(call) for name, call in calls.items()}
        for warm in ready.values():
            warm()
        return interleave(ready, rounds=rounds, seconds=4.0)


def of_file(path: Path) -> Callable[[Tensor], object]:
    """Return what runs a file, with as many threads as torch has."""
    session = open_session(path.read_bytes(), path)
    return lambda x: run_session(session, (x,))


def rows_of(
    name: str, calls: dict[str, Callable[[Tensor], object]], images: Tensor, done: Exported,
    int8: dict[str, object], rounds: int | None, machine: Runtime,
) -> Iterator[dict[str, object]]:  # fmt: skip
    """Yield a row for each batch size: agreement, times and ratios."""
    for batch in BATCHES:
        x = images[torch.arange(batch) % len(images)].contiguous()
        timed = race(calls, x, rounds)
        eight = timed.get(INT8)
        yield {
            "model": name,
            "batch": batch,
            "pixels": x.shape[-1],
            "images": done.checked.images,
            "same class": done.checked.same,
            "error": f"{done.checked.max_error:.2g}",
            "bound": f"{done.checked.bound:.2g}",
            "MB": f"{done.size_bytes / 1e6:.1f}",
            **{f"{subject} ms": f"{1e3 * samples.median:.4g}" for subject, samples in
               timed.items() if subject != INT8},
            "faster than eager by": f"{timed[EAGER].times(timed[FLOAT]):.2f}",
            "faster than folded by": f"{timed[FOLDED].times(timed[FLOAT]):.2f}",
            "int8 ms": f"{1e3 * eight.median:.4g}" if eight else "",
            "int8 faster by": f"{timed[FLOAT].times(eight):.2f}" if eight else "",
            **int8,
            "rounds": len(timed[EAGER].seconds),
            "threads": machine.threads,
            "allocator": machine.allocator,
        }  # fmt: skip


NO_INT8: dict[str, object] = dict.fromkeys(
    ("int8 MB", "accuracy", "int8 accuracy", "test images"), ""
)


def measure_net(
    run: Run, dataset: Dataset, folder: Path, rounds: int | None, machine: Runtime
) -> Iterator[dict[str, object]]:
    """Measure the trained network, and its eight-bit file."""
    model = run.load_model().eval()
    images = first(dataset.test, run, IMAGES)
    metadata = Metadata(
        classes=run.config.classes,
        normalization=run.config.normalization,
        image_size=run.config.image_size,
    )
    done = export(model, folder / "net.onnx", images, metadata=metadata)
    small = export(model, folder / "net-int8.onnx", images, metadata=metadata,
                   int8=first(dataset.train, run, IMAGES))  # fmt: skip
    opened = open_onnx(small.path)
    before = evaluate(model, dataset.test, run.config.normalization)
    after = evaluate(opened, dataset.test, opened.normalization)
    int8: dict[str, object] = {
        "int8 MB": f"{small.size_bytes / 1e6:.1f}",
        "accuracy": f"{100 * before.accuracy:.2f}",
        "int8 accuracy": f"{100 * after.accuracy:.2f}",
        "test images": before.total,
    }
    calls: dict[str, Callable[[Tensor], object]] = {
        EAGER: model,
        FOLDED: fold(model),
        FLOAT: of_file(done.path),
        INT8: of_file(small.path),
    }
    yield from rows_of(f"net on {dataset.name}", calls, images, done, int8, rounds, machine)


def measure(
    name: str, folder: Path, rounds: int | None, machine: Runtime
) -> Iterator[dict[str, object]]:
    """Measure a model of torchvision's."""
    size = SIZES.get(name, PIXELS)
    model: nn.Module = awake(build(f"torchvision:{name}", size))
    images = random_images(RANDOM_IMAGES, size, torch.contiguous_format)
    done = export(model, folder / f"{name}.onnx", images)
    calls: dict[str, Callable[[Tensor], object]] = {
        EAGER: model,
        FOLDED: fold(model),
        FLOAT: of_file(done.path),
    }
    yield from rows_of(name, calls, images, done, NO_INT8, rounds, machine)


def main() -> None:
    """Measure the models, one after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(MODELS), metavar="NAME")
    parser.add_argument("--run", type=Path, help="a trained run; default: digits for an epoch")
    parser.add_argument("--root", type=Path, help="where the run's CIFAR-10 lies")
    parser.add_argument("--rounds", type=int, help="default: as many as 4 s allow, 3 to 50")
    parser.add_argument("--no-save", action="store_true", help="only print")
    options = parser.parse_args()
    machine = rivals.start()
    rows: list[dict[str, object]] = []
    with TemporaryDirectory() as folder:
        for name in options.names:
            if name == "net":
                run = Run.open(options.run) if options.run else trained(Path(folder))
                dataset = run.config.load_data(options.root)
                found = measure_net(run, dataset, Path(folder), options.rounds, machine)
            else:
                found = measure(name, Path(folder), options.rounds, machine)
            for row in found:
                rows.append(row)
                print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    print_table(rows)
    if not options.no_save:
        save_rows("export", rows)


if __name__ == "__main__":
    main()
