"""Whole training steps of torchvision's models after ``accelerate``, against eager channels-last.

    python -m benchmarks.models [NAME ...]

Random weights and images; cross entropy, SGD with momentum, as ``gammabeta train`` takes a step.
"""

from __future__ import annotations

import torch
from torch import nn

from benchmarks import rivals
from benchmarks.harness import print_table, save_rows
from gammabeta.bench.jobs import step_job
from gammabeta.bench.models import build
from gammabeta.bench.subjects import EAGER_LAST, OURS, accelerated, named
from gammabeta.bench.tasks import random_images

IMAGE_SIZES = {"mobilenet_v2": 96, "resnet18": 64, "resnet50": 96, "densenet121": 64}


def chains(model: nn.Module) -> int:
    """Count what ``accelerate`` fuses."""
    return sum(entry.what.startswith("fused") for entry in accelerated(model).gammabeta_report.done)


def main() -> None:
    """Measure the models, one after the other."""
    parser = rivals.parser(__doc__, rounds=7)
    parser.add_argument("names", nargs="*", default=list(IMAGE_SIZES), metavar="NAME")
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    machine = rivals.start()
    rows: list[dict[str, object]] = []
    for precision in rivals.precisions(options):
        for name in options.names:
            size = IMAGE_SIZES.get(name, 64)
            model = build(f"torchvision:{name}", size)
            images = random_images(options.batch_size, size, torch.channels_last)
            job = step_job(name, model, images, precision, named(EAGER_LAST, OURS))
            measured = rivals.run(job, options.rounds)
            batch = {"batch": options.batch_size, "pixels": size, "fused": chains(model)}
            rows += [batch | row for row in rivals.rows_of(job, measured, machine)]
    print_table(rows)
    save_rows("models", rows)


if __name__ == "__main__":
    main()
