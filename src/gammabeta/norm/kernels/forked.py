"""Whether this process was made by ``fork``: OpenMP's threads do not survive one.

It is imported with gammabeta, and not with the first kernel, which may be needed in a child only.
"""

from __future__ import annotations

import os

_forked = False


def forked() -> bool:
    """Tell whether a parent forked this process after gammabeta was imported."""
    return _forked


def _note() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_note)
