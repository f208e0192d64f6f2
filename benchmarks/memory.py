"""Peak memory of a training step of the reference network, ours against eager torch.

    python -m benchmarks.memory

Every row is a process of its own. "live MB" are the tensors alive at the worst moment, to the byte,
as torch's allocator counts them: parameters, gradients, momentum, activations, temporaries.
"resident MB" is by how much the process grew at its peak in five steps, after a step of two images
has brought in libraries and compiled kernels: with the system's allocator as it is, and tuned.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import torch

from benchmarks import rivals
from benchmarks.harness import print_table, save_rows
from gammabeta import runtime
from gammabeta.bench.memory import resident_peak_bytes
from gammabeta.bench.models import build
from gammabeta.bench.subjects import EAGER_LAST, EAGER_NCHW, OURS, named
from gammabeta.bench.tasks import random_images, step_task

BATCH_SIZE, IMAGE_SIZE, STEPS = 128, 32, 5


def measure(subject_name: str, precision: str) -> dict[str, object]:
    """Measure one subject in this process: resident growth first, then live bytes."""
    machine = runtime.configure("fp32", "cpu")
    (subject,) = named(subject_name)
    model = build("net", IMAGE_SIZE)
    few = random_images(2, IMAGE_SIZE, subject.layout)
    step_task(subject, model, few, precision).call()

    def some_steps() -> None:
        images = random_images(BATCH_SIZE, IMAGE_SIZE, torch.channels_last)
        task = step_task(subject, model, images, precision)
        for _ in range(STEPS):
            task.call()
        tasks.append(task)

    tasks: list = []
    grown = resident_peak_bytes(some_steps)
    return {"resident": grown, "live": tasks[0].peak_bytes(), "allocator": machine.allocator}


def measure_apart(subject: str, precision: str, tuned: str) -> dict[str, object]:
    """Run :func:`measure` in a process of its own, with the allocator tuned ("1") or not ("0")."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "--subject", subject, "--precision", precision],
        env=os.environ | {runtime.ALLOCATOR_SWITCH: tuned},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout)


def compare(precision: str, tuned: str, rounds: int) -> list[dict[str, object]]:
    """Return a row for each subject, with ours as a share of it."""
    names = (EAGER_NCHW, EAGER_LAST, OURS)
    results = {
        name: [measure_apart(name, precision, tuned) for _ in range(rounds)] for name in names
    }
    live = {name: max(result["live"] for result in results[name]) for name in names}
    resident = {name: max(r["resident"] or 0 for r in results[name]) for name in names}
    return [
        {
            "precision": precision,
            "allocator": results[name][0]["allocator"],
            "subject": name,
            "live MB": f"{live[name] / 1e6:.1f}",
            "ours needs": f"{100 * live[OURS] / live[name]:.0f} %",
            "resident MB": f"{resident[name] / 1e6:.0f}",
            "ours grows by": f"{100 * resident[OURS] / max(resident[name], 1):.0f} %",
            "rounds": rounds,
        }
        for name in names
    ]


def main() -> None:
    """Measure all subjects, or one of them in this process."""
    parser = rivals.parser(__doc__, rounds=1)
    parser.add_argument("--subject", choices=(EAGER_NCHW, EAGER_LAST, OURS))
    options = parser.parse_args()
    if options.subject:
        print(json.dumps(measure(options.subject, options.precision[0])))
        return
    rivals.start()
    rows: list[dict[str, object]] = []
    for precision in rivals.precisions(options):
        for tuned in ("1", "0"):
            rows += compare(precision, tuned, options.rounds)
    print_table(rows)
    save_rows("memory", rows)


if __name__ == "__main__":
    main()
