"""Batch norm + ReLU + 2x2 max pooling against eager torch, Inductor and the memory floor.

    python -m benchmarks.blocks

The three blocks of the reference network at batches of 128: forward and backward, and forward
without gradients in training and in eval mode (there without Inductor). "floor: a copy" copies as
many bytes as the fused block must read and write, between buffers as large as that takes.
"""

from __future__ import annotations

from benchmarks import rivals
from benchmarks.harness import print_table, save_rows
from gammabeta.bench.floor import copy_bandwidth
from gammabeta.bench.jobs import Job, block_job
from gammabeta.bench.subjects import NET_BLOCKS, Subject

TITLES = {
    "backward": "forward + backward",
    "forward": "forward, training, no gradient",
    "eval": "forward, eval, no gradient",
}


def jobs(precision: str, everyone: tuple[Subject, ...]) -> list[tuple[str, Job]]:
    """Return every block in every mode, with the mode's title."""
    eager = tuple(subject for subject in everyone if not subject.compiled)
    return [
        (title, block_job(block, precision, everyone if mode == "backward" else eager, mode))
        for mode, title in TITLES.items()
        for block in NET_BLOCKS
    ]


def main() -> None:
    """Measure all blocks in each precision."""
    options = rivals.parser(__doc__, rounds=15).parse_args()
    machine = rivals.start()
    print(f"copies of 256 MiB move {copy_bandwidth() / 1e9:.1f} GB/s\n", flush=True)
    rows: list[dict[str, object]] = []
    for precision in rivals.precisions(options):
        for title, job in jobs(precision, rivals.everyone(options.no_compile)):
            measured = rivals.run(job, options.rounds)
            rows += [{"pass": title} | row for row in rivals.rows_of(job, measured, machine)]
    print_table(rows)
    save_rows("blocks", rows)


if __name__ == "__main__":
    main()
