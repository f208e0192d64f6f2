"""How much memory a step needs, in two ways that answer two questions.

*Live bytes* are what torch's allocator had handed out at the worst moment: temporaries inside an
operator included, to the byte, the same on every run and whatever the system's allocator does with
freed blocks. This is the figure that rivals in one process can be compared by. What a library
allocates past torch (oneDNN's scratchpads, NumPy) is not in it.

*Resident bytes* are what the operating system gave the process: all of that, and fragmentation, and
blocks that the allocator keeps. They need a process for each subject.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

_SILENT = "6"  # above Kineto's gravest level; it would report on stderr that there is no GPU


def live_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the tensors' storages, shared ones counted once.

    Example:
        >>> x = torch.zeros(10)
        >>> live_bytes([x, x[2:], torch.zeros(3, dtype=torch.bfloat16)])
        46
    """
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors)}
    return sum(storages.values())


def peak_bytes(call: Callable[[], object]) -> int:
    """Return how far above the start the live tensor bytes rose while the call ran.

    Args:
        call: Anything that has run before, so that what is made once is there already.

    Example:
        >>> def call():
        ...     x = torch.zeros(1000)  # 4000 bytes
        ...     x = x + 1              # 4000 more, then the first ones are freed
        ...     return (x + 1).sum()
        >>> 8000 <= peak_bytes(call) < 8100
        True
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", _SILENT)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = call()
    del result
    profiler: Any = recorded.profiler
    tree = profiler.kineto_results.experimental_event_tree()
    live = peak = 0
    for _, size in sorted(_allocations(tree)):
        live += size
        peak = max(peak, live)
    return peak


def _allocations(events: Iterable[Any]) -> Iterator[tuple[int, int]]:
    """Yield the time and size of each allocation; a freed block's size is negative."""
    for event in events:
        if event.tag == torch._C._profiler._EventType.Allocation:
            yield event.start_time_ns, event.extra_fields.alloc_size
        yield from _allocations(event.children)


def resident_bytes() -> int | None:
    """Return the resident size of this process now; None where the system does not tell."""
    return _status("VmRSS:")


def resident_peak_bytes(call: Callable[[], object]) -> int | None:
    """Return how far above the start the resident size rose while the call ran; Linux only.

    Run it in a process of its own: memory that the allocator has kept from earlier work is used
    again without rising.
    """
    before = resident_bytes()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the old peak
    except OSError:
        return None
    call()
    peak = _status("VmHWM:")
    return None if peak is None or before is None else peak - before


def _status(key: str) -> int | None:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024
    return None
