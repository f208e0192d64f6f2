"""Options that several commands share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    str,
    typer.Option(
        help="cifar10, digits (no download), or a folder with train/ and test/, one subfolder "
        "a class.",
        metavar="[cifar10|digits|DIR]",
    ),
]
OtherData = Annotated[
    str | None,
    typer.Option(
        help="Other data of the same classes, or where the run's own folder is now. Default: the "
        "run's own.",
        metavar="[cifar10|digits|DIR]",
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
        help="Where to compute. auto: CUDA where torch sees it.", metavar="[auto|cpu|cuda]"
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document; progress goes to stderr.")
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say what the process computes with.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
