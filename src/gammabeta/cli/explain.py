"""``gammabeta explain``: a page that shows what batch norm does to a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gammabeta.cli import options

if TYPE_CHECKING:
    from gammabeta.cli.target import Target
    from gammabeta.insight.explain import Explanation


def explain(
    target: Annotated[
        str | None,
        typer.Argument(
            help="A run's folder, or module:callable, a function that returns a model. Default: "
            "the newest run under runs/.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Where the images come from. Default: the run's own test images; random images "
            "for module:callable.",
            metavar="[cifar10|digits|DIR]",
            autocompletion=options.one_of("cifar10", "digits"),
            show_default=False,
        ),
    ] = None,
    root: options.Root = None,
    skip_unreadable: options.SkipUnreadable = False,
    weights: options.Weights = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images in the batch that goes through the model.")
    ] = 128,
    image_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pixels a side for module:callable. Default: what the model says, else 32.",
            show_default=False,
        ),
    ] = None,
    lang: Annotated[
        str | None,
        typer.Option(
            help="Language of the page. Default: from the locale.",
            metavar="[en|zh]",
            autocompletion=options.one_of("en", "zh"),
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The page. Default: RUN/explain.html, or explain.html.", show_default=False
        ),
    ] = None,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show on a page what batch norm does to a model, with the numbers of a real batch.

    One HTML file that needs no network: the formula with the values of any
    layer and channel, every batch norm at a glance, training against eval mode,
    the gradient's three paths, and a playground. The model is left as it was.

    Examples:
      gammabeta explain
      gammabeta explain runs/cifar10-anneal-1 --lang zh --out bn.html
      gammabeta explain torchvision.models:resnet18 --image-size 64 --batch-size 16
    """
    from gammabeta.training.folder import expect_run, newest_run

    if target is None:
        target = str(newest_run(Path("runs")))
    elif Path(target).exists() or ":" not in target:
        expect_run(Path(target))

    from gammabeta import runtime
    from gammabeta.cli.console import data_progress, open_console, print_json
    from gammabeta.cli.target import open_target
    from gammabeta.insight import render

    console = open_console(as_json, quiet)
    runtime.configure("fp32", "cpu", threads)
    language = render.check_lang(lang or render.default_lang())
    with data_progress(console) as progress:
        found = open_target(
            target, data, root, batch_size, image_size, weights, skip_unreadable, progress
        )
    for note in found.notes:
        console.print(f"note: {note}")
    explanation = _explain(found)
    page = out or _default_page(target)
    explanation.to_html(page, lang=language)
    if as_json:
        print_json({**explanation.to_dict(), "page": str(page)})
    size = page.stat().st_size / 1e6
    console.print(f"{len(explanation.layers)} batch norm layers explained: {page} ({size:.1f} MB)")


def _default_page(target: str) -> Path:
    """Return RUN/explain.html for a run, explain.html in this folder for a callable."""
    return Path(target, "explain.html") if Path(target).is_dir() else Path("explain.html")


def _explain(found: Target) -> Explanation:
    """Explain a target; the page names the command, and says so where images are random."""
    import shlex
    import sys

    from gammabeta.insight.explain import explain as look

    explanation = look(
        found.model,
        found.images,
        found.labels,
        classes=found.classes,
        population=found.population,
        name=found.name,
        data_name=found.data or "random",
    )
    explanation.command = shlex.join(["gammabeta", *sys.argv[1:]])
    if found.data is None:
        explanation.data["limits"].append("random-images")
    return explanation
