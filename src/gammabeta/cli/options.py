"""Options that several commands share, each written once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer


def one_of(*names: str) -> Callable[[str], list[str]]:
    """Return what a shell completes an option's value to."""

    def complete(incomplete: str) -> list[str]:  # typer goes by this name
        return [name for name in names if name.startswith(incomplete)]

    return complete


Data = Annotated[
    str,
    typer.Option(
        help="cifar10, digits (no download), or a folder with train/ and test/, one subfolder "
        "a class.",
        metavar="[cifar10|digits|DIR]",
        autocompletion=one_of("cifar10", "digits"),
    ),
]
OtherData = Annotated[
    str | None,
    typer.Option(
        help="Other data of the same classes, or where the run's own folder is now. Default: the "
        "run's own.",
        metavar="[cifar10|digits|DIR]",
        autocompletion=one_of("cifar10", "digits"),
        show_default=False,
    ),
]
Root = Annotated[
    Path | None,
    typer.Option(
        help="Where CIFAR-10 lies or is downloaded to. Default: $GAMMABETA_DATA, else the user's "
        "cache folder.",
        show_default=False,
    ),
]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave out image files that cannot be read.")
]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="A checkpoint in place of the run's weights: safetensors or torch.save of a "
        "state_dict, from whatever wrapper.",
        metavar="FILE",
        show_default=False,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="CPU threads. Default: all available cores.", show_default=False),
]
Device = Annotated[
    str,
    typer.Option(
        help="Where to compute. auto: CUDA where torch sees it.",
        metavar="[auto|cpu|cuda]",
        autocompletion=one_of("auto", "cpu", "cuda"),
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document; progress goes to stderr.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress: only notes, warnings and the result.")
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say what the process computes with.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
