"""``python -m benchmarks``: every measurement of speed, one after the other (about 15 minutes)."""

from __future__ import annotations

from benchmarks import loader, startup, statistics, training_loop

for benchmark in (startup, statistics, loader, training_loop):
    print(f"\n## {benchmark.__name__}\n", flush=True)
    benchmark.main()
