"""Trains in child processes that kill themselves before their n-th file operation, then resumes.

Run as a program: ``python kill_driver.py FOLDER STRIDE``. This process has one thread, so that
it can be forked: each child is a real process that dies of a real SIGKILL. It prints a JSON line
a point.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path

from gammabeta.errors import RunError
from gammabeta.files import leftovers
from gammabeta.training.checkpoint import load_state
from gammabeta.training.events import MetricsFile
from gammabeta.training.plots import plot_curves
from gammabeta.training.run import Run, refuse_occupied
from gammabeta.training.state import same_tensors
from gammabeta.training.trainer import Trainer
from training_helpers import make_run, one_thread, small

OPERATIONS = ("replace", "fsync", "link", "mkdir", "unlink")


def main(folder: Path, stride: int) -> None:
    one_thread()
    fit(make_run(folder / "warm", small(), epochs=1, batch_size=8, lr=0.05), resumed=False)
    in_child(lambda: train(folder / "whole"))
    for point in range(1, 1000, stride):
        run = folder / str(point)
        status = in_child(lambda point=point, run=run: train(run, point))
        if status == 0:  # it came to its end before that operation
            break
        found = folder / f"{point}.json"
        code = in_child(lambda run=run, found=found: go_on(run, found))
        report = json.loads(found.read_text()) if found.exists() else {}
        line = json.dumps({"point": point, "killed": status, "code": code, **report})
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def in_child(act) -> int:
    """Return the exit status of a process that does something, negative if a signal ended it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        one_thread()
        act()
    except BaseException:  # noqa: BLE001 - whatever it is, this process must not go on
        traceback.print_exc()
        os._exit(3)
    os._exit(0)


def train(path: Path, point: int = 0) -> None:
    """Train two epochs, up to the file operation before which this process is to die."""
    die_before(point)
    fit(make_run(path, small(), epochs=2, batch_size=8, lr=0.05), resumed=False)


def fit(run: Run, *, resumed: bool) -> None:
    """As the command does."""
    trainer = Trainer(run, small(), resume=resumed, finish=not run.curves.exists())
    trainer.fit([MetricsFile(run.metrics, trainer.records)])
    plot_curves(run.metrics, run.curves)


def die_before(point: int) -> None:
    count = 0

    def watched(operation):
        def act(*args, **options):
            nonlocal count
            count += 1
            if count == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **options)

        return act

    for name in OPERATIONS:
        setattr(os, name, watched(getattr(os, name)))


def go_on(path: Path, report: Path) -> None:
    """Look at what is there, then do what a user would: resume, or begin again."""
    served = "no run"
    if (path / "config.json").exists():
        run = Run.open(path)
        served = serve(run)
        try:
            fit(run, resumed=True)
        except RunError as error:  # killed when there was nothing left to write
            if "is complete (2 of 2 epochs)" not in str(error):
                raise
    else:
        refuse_occupied(path)
        train(path)
    content = {"served": served, "leftovers": [p.name for p in leftovers(path)],
               "files": sorted(p.name for p in path.iterdir())}  # fmt: skip
    report.write_text(json.dumps(content))


def serve(run: Run) -> str:
    """Return what evaluate and predict would be given."""
    try:
        model = run.load_model()
    except RunError as error:
        return str(error)
    state = load_state(run.state)["model"]
    return "last" if same_tensors(model.state_dict(), state) else "older"


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
