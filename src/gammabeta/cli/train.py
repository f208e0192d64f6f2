"""``gammabeta train``: train the reference network and save a run."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gammabeta.cli import options
from gammabeta.cli.naming import program
from gammabeta.cli.streams import stop_requests
from gammabeta.cli.summary import Clock, conclude, document
from gammabeta.extras import require

if TYPE_CHECKING:
    from gammabeta.cli.console import Screen
    from gammabeta.data.dataset import Dataset
    from gammabeta.training.config import Config
    from gammabeta.training.evaluate import Evaluation
    from gammabeta.training.run import Run
    from gammabeta.training.trainer import Trainer

RUNS = Path("runs")
FEW_STEPS = 90


def _number(help_text: str) -> Any:
    return typer.Option(help=help_text, show_default=False, rich_help_panel="Recipe")


def train(
    context: typer.Context,
    data: options.Data = "cifar10",
    root: options.Root = None,
    image_size: Annotated[
        int,
        typer.Option(help="Digits and folder images are resized to this; a multiple of 8."),
    ] = 32,
    skip_unreadable: options.SkipUnreadable = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="anneal (default: 8 epochs, warm-up then decay) or tutorial (200 epochs, "
            "constant rate).",
            metavar="[anneal|tutorial]",
            autocompletion=options.one_of("anneal", "tutorial"),
            show_default=False,
            rich_help_panel="Recipe",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        _number("TOML file with any of the recipe's numbers; options here win."),
    ] = None,
    epochs: Annotated[int | None, _number("Passes over the data. [8, tutorial 200]")] = None,
    batch_size: Annotated[int | None, _number("Images a step. [128]")] = None,
    lr: Annotated[float | None, _number("Learning rate, or its peak. [0.2, tutorial 0.1]")] = None,
    momentum: Annotated[float | None, _number("SGD momentum. [0.9]")] = None,
    weight_decay: Annotated[float | None, _number("L2 penalty. [0.0005]")] = None,
    label_smoothing: Annotated[
        float | None, _number("Target mass spread over all classes. [0.1, tutorial 0]")
    ] = None,
    seed: Annotated[int | None, _number("Weights, order and augmentation. [0]")] = None,
    precision: Annotated[
        str,
        typer.Option(
            metavar="[auto|fp32|bf16]",
            autocompletion=options.one_of("auto", "fp32", "bf16"),
            help="auto: bf16 where the CPU has bf16 instructions.",
        ),
    ] = "auto",
    device: Annotated[
        str,
        typer.Option(
            metavar="[auto|cpu|cuda]",
            autocompletion=options.one_of("auto", "cpu", "cuda"),
            help="auto: CUDA where torch sees it.",
        ),
    ] = "auto",
    threads: options.Threads = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The run's folder, new or empty. Default: runs/DATA-RECIPE-N.", show_default=False
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Continue this run where it stopped, to the same bits. --epochs makes it longer; "
            "--data, --root, --device and --threads say where its data and the machine are now.",
            show_default=False,
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            help="Begin with the weights of this checkpoint, safetensors or torch.save. The last "
            "layer begins anew for another number of classes.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write TensorBoard events.")
    ] = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Train the reference network and save a run: model, metrics, curves, state.

    Ctrl-C finishes the batch, saves, and prints the command that continues.

    Examples:
      gammabeta train --data digits              real digits, no download, seconds
      gammabeta train                            CIFAR-10, 8 epochs
      gammabeta train --recipe tutorial          CIFAR-10 as the tutorial does it
      gammabeta train --data photos/ --epochs 20 your own images
      gammabeta train --resume runs/cifar10-anneal-1
      gammabeta train --resume runs/cifar10-anneal-1 --epochs 16
      gammabeta train --data photos/ --init runs/cifar10-anneal-1/model.safetensors
    """
    from gammabeta.training.folder import expect_run

    clock = Clock()
    if resume:
        expect_run(resume)

    from gammabeta.cli import resume as resuming
    from gammabeta.cli.console import open_console, print_json

    console = open_console(as_json, quiet)
    if tensorboard:
        require("tensorboard")
    if resume is None:
        run, dataset = _begin(console, context.params)
    else:
        resuming.refuse_other_options(context)
        run, dataset = resuming.reopen(console, resuming.named(context), verbose)
        _introduce(console, run, dataset, "as before")
    trainer, result = _fit(
        console, run, dataset, resumed=resume is not None, tensorboard=tensorboard
    )
    _draw_curves(run)
    conclude(console, trainer, result, clock)
    if as_json:
        print_json(document(trainer, result, clock))


def _begin(console: Screen, given: dict[str, Any]) -> tuple[Run, Dataset]:
    """Resolve the recipe, read the data and make a new run folder."""
    from gammabeta import runtime
    from gammabeta.cli.console import data_progress
    from gammabeta.cli.source import say
    from gammabeta.data import load
    from gammabeta.data.image import check_image_size
    from gammabeta.models import GRID, require_memory
    from gammabeta.training.config import Config
    from gammabeta.training.recipe import RECIPES, resolve
    from gammabeta.training.run import Run, fresh_path, refuse_occupied, refuse_unwritable

    numbers = {k: v for k, v in given.items() if hasattr(RECIPES["anneal"], k)}
    recipe = resolve(given["recipe"], given["config"], numbers)
    if given["out"]:
        refuse_occupied(given["out"])
    refuse_unwritable(given["out"] or RUNS)
    machine = runtime.configure(given["precision"], given["device"], given["threads"])
    if given["verbose"]:
        console.print(machine.describe())
    name = given["data"]
    data = name if name in {"cifar10", "digits"} else str(Path(name).absolute())
    root = str(given["root"].absolute()) if given["root"] else None
    check_image_size(given["image_size"])
    on_cpu = machine.device == "cpu"
    if on_cpu:  # batch norm needs two images, whatever data there is
        require_memory(given["image_size"], min(recipe.batch_size, 2))
    with data_progress(console) as progress:
        dataset = load(
            data,
            root=root,
            image_size=given["image_size"],
            skip_unreadable=given["skip_unreadable"],
            progress=progress,
        )
    if on_cpu:
        require_memory(dataset.image_size, min(recipe.batch_size, len(dataset.train)))
    config = Config(
        data=data,
        root=root,
        image_size=dataset.image_size,
        grid=GRID,
        skip_unreadable=given["skip_unreadable"],
        classes=dataset.classes,
        normalization=dataset.normalization,
        recipe=recipe,
        precision=machine.precision,
        device=machine.device,
        threads=machine.threads,
        files=dataset.files,
        init=str(given["init"].absolute()) if given["init"] else None,
    )
    notes = _init_notes(config)
    path = given["out"] or fresh_path(RUNS, f"{dataset.name}-{recipe.name}")
    run = Run.create(path, config)
    _introduce(console, run, dataset, machine.reason)
    say(console, notes)
    return run, dataset


def _init_notes(config: Config) -> list[str]:
    """Try the weights to begin with before a folder is made, and return what is to be said."""
    from gammabeta.training.trainer import begin_with

    return [] if config.init is None else begin_with(config.build_model(), config.init)


def _introduce(console: Screen, run: Run, dataset: Dataset, reason: str) -> None:
    config, recipe = run.config, run.config.recipe
    for note in dataset.notes:
        console.print(note)
    plural = "s" * (recipe.epochs > 1)
    console.narrate(
        f"{dataset.name}: {len(dataset.train)} training and {len(dataset.test)} test images, "
        f"{len(dataset.classes)} classes\n"
        f"{recipe.name}: {recipe.epochs} epoch{plural}, batches of {recipe.batch_size}, lr "
        f"{recipe.lr:g}, seed {recipe.seed}; {config.precision} ({reason}), {config.threads} "
        f"threads\nsaving in {run.path}"
    )


def _fit(
    console: Screen, run: Run, dataset: Dataset, *, resumed: bool, tensorboard: bool
) -> tuple[Trainer, Evaluation]:
    """Train to the end, or until asked to stop, and say how to go on."""
    from gammabeta.cli.console import SideListener, training_listener
    from gammabeta.training.events import Listener, MetricsFile, TensorBoard
    from gammabeta.training.trainer import StoppedError, Trainer

    with stop_requests() as stop_requested:
        trainer = Trainer(
            run,
            dataset,
            resume=resumed,
            finish=not run.curves.exists(),
            stop_requested=stop_requested,
        )
        if trainer.complete:
            console.print("all epochs were trained; measuring, and writing what was left to write")
        if trainer.total_steps < FEW_STEPS:
            console.print(
                f"note: {trainer.total_steps} steps in all are few: weights and running statistics "
                "need about a hundred; more --epochs, or a smaller --batch-size with a smaller --lr"
            )
        at = trainer.position
        if resumed:
            _save_changes(console, trainer)
        listeners: list[Listener] = [MetricsFile(run.metrics, trainer.records)]
        if tensorboard:
            board = partial(TensorBoard, run.tensorboard, at.step)
            listeners.append(SideListener("TensorBoard's events", board))
        try:
            batches = len(trainer.loader)
            with training_listener(console, run.config.recipe.epochs, batches, at.step) as show:
                return trainer, trainer.fit([*listeners, show])
        except StoppedError as stopped:
            _draw_curves(run)
            console.print(
                f"{stopped}; continue with: {program()} train --resume {shlex.quote(str(run.path))}"
            )
            raise typer.Exit(128 + stopped.signal) from None


def _draw_curves(run: Run) -> None:
    from gammabeta.cli.console import side_result

    with side_result("the curves"):
        from gammabeta.training.plots import plot_curves

        plot_curves(run.metrics, run.curves)


def _save_changes(console: Screen, trainer: Trainer) -> None:
    """Keep what the user changed in a resumed run, now that its state was found to fit."""
    from gammabeta.cli.resume import schedule
    from gammabeta.training.run import Run

    run, began = trainer.run, Run.open(trainer.run.path).config
    if run.config.recipe != began.recipe:
        steps = trainer.position.step, trainer.total_steps
        console.print(schedule(began.recipe, run.config.recipe, *steps))
    if run.config != began:
        run.save_config()
