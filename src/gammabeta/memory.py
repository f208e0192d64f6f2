"""Whether something fits into memory, asked before it is tried.

A system that overcommits hands out memory that it does not have and kills the process later, so
an attempt tells nothing. Counted is what can be had without swapping, within the limit of the
control group (a container's) that the process is in.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from gammabeta.errors import GammabetaError

CONTROL_GROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", ("inactive_file", "active_file")),
    (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
)
"""Of version 2 and version 1: the files with a container's limit and its use, and the parts of its
use that are copies of files, which give way."""


def available_bytes() -> int | None:
    """Return the memory that can still be had, in bytes; None if the system does not say."""
    groups = (_of_group(*group) for group in CONTROL_GROUPS)
    known = [number for number in (_of_machine(), *groups) if number is not None]
    return min(known, default=None)


def require(needed: int, what: str, remedy: str) -> None:
    """Refuse what does not fit.

    Args:
        needed: Bytes that it takes at least.
        what: What takes them, for a sentence.
        remedy: What the user can do.

    Raises:
        GammabetaError: If fewer bytes are available.

    Example:
        >>> require(1000, "a thousand bytes", "buy memory")
        >>> require(10**18, "an image of this size", "choose a smaller --image-size")
        Traceback (most recent call last):
        gammabeta.errors.GammabetaError: an image of this size takes 1,000,000,000.0 GB ...
    """
    free = available_bytes()
    if free is not None and needed > free:
        raise GammabetaError(
            f"{what} takes {needed / 1e9:,.1f} GB of memory and {free / 1e9:,.1f} GB are free; "
            f"{remedy}"
        )


def ran_out(error: BaseException) -> bool:
    """Return whether an error says that memory could not be had, in Python's words or torch's.

    Example:
        >>> ran_out(MemoryError()), ran_out(RuntimeError("CUDA out of memory. ..."))
        (True, True)
        >>> ran_out(RuntimeError("shapes cannot be multiplied"))
        False
    """
    words = ("can't allocate memory", "out of memory", "not enough memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )


def _of_machine() -> int | None:
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable"))
        return int(available.split()[1]) * 1024
    with suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _of_group(folder: Path, limit: str, used: str, copies: tuple[str, str]) -> int | None:
    """Return what a control group leaves; None without one, or without a limit ("max")."""
    with suppress(OSError, ValueError):
        left = int((folder / limit).read_text()) - int((folder / used).read_text())
        stat = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, left + sum(int(value) for name, value in stat if name in copies))
    return None
