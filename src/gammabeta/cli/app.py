"""The program ``gammabeta``: its commands, and how every error ends.

Commands import what they need inside, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gammabeta import __version__, memory
from gammabeta.cli import (
    bench,
    compare,
    conformance,
    evaluate,
    explain,
    export,
    predict,
    recalibrate,
    streams,
    train,
)
from gammabeta.cli.command import Command
from gammabeta.errors import GammabetaError

_SAVE_THEIR_RESULT = {"train", "explain", "compare", "export", "recalibrate"}

app = typer.Typer(
    name="gammabeta",
    help="Batch Normalization for PyTorch: understand it, train with it, diagnose it, ship it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for _name, _function in (
    ("train", train.train),
    ("evaluate", evaluate.evaluate),
    ("predict", predict.predict),
    ("explain", explain.explain),
    ("compare", compare.compare),
    ("export", export.export),
    ("recalibrate", recalibrate.recalibrate),
    ("conformance", conformance.conformance),
    ("bench", bench.bench),
):
    app.command(_name, cls=Command)(_function)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"gammabeta {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; an error that the user can mend is one line and exit status 2.

    Standard output that cannot be written is such an error too, unless what the command did is
    in files.
    """
    streams.protect()
    try:
        _run()
    except SystemExit as end:
        sys.stdout.flush()
        saved = _SAVE_THEIR_RESULT.intersection(sys.argv[1:2])
        if streams.output_is_lost() and not end.code and not saved:
            sys.exit(2)
        raise


def _run() -> None:
    try:
        app()
    except GammabetaError as error:
        if "--debug" in sys.argv:
            raise
        print(f"gammabeta: error: {error}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if "--debug" in sys.argv or not memory.ran_out(error):
            raise
        print(
            "gammabeta: error: memory ran out; choose a smaller --batch-size or --image-size",
            file=sys.stderr,
        )
        sys.exit(2)
