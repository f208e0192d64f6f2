"""Runs compiled loops on torch's own OpenMP threads.

Numba has threads of its own, but they would compete with torch's, which spin for a while after
each operator; and its default ones must not be started by two Python threads at once. So a loop
is handed to the OpenMP library that torch has loaded, as a C compiler would hand over a parallel
region (``GOMP_parallel``, which LLVM's library offers too). It may be entered from any Python
thread. Where there is no such library, and in a process made by ``fork``, whose OpenMP threads did
not survive, the calling thread does all the work; the results are the same bits.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch

from gammabeta.norm.kernels.forked import forked
from gammabeta.norm.kernels.native.compile import address
from gammabeta.norm.kernels.native.sequence import HEAD, STEP
from gammabeta.norm.kernels.native.task import Task
from gammabeta.norm.kernels.native.variant import Variant

_SMALL = 1 << 15
"""Elements below which waking other threads costs more than it saves."""
_MANY = 1 << 14
"""Channels, likewise."""


@cache
def _parallel() -> int:
    """Return the address of OpenMP's entry point, or 0."""
    for name in (None, "libgomp.so.1", "libiomp5.so", "libomp.so"):
        try:
            entry = ctypes.CDLL(name).GOMP_parallel
        except (OSError, AttributeError, TypeError):
            continue
        return ctypes.cast(entry, ctypes.c_void_p).value or 0
    return 0


@cache
def conductor() -> Any:
    """Return the compiled loop that runs all others."""
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address(Variant("sequence.conduct", "float32")))


class Sequence:
    """Loops that are run one after the other; compiled when it is made.

    Args:
        steps: Each with its task, which must live as long, and be in no other call's use.
        size: Elements to be touched, by which it is decided whether threads are worth it.
    """

    def __init__(self, steps: list[tuple[Variant, Task]], size: int) -> None:
        self._tasks = [task for _, task in steps]
        self._large = size >= _SMALL
        self._threads = 1
        # What is done once a channel is worth a second thread where channels are very many.
        self._shared = [
            task.channels >= _MANY or not v.loop.startswith("channels.") for v, task in steps
        ]
        self._words = (ctypes.c_int64 * (HEAD + STEP * len(steps)))(len(steps), _parallel())
        for i, (v, task) in enumerate(steps):
            self._words[HEAD + STEP * i] = address(v)
            self._words[HEAD + STEP * i + 1] = ctypes.addressof(task)
            self._words[HEAD + STEP * i + 2] = 1
        self._run = conductor()
        self._here = ctypes.addressof(self._words)

    def __call__(self) -> None:
        """Run all."""
        if self._large:
            threads = 1 if forked() else torch.get_num_threads()
            if threads != self._threads:
                self._use(threads)
        self._run(self._here)

    def _use(self, threads: int) -> None:
        self._threads = threads
        for i, shared in enumerate(self._shared):
            self._words[HEAD + STEP * i + 2] = threads if shared and _parallel() else 1
