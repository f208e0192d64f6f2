"""Compiles a loop when it is first needed, keeps it on disk, and says so if that took long."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numba
from numba import cfunc, types
from numba.extending import overload

from gammabeta.norm.kernels.native import channels, planes, pooled, rows, sequence
from gammabeta.norm.kernels.native.task import POINTER
from gammabeta.norm.kernels.native.variant import Variant
from gammabeta.runtime import count_compiling

LOOPS: dict[str, Any] = {
    f"{family.__name__.rpartition('.')[2]}.{name}": getattr(family, name)
    for family, names in (
        (rows, ("statistics", "forward", "reduce", "backward")),
        (planes, ("statistics", "forward", "reduce", "backward")),
        (pooled, ("forward", "reduce", "backward")),
        (channels, ("combine", "given", "again", "slopes")),
        (sequence, ("conduct",)),
    )
    for name in names
}
_lock = Lock()
_log = logging.getLogger("gammabeta")


def run(v: Any, task: Any) -> None:
    """Run the variant's loop. Compiled code only."""
    raise NotImplementedError


@overload(run)
def _run(v, task):  # type: ignore[no-untyped-def]  # Numba compares signatures
    loop = LOOPS[v.variant.loop]
    return lambda v, task: loop(v, task)


@cache
def stamp() -> str:
    """Return a digest of the sources, so that code compiled from other ones is not used."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


@cache
def _compiled(v: Variant) -> Any:
    def loop(task: Any) -> None:
        run(v, task)

    signature = types.void(POINTER)
    began = time.perf_counter()
    with _enabled():
        try:
            compiled = cfunc(signature, nopython=True, cache=True)(loop)
        except Exception:  # noqa: BLE001 (nowhere to write, or damaged files of any kind)
            compiled = cfunc(signature, nopython=True)(loop)
    if not compiled.cache_hits:
        seconds = time.perf_counter() - began
        count_compiling(seconds)
        _announce(v, seconds)
    return compiled


@contextmanager
def _enabled() -> Iterator[None]:
    """Compile even if somebody has switched Numba off since these kernels were chosen."""
    disabled, numba.config.DISABLE_JIT = numba.config.DISABLE_JIT, 0
    try:
        yield
    finally:
        numba.config.DISABLE_JIT = disabled


_announced = False


def _announce(v: Variant, seconds: float) -> None:
    """Tell once that compiling takes time, and of each loop to who listens."""
    global _announced
    if not _announced:
        _announced = True
        _log.warning(
            "compiled the first CPU kernel in %.1f s; others follow when they are first needed, "
            "and all are kept on disk",
            seconds,
        )
    _log.info("compiled %s in %.2f s", v, seconds)


def address(v: Variant) -> int:
    """Return where the machine code of a variant is."""
    with _lock:
        return int(_compiled(replace(v, stamp=stamp())).address)
