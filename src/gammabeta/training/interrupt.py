"""Turns the first Ctrl-C, SIGTERM or SIGHUP into a request that is answered after a batch."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """The number of the signal that asked to stop, or 0; call it to read it."""

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self) -> int:
        """Return the signal's number, or 0 while nobody asked."""
        return self.signal

    def ask(self, number: int) -> None:
        """Ask to stop, as that signal would."""
        self.signal = number


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Catch SIGINT, SIGTERM and SIGHUP within the block; a second one acts as it always did.

    A SIGHUP that is ignored, as ``nohup`` has it, stays so. Only the main thread may set signal
    handlers; call this from there.
    """
    request = StopRequest()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        before[hangup] = signal.getsignal(hangup)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (signal's signature)
        request.ask(number)
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
