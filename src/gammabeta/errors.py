"""The errors that gammabeta raises for a reader to act on.

Every message is one line that says what went wrong, where, and what to do next. The command line
prints that line alone and exits with status 2; a library user catches :class:`GammabetaError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class GammabetaError(Exception):
    """Something the user can mend: a wrong argument, a bad file, a full disk."""


class DataError(GammabetaError):
    """A data set is missing, damaged or not of the expected form."""


class RunError(GammabetaError):
    """A run folder or a checkpoint is missing, damaged, or would be overwritten."""


class DamagedError(RunError):
    """A file of ours is not what was written into it; ``path`` names it."""

    def __init__(self, path: Path, remedy: str = "") -> None:
        super().__init__(
            f"{path}: is damaged: its content does not match its checksum"
            + (f"; {remedy}" if remedy else "")
        )
        self.path = path


@contextmanager
def advising(remedy: str) -> Iterator[None]:
    """Say what to do about a damaged file that is read in the block."""
    try:
        yield
    except DamagedError as error:
        raise DamagedError(error.path, remedy) from None


class NonFiniteLossError(GammabetaError):
    """The loss became NaN or infinite; nothing was written after it."""
