"""A training step of the reference network as a share of its convolutions and linear layers alone.

    python -m benchmarks.net_step

Batches of 128 images of 32 pixels. The last line of each precision is the floor: the same
convolutions and linear layers on the same inputs, forward and backward, and nothing else.
"""

from __future__ import annotations

import torch

from benchmarks import rivals
from benchmarks.harness import print_table, save_rows
from gammabeta.bench.jobs import step_job
from gammabeta.bench.models import build
from gammabeta.bench.report import FLOORS
from gammabeta.bench.tasks import random_images

BATCH_SIZE, IMAGE_SIZE = 128, 32


def main() -> None:
    """Measure the step in each precision."""
    options = rivals.parser(__doc__, rounds=15).parse_args()
    machine = rivals.start()
    model = build("net", IMAGE_SIZE)
    images = random_images(BATCH_SIZE, IMAGE_SIZE, torch.channels_last)
    rows: list[dict[str, object]] = []
    for precision in rivals.precisions(options):
        job = step_job("net", model, images, precision, rivals.everyone(options.no_compile))
        measured = rivals.run(job, options.rounds)
        floor = measured.timed[FLOORS["step"]]
        for row in rivals.rows_of(job, measured, machine):
            samples = measured.timed[str(row["subject"])]
            speed = {"images/s": round(BATCH_SIZE / samples.median)}
            share = {"share of the floor's images/s": f"{100 * floor.times(samples):.1f} %"}
            rows.append(row | speed | share)
    print_table(rows)
    save_rows("net_step", rows)


if __name__ == "__main__":
    main()
