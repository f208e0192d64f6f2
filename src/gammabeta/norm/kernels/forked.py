"""Whether this process was made by ``fork``: OpenMP's threads do not survive one.

It is imported with gammabeta, and not with the first kernel, which may be needed in a child only;
and it is noted where an import anew, in a child, finds it.
"""

from __future__ import annotations

import os

import torch

_FIRST: int = vars(torch.ops.gammabeta).setdefault("first_process", os.getpid())


def forked() -> bool:
    """Tell whether a parent forked this process after gammabeta was imported."""
    return os.getpid() != _FIRST
