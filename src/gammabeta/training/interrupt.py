"""Turns the first Ctrl-C or SIGTERM into a request that training answers after its batch."""

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


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Catch SIGINT and SIGTERM within the block; a second one acts as it always did.

    Only the main thread may set signal handlers; call this from there.
    """
    request = StopRequest()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (signal's signature)
        request.signal = number
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
