"""What this process computes with: threads, precision and the memory allocator.

The allocator matters as much as a kernel. glibc serves blocks above 32 MiB with ``mmap`` and
returns them to the system when they are freed, so that every large activation of every step is
faulted in page by page again. :func:`tune_allocator` makes glibc keep its memory.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from gammabeta.errors import GammabetaError

ALLOCATOR_SWITCH = "GAMMABETA_TUNE_ALLOCATOR"
"""Set this environment variable to 0 to leave the allocator as the system made it."""

MOST_THREADS = 1 << 12
"""Inside one operator: more is a slip of the pen, and torch would try to start them."""

_MALLOPT = {"M_TRIM_THRESHOLD": -1, "M_TOP_PAD": -2, "M_MMAP_MAX": -4}  # glibc's malloc.h
_BF16_FLAGS = ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16")
_KEEP_BYTES = 2**31 - 1  # mallopt takes an int: never give memory back below 2 GiB
_TOP_PAD_BYTES = 64 * 2**20  # grow the heap in steps of 64 MiB


@dataclass(frozen=True)
class Runtime:
    """How this process computes, as chosen by :func:`configure`.

    Args:
        threads: Threads inside one operator.
        device: "cpu" or "cuda".
        precision: "fp32" or "bf16", the dtype of convolutions and linear layers.
        reason: Why that precision was chosen.
        allocator: What was done to the memory allocator.
    """

    threads: int
    device: str
    precision: str
    reason: str
    allocator: str

    def describe(self) -> str:
        """Return one line for ``--verbose``."""
        return (
            f"runtime: torch {torch.__version__}, {self.device}, {self.threads} threads, "
            f"{self.precision} ({self.reason}), channels-last, allocator {self.allocator}"
        )


def configure(precision: str = "auto", device: str = "auto", threads: int | None = None) -> Runtime:
    """Set up this process for training or evaluation; call it before large tensors are made.

    Args:
        precision: "auto" takes bf16 where the CPU has bf16 instructions, else fp32.
        device: "auto" takes CUDA where torch sees it.
        threads: Threads inside one operator; by default the cores this process may use.

    Raises:
        GammabetaError: For an unknown precision, an absent device, or a number of threads out
            of range.
    """
    chosen, reason = choose_precision(precision)
    threads = available_cores() if threads is None else threads
    if not 1 <= threads <= MOST_THREADS:
        raise GammabetaError(f"threads is {threads}, but must be from 1 to {MOST_THREADS}")
    torch.set_num_threads(threads)
    return Runtime(threads, choose_device(device), chosen, reason, tune_allocator())


def choose_precision(precision: str) -> tuple[str, str]:
    """Return "fp32" or "bf16" and the reason in words."""
    if precision in {"fp32", "bf16"}:
        return precision, "as asked"
    if precision != "auto":
        raise GammabetaError(f"precision is {precision!r}, but must be auto, fp32 or bf16")
    if has_bf16_instructions():
        return "bf16", "this CPU has bf16 instructions"
    return "fp32", "this CPU has no bf16 instructions"


def has_bf16_instructions() -> bool:
    """Tell whether the CPU multiplies bfloat16 in hardware, not by conversion."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(flag, False) for flag in _BF16_FLAGS)


def choose_device(device: str) -> str:
    """Return "cpu" or "cuda", and refuse a device that torch does not see."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in {"cpu", "cuda"}:
        raise GammabetaError(f"device is {device!r}, but must be auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise GammabetaError("device is cuda, but torch sees no CUDA device; use --device cpu")
    return device


def available_cores() -> int:
    """Count the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def tune_allocator() -> str:
    """Make glibc keep freed memory for the next step; elsewhere do nothing.

    Returns:
        What was done, in words: "tuned", or "left alone" with the reason.
    """
    if os.environ.get(ALLOCATOR_SWITCH, "1") == "0":
        return f"left alone ({ALLOCATOR_SWITCH}=0)"
    if platform.libc_ver()[0] != "glibc":
        return "left alone (not glibc)"
    mallopt = ctypes.CDLL(None).mallopt
    settings = {
        "M_MMAP_MAX": 0,
        "M_TRIM_THRESHOLD": _KEEP_BYTES,
        "M_TOP_PAD": _TOP_PAD_BYTES,
    }
    refused = [name for name, value in settings.items() if not mallopt(_MALLOPT[name], value)]
    return f"left alone (glibc refused {', '.join(refused)})" if refused else "tuned"


_compiled: list[tuple[float, float]] = []


def count_compiling(seconds: float) -> None:
    """Note time that has just gone into compiling a kernel."""
    _compiled.append((time.monotonic(), seconds))


def seconds_compiling(since: float) -> float:
    """Return how long kernels have been compiled since that ``time.monotonic()``."""
    return sum(seconds for ended, seconds in _compiled if ended >= since)


def peak_memory_bytes() -> int | None:
    """Return the largest resident size this process has had, in bytes; None if not known."""
    with suppress(OSError, StopIteration):  # Linux; ru_maxrss would inherit the parent's peak
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(s for s in lines if s.startswith("VmHWM:")).split()[1]) * 1024
    try:
        import resource
    except ImportError:  # not a POSIX system
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
