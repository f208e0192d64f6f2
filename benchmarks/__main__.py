"""``python -m benchmarks``: every measurement of speed and memory in turn (about half an hour)."""

from __future__ import annotations

from benchmarks import (
    blocks,
    fold,
    loader,
    memory,
    models,
    net_step,
    startup,
    statistics,
    tiny,
    training_loop,
)

for benchmark in (startup, statistics, loader, tiny, blocks, net_step, models, memory, fold,
                  training_loop):  # fmt: skip
    print(f"\n## {benchmark.__name__}\n", flush=True)
    benchmark.main()
