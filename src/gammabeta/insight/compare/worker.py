"""Processes that do the trainings, and how they end: always, and with their parent.

Each is a fresh interpreter (spawned), ignores Ctrl-C, which is the parent's to answer, and ends
itself when the parent is gone, however that came to pass.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from gammabeta import runtime
from gammabeta.errors import GammabetaError
from gammabeta.insight.compare.job import Job, Training
from gammabeta.insight.compare.pilot import Pilot, measure
from gammabeta.insight.compare.settings import HeldOut

READY, PROGRESS, RESULT, ERROR = "ready", "progress", "result", "error"
TELL_EVERY = 0.5  # seconds between two reports of progress


@dataclass(frozen=True)
class Message:
    """What a worker said: its number, the kind of message, and what belongs to it."""

    worker: int
    kind: str
    value: Any


class Workers:
    """A number of processes that wait for tasks. Use it in a ``with`` block.

    Args:
        count: Processes.
        threads: Threads inside an operator, of each.
        data: What they train on; sent to each once.
        bf16: Whether they compute in bfloat16.
    """

    def __init__(self, count: int, threads: int, data: HeldOut, *, bf16: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.connections: list[Connection] = []
        self.processes = []
        for number in range(count):
            ours, theirs = context.Pipe()
            arguments = (theirs, os.getpid(), threads, data, bf16)
            name = f"gammabeta-compare-{number}"
            process = context.Process(target=_serve, args=arguments, name=name, daemon=True)
            with _terminal_ignored():
                process.start()
            theirs.close()
            self.connections.append(ours)
            self.processes.append(process)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, worker: int, task: Job | Pilot) -> None:
        """Give a waiting worker a task; it is idle until then."""
        with suppress(OSError):  # it died: hear() says so
            self.connections[worker].send(task)

    def hear(self, seconds: float) -> Iterator[Message]:
        """Yield what has been said, waiting at most so long for the first word.

        Raises:
            GammabetaError: If a worker died, or met an error.
        """
        for ready in wait(self.connections, max(0.0, seconds)):
            worker = self.connections.index(ready)  # type: ignore[arg-type]
            try:
                kind, value = self.connections[worker].recv()
            except (EOFError, OSError):
                code = self.processes[worker].exitcode
                raise GammabetaError(
                    f"a training process ended (exit code {code}; -9 is often too little memory); "
                    "what was finished is kept: run the same command again to go on"
                ) from None
            if kind == ERROR:
                raise GammabetaError(f"a training failed: {value}")
            yield Message(worker, kind, value)

    def close(self, keep: int = 0) -> None:
        """End all processes but the first ``keep``, whatever they are doing."""
        for process in self.processes[keep:]:
            process.kill()
        for process in self.processes[keep:]:
            process.join()
        for connection in self.connections[keep:]:
            connection.close()
        del self.processes[keep:], self.connections[keep:]


_OF_A_TERMINAL = [signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""Signals that a terminal sends to every process of a command; the parent answers them."""


@contextmanager
def _terminal_ignored() -> Iterator[None]:
    """Let a process that starts inherit deafness to its terminal; only a main thread can do so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _OF_A_TERMINAL}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve(
    connection: Connection, parent: int, threads: int, data: HeldOut, bf16: bool
) -> None:  # pragma: no cover (runs in a process of its own)
    """Do tasks until the parent closes the connection."""
    for number in _OF_A_TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    runtime.configure("bf16" if bf16 else "fp32", "cpu", threads)
    connection.send((READY, os.getpid()))
    with suppress(EOFError, OSError):
        while True:
            task = connection.recv()
            connection.send(_answer(task, data, bf16, connection))


def _answer(
    task: Job | Pilot, data: HeldOut, bf16: bool, connection: Connection
) -> tuple[str, Any]:
    try:
        if isinstance(task, Pilot):
            torch.set_num_threads(task.threads)
            return RESULT, measure(task, data, bf16=bf16)
        return RESULT, Training(task, data, bf16=bf16).run(_teller(connection))
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
        return ERROR, f"{type(error).__name__}: {error}"


def _teller(connection: Connection) -> Callable[[float], None]:
    told = time.monotonic()

    def tell(share: float) -> None:
        nonlocal told
        if time.monotonic() - told > TELL_EVERY:
            told = time.monotonic()
            connection.send((PROGRESS, share))

    return tell


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
