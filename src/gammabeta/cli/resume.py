"""What ``gammabeta train --resume`` may change in a run: its place, its data's, and its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gammabeta.errors import GammabetaError

if TYPE_CHECKING:
    import typer
    from rich.console import Console

    from gammabeta.data.dataset import Dataset
    from gammabeta.runtime import Runtime
    from gammabeta.training.config import Config
    from gammabeta.training.recipe import Recipe
    from gammabeta.training.run import Run

CHANGES = {"data", "root", "skip_unreadable", "epochs", "device", "threads"}
BESIDE = {"resume", "tensorboard", "as_json", "verbose", "debug", "quiet"}


def refuse_other_options(context: typer.Context) -> None:
    """Refuse options that would make another training of a run.

    Raises:
        GammabetaError: Naming them.
    """
    given = [name for name in named(context) if name not in CHANGES | BESIDE]
    if given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise GammabetaError(f"--resume continues a run as it was configured; leave out {flags}")


def named(context: typer.Context) -> dict[str, Any]:
    """Return the options that the user named."""
    return {
        name: value
        for name, value in context.params.items()
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }


def reopen(console: Console, given: dict[str, Any], verbose: bool) -> tuple[Run, Dataset]:
    """Set the process up as a run's configuration says, with what the user changed, and read data.

    The folder stays as it is: who trains saves the configuration with the first checkpoint.

    Args:
        console: Where progress and the machine go.
        given: The options that the user named.
        verbose: Whether the machine is to be described.

    Raises:
        GammabetaError: If it is no run, or its data or device are not there.
    """
    from gammabeta import runtime
    from gammabeta.cli.console import data_progress
    from gammabeta.cli.source import open_run, refuse_gone
    from gammabeta.training.run import Run

    run = open_run(given["resume"], "--init")
    began = run.config
    device = given.get("device", began.device)
    machine = runtime.configure(began.precision, device, given.get("threads", began.threads))
    if verbose:
        console.print(machine.describe())
    config = _changed(began, given, machine)
    if "data" not in given:
        refuse_gone(config.data, run.path)
    with data_progress(console) as progress:
        dataset = config.load_data(progress=progress)
    notes = (*dataset.notes, *_told(began, config))
    return Run(run.path, config), dataclasses.replace(dataset, notes=notes)


def schedule(began: Recipe, recipe: Recipe, step: int, steps: int) -> str:
    """Say what becomes of the learning rate where a training is made longer or shorter.

    Args:
        began: The recipe until now.
        recipe: The recipe from now on.
        step: Steps done.
        steps: All steps, from now on.
    """
    rate = recipe.learning_rate(step, steps)
    course = " and falls to zero at the end" if recipe.anneal else ", as before"
    if step < recipe.warmup * steps and recipe.anneal:
        course = f", rises to {recipe.lr:g} and then falls to zero"
    return (
        f"{recipe.epochs} epochs in place of {began.epochs}: the schedule is laid over all "
        f"{recipe.epochs}, so the learning rate goes on at {rate:.3g}{course}; "
        f"{recipe.epochs} epochs from the start would have had other rates"
    )


def _changed(config: Config, given: dict[str, Any], machine: Runtime) -> Config:
    """Return a configuration with what the user named."""
    from gammabeta.data import DATA_SETS

    changes: dict[str, Any] = {"device": machine.device, "threads": machine.threads}
    data, root, epochs = (given.get(name) for name in ("data", "root", "epochs"))
    if data is not None:
        changes["data"] = data if data in DATA_SETS else str(Path(data).absolute())
    if root is not None:
        changes["root"] = str(root.absolute())
    if epochs is not None:
        changes["recipe"] = dataclasses.replace(config.recipe, epochs=epochs)
    if given.get("skip_unreadable"):
        changes["skip_unreadable"] = True
    return dataclasses.replace(config, **changes)


def _told(began: Config, config: Config) -> Iterator[str]:
    """Say what may change the last bits."""
    for what in ("device", "threads"):
        old, new = getattr(began, what), getattr(config, what)
        if old != new:
            yield f"{what} {new} in place of {old}: the last bits may differ from a run with {old}"
