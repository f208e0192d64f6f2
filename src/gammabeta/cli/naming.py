"""How the user called this program, for the commands that it suggests."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def program() -> str:
    """Return the words that start this program again from the same shell."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"{Path(sys.executable).name} -m gammabeta"
    return "gammabeta" if shutil.which("gammabeta") else sys.argv[0]
