"""Runs a compiled loop on torch's own OpenMP threads.

Numba has threads of its own, but they would compete with torch's, which spin for a while after
each operator; and its default ones must not be started by two Python threads at once. So the loop
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
from gammabeta.norm.kernels.native.task import Task
from gammabeta.norm.kernels.native.variant import Variant

_SMALL = 1 << 15
"""Elements below which waking other threads costs more than it saves."""


@cache
def _parallel() -> Any:
    """Return OpenMP's entry point, or None."""
    for name in (None, "libgomp.so.1", "libiomp5.so", "libomp.so"):
        try:
            entry = ctypes.CDLL(name).GOMP_parallel
        except (OSError, AttributeError, TypeError):
            continue
        entry.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        entry.restype = None
        return entry
    return None


class Loop:
    """A variant, compiled when it is first run.

    Args:
        v: Which loop.
    """

    def __init__(self, v: Variant) -> None:
        self.variant = v
        self._address = 0
        self._alone: Any = None

    def _compile(self) -> None:
        self._alone = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address(self.variant))
        self._address = address(self.variant)

    def __call__(self, task: Task, work: int = 0) -> None:
        """Run over all blocks.

        Args:
            task: Its data; it must stay alive and unshared until this returns.
            work: Elements to be touched, by which it is decided whether threads are worth it.
        """
        if not self._address:
            self._compile()
        task.next = 0
        threads = torch.get_num_threads() if work >= _SMALL and not forked() else 1
        entry = _parallel() if threads > 1 else None
        if entry is None:
            self._alone(ctypes.addressof(task))
        else:
            entry(self._address, ctypes.addressof(task), threads, 0)
