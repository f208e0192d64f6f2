"""The door: train the variants, keep the journal, and hold what came out."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch

import gammabeta
from gammabeta import runtime
from gammabeta.bench.report import cpu_name
from gammabeta.data import load
from gammabeta.data.dataset import Dataset
from gammabeta.errors import GammabetaError
from gammabeta.insight.compare.claims import Claim, Evidence, claims
from gammabeta.insight.compare.journal import Journal, of_kind, plan_of, read
from gammabeta.insight.compare.plan import Plan
from gammabeta.insight.compare.run import Runner, Status
from gammabeta.insight.compare.settings import RATES, SMALL, Settings, hold_out
from gammabeta.insight.compare.summary import summary
from gammabeta.models import VARIANTS

DEFAULT_MINUTES = {"small": 2.5, "large": 60.0}
DIGITS_SIZE = 16


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a comparison found, as far as it came.

    Args:
        settings: What was compared.
        lines: Of the journal.
    """

    settings: Settings
    lines: list[dict[str, Any]]

    @classmethod
    def read(cls, journal: str | os.PathLike[str]) -> Comparison:
        """Return what a journal holds, without training anything.

        Raises:
            RunError: If the file is no journal.
        """
        return cls.of_lines(read(Path(journal)))

    @classmethod
    def of_lines(cls, lines: list[dict[str, Any]]) -> Comparison:
        """Return what the lines of a journal say."""
        known = {field.name for field in dataclasses.fields(Settings)}
        values = {name: value for name, value in lines[0].items() if name in known}
        tuples = {name: tuple(values[name]) for name in ("variants", "rates")}
        return cls(Settings(**values | tuples), lines)

    @property
    def plan(self) -> Plan | None:
        """Lengths of the trainings; None if it ended before they were planned."""
        return plan_of(self.lines)

    @property
    def records(self) -> list[dict[str, Any]]:
        """The finished trainings, in the order in which they ended."""
        return of_kind(self.lines, "job")

    @property
    def machine(self) -> dict[str, Any]:
        """Versions, processor and command of the last session, and all sessions, by name."""
        *_, last = of_kind(self.lines, "session")
        ends = of_kind(self.lines, "end")
        kept = {name: value for name, value in last.items() if name not in {"kind", "began"}}
        return kept | {
            "sessions": [line["began"] for line in of_kind(self.lines, "session")],
            "created": ends[-1]["at"] if ends else last["began"],
            "ended_by": ends[-1]["by"] if ends else "signal",
        }

    @property
    def resumed(self) -> bool:
        """Whether the trainings stem from more than one session."""
        kinds = [line["kind"] for line in self.lines]
        last = len(kinds) - 1 - kinds[::-1].index("session")
        return "job" in kinds[:last] and "job" in kinds[last:]

    @property
    def evidence(self) -> Evidence | None:
        """The trainings as the claims look at them; None without a plan."""
        if self.plan is None:
            return None
        first = self.lines[0]
        steps = first["images"][0] / self.settings.batch_size
        return Evidence(self.settings, self.plan, self.records, first["classes"], steps)

    @property
    def claims(self) -> list[Claim]:
        """The four claims with their verdicts; none if it ended before anything was trained."""
        return claims(self.evidence) if self.evidence else []

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON: settings, plan, claims, figures and all trainings."""
        train, validation, test = self.lines[0]["images"]
        return {
            **self.machine,
            "resumed": self.resumed,
            "settings": self.settings.to_dict(),
            "images": {"train": train, "validation": validation, "test": test},
            "classes": self.lines[0]["classes"],
            "plan": self.plan.to_dict() if self.plan else None,
            "claims": [claim.to_dict() for claim in self.claims],
            "variants": summary(self.evidence) if self.evidence else {},
            "trainings": self.records,
        }

    def to_html(self, path: str | os.PathLike[str], lang: str = "en") -> None:
        """Write the page: one file that needs no network.

        Raises:
            GammabetaError: If the language is neither "en" nor "zh".
            RunError: If the file cannot be written.
        """
        from gammabeta.insight.compare.page import write_page

        write_page(self, path, lang)


def compare(
    data: str | Dataset = "cifar10",
    *,
    journal: str | os.PathLike[str] = "compare.jsonl",
    root: str | os.PathLike[str] | None = None,
    variants: Iterable[str] = VARIANTS,
    seeds: int = 3,
    seed: int = 0,
    budget: float | None = None,
    rates: Iterable[float] = RATES,
    batch_size: int | None = None,
    image_size: int | None = None,
    skip_unreadable: bool = False,
    precision: str = "auto",
    command: str | None = None,
    note: Callable[[str], object] = lambda _: None,
    tell: Callable[[Status], None] = lambda _: None,
    stop_requested: Callable[[], int] = lambda: 0,
) -> Comparison:
    """Train variants of the network and judge what batch norm is claimed to do.

    Trainings run in processes of their own, which are spawned: a script must call this under
    ``if __name__ == "__main__":``. Every finished training is kept in the journal; the same call
    goes on where an earlier one ended, with the whole budget for what is left.

    Args:
        data: "cifar10", "digits", a folder of images, or a data set in memory.
        journal: File that keeps the trainings.
        root: Where CIFAR-10 lies.
        variants: Two or more of "bn", "none", "dropout", "bn+dropout", "groupnorm".
        seeds: How many seeds; with one there is no verdict.
        seed: The first of them.
        budget: Minutes for everything; by default 60, or 2.5 with fewer than 10,000 images.
        rates: Learning rates to try.
        batch_size: Images a step; by default 128, or 64 with fewer than 10,000 images.
        image_size: Of digits (default 16) and folders (32).
        skip_unreadable: Leave out images of a folder that cannot be read.
        precision: "auto", "fp32" or "bf16", the same for every variant.
        command: For the page: how to do it again.
        note: Told each sentence about how the data were found.
        tell: Told how far it is.
        stop_requested: Returns the number of a signal that asks to stop, or 0.

    Raises:
        GammabetaError: For arguments that do not fit, and a training process that dies.
        RunError: If the journal belongs to other settings, or cannot be written.
    """
    began = monotonic()
    if budget is not None and not 0 < budget < math.inf:
        raise GammabetaError(f"budget is {budget:g} minutes, but must be above 0")
    if isinstance(data, str):
        own_size = DIGITS_SIZE if data == "digits" else 32
        size = own_size if image_size is None else image_size
        dataset = load(data, root=root, image_size=size, skip_unreadable=skip_unreadable)
        for sentence in dataset.notes:
            note(sentence)
    else:
        dataset = data
    held = hold_out(dataset)
    small = len(dataset.train) < SMALL
    minutes = DEFAULT_MINUTES["small" if small else "large"] if budget is None else budget
    settings = Settings(
        data=dataset.name,
        variants=tuple(variants),
        seeds=seeds,
        seed=seed,
        budget=60 * minutes,
        rates=tuple(rates),
        batch_size=(64 if small else 128) if batch_size is None else batch_size,
        precision=runtime.choose_precision(precision)[0],
        image_size=dataset.image_size,
    )
    kept = Journal(Path(journal), settings.identity(held), machine(command))
    try:
        runner = Runner(settings, held, kept, tell=tell, stop_requested=stop_requested, began=began)
        kept.end(runner.run())
    finally:
        kept.close()
    return Comparison.of_lines(kept.lines)


def machine(command: str | None) -> dict[str, Any]:
    """Return what a reader must know to judge the figures, or to get them again."""
    return {
        "gammabeta": gammabeta.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cores": runtime.available_cores(),
        "command": command,
    }
