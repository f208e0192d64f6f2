"""Whether a path can be a run, found out without the seconds that importing torch takes."""

from __future__ import annotations

import os
from pathlib import Path

from gammabeta.errors import RunError


def not_a_run(path: Path, error: OSError) -> RunError:
    """Return the error for a folder whose ``config.json`` cannot be read."""
    hint = "a run is the folder that `gammabeta train` printed"
    return RunError(f"{path}: is not a run: {error.strerror}: config.json; {hint}")


def expect_run(path: Path) -> None:
    """Let a command refuse a wrong name at once; what exists is judged when it is read.

    Raises:
        RunError: If the path names no file, and no folder with a ``config.json``.
    """
    if path.is_file():
        return
    exported = path.suffix == ".onnx" and not path.is_dir()
    try:
        os.stat(path if exported else path / "config.json")  # noqa: PTH116 - of either kind
    except OSError as error:
        if not exported:
            raise not_a_run(path, error) from None
        raise RunError(f"{path}: {error.strerror}; name an exported file or a run") from None


def newest_run(parent: Path) -> Path:
    """Return the run under ``parent`` whose model was saved last.

    Raises:
        RunError: If there is none.
    """
    models = [*parent.glob("*/model.safetensors")]
    saved = [m for m in models if (m.parent / "config.json").exists()]
    if not saved:
        raise RunError(
            f"no run under {parent}/: make one with `gammabeta train --data digits`, or name a "
            "run's folder or module:callable"
        )
    return max(saved, key=lambda model: model.stat().st_mtime).parent
