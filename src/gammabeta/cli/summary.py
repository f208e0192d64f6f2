"""What ``gammabeta train`` says when it is done."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING, Any

from gammabeta.cli.naming import program

if TYPE_CHECKING:
    from gammabeta.cli.console import Screen
    from gammabeta.training.evaluate import Evaluation
    from gammabeta.training.trainer import Trainer


class Clock:
    """How long this command has taken, and how much of it went into compiling kernels."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    @property
    def compiling(self) -> float:
        """Seconds spent on kernels that the next command finds on the disk."""
        from gammabeta.runtime import seconds_compiling

        return seconds_compiling(since=self.began)

    def __str__(self) -> str:
        from gammabeta.cli.console import duration

        compiling = self.compiling
        once = f", {duration(compiling)} of it compiling kernels once" if compiling > 0.5 else ""
        return f"this command took {duration(time.monotonic() - self.began)}{once}"


def conclude(console: Screen, trainer: Trainer, result: Evaluation, clock: Clock) -> None:
    """Print how good the network became, how long it took, and what to do next."""
    from gammabeta.cli.console import duration

    at, path = trainer.position, trainer.run.path
    cifar = trainer.run.config.data == "cifar10"
    console.print(
        f"Accuracy of the network on the {result.total} test images: "
        f"{100 * result.accuracy:.0f} %\n"
        f"last {100 * result.accuracy:.2f} % ({result.correct} of {result.total}), best "
        f"{100 * at.best_accuracy:.2f} % (epoch {at.best_epoch}); saved in {path}\n"
        f"{duration(at.seconds)} of training and measuring; {clock}"
    )
    console.narrate(
        "Try next:\n"
        f"  {program()} evaluate {shlex.quote(str(path))}\n"
        f"  {program()} predict {shlex.quote(str(path))} IMAGE...\n"
        f"  {program()} train " + ("--recipe tutorial" if cifar else "    # CIFAR-10, 8 epochs")
    )


def document(trainer: Trainer, result: Evaluation, clock: Clock) -> dict[str, Any]:
    """Return the same for ``--json``."""
    from gammabeta.runtime import peak_memory_bytes

    at, config = trainer.position, trainer.run.config
    return {
        "run": str(trainer.run.path),
        "accuracy": result.accuracy,
        "correct": result.correct,
        "total": result.total,
        "loss": result.loss,
        "best_accuracy": at.best_accuracy,
        "best_epoch": at.best_epoch,
        "epochs": config.recipe.epochs,
        "seed": config.recipe.seed,
        "precision": config.precision,
        "threads": config.threads,
        "images_per_second": at.images / at.train_seconds,
        "seconds": at.seconds,
        "seconds_compiling": clock.compiling,
        "peak_memory_bytes": peak_memory_bytes(),
    }
