"""Standard output and standard error that never cost a command its work.

Work does not depend on somebody hearing of it. What cannot be written (a full disk) is dropped
after one warning; a reader that leaves (``| head``) ends the command as quietly as it ends others;
a stream that was closed from the start is a silent one; and a character that the encoding lacks
is written in others.
"""

from __future__ import annotations

import codecs
import io
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from gammabeta.training.interrupt import StopRequest, stop_on_signals

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_SIGPIPE = int(getattr(signal, "SIGPIPE", 13))  # not on Windows
_IN_OTHER_WORDS = {
    "✓": "ok", "✗": "FAILED", "–": "-", "−": "-", "·": "*", "×": "x", "±": "+/-", "→": "->",
    "…": "...", "γ": "gamma", "β": "beta", "σ": "sigma", "ε": "eps", "²": "^2", "√": "sqrt",
}  # fmt: skip


def _leave() -> None:
    raise SystemExit(128 + _SIGPIPE)  # a shell's status for it


@dataclass
class _Process:
    """What this process has seen of its streams, and what it does when a reader leaves."""

    output_is_lost: bool = False
    reader_left: Callable[[], None] = _leave


_process = _Process()


def output_is_lost() -> bool:
    """Tell whether anything could not be written to standard output."""
    return _process.output_is_lost


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within the block, note what asks to stop: a signal, or a reader that leaves."""
    with stop_on_signals() as request:
        before, _process.reader_left = _process.reader_left, lambda: request.ask(_SIGPIPE)
        try:
            yield request
        finally:
            _process.reader_left = before


class _Raw(io.RawIOBase):
    """Writes to another raw stream as long as that goes, and from then on nowhere."""

    def __init__(self, raw: io.RawIOBase | None, name: str) -> None:
        self.raw = raw
        self.title = name

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self.raw is not None and self.raw.isatty()

    def fileno(self) -> int:
        if self.raw is None:
            raise io.UnsupportedOperation("fileno")
        return self.raw.fileno()

    def write(self, data: ReadableBuffer, /) -> int:
        raw, size = self.raw, memoryview(data).nbytes
        if raw is None:
            return size
        try:
            while (written := raw.write(data)) is None:  # a full pipe that does not block
                select.select([], [raw], [])
        except BrokenPipeError:
            self.raw = None
            _process.reader_left()
            return size
        except OSError as error:
            self.raw = None
            self._warn(error)
            return size
        return written

    def _warn(self, error: OSError) -> None:
        if self.title == "standard output":
            _process.output_is_lost = True
            print(
                f"gammabeta: warning: standard output cannot be written ({error.strerror}); "
                "nothing more is shown",
                file=sys.stderr,
            )


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return the bytes of an odd file name, else plain characters for what cannot be encoded."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeEncodeError:
        lacking = error.object[error.start : error.end]
        return "".join(_IN_OTHER_WORDS.get(c, "?") for c in lacking), error.end


codecs.register_error("gammabeta", _replace)


def wrap(raw: io.RawIOBase | None, name: str, encoding: str, *, by_line: bool = False) -> TextIO:
    """Return a text stream over a raw one that may fail.

    Args:
        raw: An unbuffered binary stream, or None for one that was closed from the start.
        name: What to call it in a warning.
        encoding: Of the text.
        by_line: Whether each line is written at once.
    """
    buffered = io.BufferedWriter(_Raw(raw, name))
    return io.TextIOWrapper(buffered, encoding, errors="gammabeta", line_buffering=by_line)


def protect() -> None:
    """Make the process's own standard streams such streams; others in their place are left alone.

    A descriptor that is closed is opened on the null device first: the next file would get its
    number, and what a library prints would land in that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for attribute, name in (("stdout", "standard output"), ("stderr", "standard error")):
        stream = getattr(sys, attribute)
        if stream is not getattr(sys, f"__{attribute}__"):
            continue
        if stream is None:
            setattr(sys, attribute, wrap(None, name, "utf-8"))
        else:
            stream.flush()
            raw = getattr(stream.buffer, "raw", stream.buffer)
            by_line = stream.line_buffering or stream.write_through
            setattr(sys, attribute, wrap(raw, name, stream.encoding, by_line=by_line))
