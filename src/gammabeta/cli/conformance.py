"""``gammabeta conformance``: judge any batch norm class by PyTorch's contract."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gammabeta.cli import options


def conformance(
    target: Annotated[
        str,
        typer.Argument(help="MODULE:CLASS, importable from here.", show_default=False),
    ],
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Check a batch norm class, behaviour by behaviour.

    PyTorch's contract, and what it promises less firmly: torch's own layers
    fail a few. The class is called as Class(num_features, ...). The exit
    status is 0 if every behaviour that applies holds, 1 if one does not.

    Examples:
      gammabeta conformance torch.nn:BatchNorm2d
      gammabeta conformance my_layers:GhostNorm --json
    """
    from gammabeta.cli.console import print_json
    from gammabeta.testing import check_batch_norm

    report = check_batch_norm(_load(target))
    if as_json:
        print_json(report.to_dict())
    else:
        print(report)
        print(report.summary())
    if not report.passed:
        raise typer.Exit(1)


def _load(target: str) -> Any:
    """Import what ``module:Class`` names; the current folder is searched first."""
    import sys
    from importlib import import_module
    from operator import attrgetter
    from pathlib import Path

    from gammabeta.errors import GammabetaError

    module, colon, name = target.partition(":")
    if not (module and colon and name):
        raise GammabetaError(f"{target!r} is no module:Class, such as torch.nn:BatchNorm2d")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = attrgetter(name)(import_module(module))
    except (ImportError, AttributeError) as error:
        raise GammabetaError(f"cannot import {target!r}: {error}; is the name right?") from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise GammabetaError(f"{target!r} is {type(found).__name__}, expected a class")
    return found
