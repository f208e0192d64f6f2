"""Whole training steps of known models after ``accelerate``, against eager in both layouts.

    python -m benchmarks.models [NAME ...]

Random weights and images; cross entropy, SGD with momentum, as ``gammabeta train`` takes a step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks import rivals
from benchmarks.harness import print_table, save_rows
from gammabeta.bench.jobs import step_job
from gammabeta.bench.models import build
from gammabeta.bench.subjects import EAGER_LAST, EAGER_NCHW, OURS, Subject, accelerated, named
from gammabeta.bench.tasks import random_images

IMAGE_SIZES = {
    "torchvision:mobilenet_v2": 96,
    "torchvision:resnet18": 64,
    "torchvision:resnet50": 96,
    "torchvision:densenet121": 64,
    "timm:regnetx_002": 96,
    "timm:efficientnet_b0": 96,
}


AS_BUILT = Subject("gammabeta, NCHW weights", torch.contiguous_format, of_model=accelerated)


def chains(model: nn.Module, images: Tensor) -> int:
    """Count what ``accelerate`` fuses."""
    fast = accelerated(model)
    fast(images)
    return sum(entry.what.startswith("fused") for entry in fast.gammabeta_report.done)


def main() -> None:
    """Measure the models, one after the other."""
    parser = rivals.parser(__doc__, rounds=7)
    parser.add_argument("names", nargs="*", default=list(IMAGE_SIZES), metavar="NAME")
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    machine = rivals.start()
    subjects = (*named(EAGER_NCHW, EAGER_LAST, OURS), AS_BUILT)
    rows: list[dict[str, object]] = []
    for precision in rivals.precisions(options):
        for name in options.names:
            size = IMAGE_SIZES.get(name, 64)
            model = build(name, size)
            images = random_images(options.batch_size, size, torch.channels_last)
            job = step_job(name, model, images, precision, subjects)
            measured = rivals.run(job, options.rounds)
            batch = {"batch": options.batch_size, "pixels": size, "fused": chains(model, images)}
            rows += [batch | row for row in rivals.rows_of(job, measured, machine)]
    print_table(rows)
    save_rows("models", rows)


if __name__ == "__main__":
    main()
