"""What a call costs on a tensor so small that only the overhead counts, (2, 8, 4, 4).

python -m benchmarks.tiny
"""

from __future__ import annotations

from benchmarks import rivals
from benchmarks.harness import print_table, save_rows
from gammabeta.bench.measure import interleave
from gammabeta.bench.run import WARM_UP
from gammabeta.bench.subjects import EAGER_LAST, EAGER_NCHW, OURS, Block, named
from gammabeta.bench.tasks import block_task

SHAPE = (2, 8, 4, 4)
CHAINS = {
    "BN": Block(SHAPE, activation=None),
    "BN + ReLU": Block(SHAPE),
    "BN + ReLU + pool": Block(SHAPE, pool=2),
}
TITLES = {"backward": "forward + backward", "forward": "forward", "eval": "forward, eval"}


def main() -> None:
    """Measure every chain in every mode; on tiny tensors one layout is as good as the other."""
    options = rivals.parser(__doc__, rounds=31).parse_args()
    machine = rivals.start()
    rows: list[dict[str, object]] = []
    for precision in rivals.precisions(options):
        for chain, block in CHAINS.items():
            for mode, title in TITLES.items():
                calls = {
                    subject.name: block_task(subject, block, precision, mode).call
                    for subject in named(EAGER_NCHW, EAGER_LAST, OURS)
                }
                for call in [*calls.values()] * WARM_UP:
                    call()
                timed = interleave(calls, rounds=options.rounds)
                rows += [
                    {"chain": chain, "pass": title, "precision": precision, "subject": name}
                    | {"µs (median)": f"{1e6 * samples.median:.1f}"}
                    | {"ours takes": f"{timed[OURS].times(samples):.2f} times"}
                    | {"rounds": len(samples.seconds), "threads": machine.threads}
                    for name, samples in timed.items()
                ]
    print_table(rows)
    save_rows("tiny", rows)


if __name__ == "__main__":
    main()
