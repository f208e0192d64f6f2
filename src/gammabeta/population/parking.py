"""Where the tensors stay that batches hold while they wait: in memory, and beyond it on disk.

What is sooner computed again than written and read back is not kept at all. A tensor goes to disk
by being copied into a mapped file that has no name any more; the tensor object itself then lies
there, for everybody who holds it, and is paged in when it is next read. The file's space is free
again when the last tensor in it is gone, or the process.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from gammabeta.errors import GammabetaError
from gammabeta.memory import available_bytes

_LEAST = 1 << 16
"""Bytes below which a tensor is not worth a place on disk."""
_ARENA = 1 << 28
"""Bytes of a file; each serves many tensors, for the system's mappings are limited."""
_ALIGNMENT = 64
_SMALLEST_BUDGET = 1 << 30
_DISK_RATE = 3e8
"""Bytes a second to write and read back, as a cloud disk or a SATA drive does it. A wrong guess
costs time and nothing else."""


class Parked:
    """What one batch holds.

    Args:
        keep: Tensors that stay where they are: the user's.

    Attributes:
        in_memory: Bytes that count against the budget while it waits.
    """

    def __init__(self, keep: Iterable[Tensor] = ()) -> None:
        self._keep = {tensor.untyped_storage().data_ptr() for tensor in keep}
        self._noted: dict[int, weakref.ref[Tensor]] = {}
        self.in_memory = 0

    def note(self, tensors: Iterable[Tensor]) -> None:
        """Remember tensors for as long as somebody else does."""
        for tensor in tensors:
            if not isinstance(tensor, nn.Parameter) and tensor.is_cpu:
                self._noted[id(tensor)] = weakref.ref(tensor)

    def movable(self) -> list[Tensor]:
        """Return those that are alive, large, and alone in their memory."""
        alive = {key: tensor for key, ref in self._noted.items() if (tensor := ref()) is not None}
        self._noted = {key: self._noted[key] for key in alive}
        unique = {t.untyped_storage().data_ptr(): t for t in alive.values() if _whole(t)}
        return [t for pointer, t in unique.items() if pointer not in self._keep]


def _whole(tensor: Tensor) -> bool:
    """Tell whether a tensor is a dense block that fills its storage, and no buffer of a model."""
    return bool(
        type(tensor) is Tensor
        and tensor.layout == torch.strided
        and not tensor.requires_grad
        and tensor.nbytes >= _LEAST
        and tensor.storage_offset() == 0
        and tensor.nbytes == tensor.untyped_storage().nbytes()
        and tensor.untyped_storage().filename is None  # it may be on disk already
    )


class Parking:
    """Keeps the tensors of waiting batches within a budget of memory.

    Args:
        budget: Bytes; by default a quarter of what the system has available, 1 GiB at least.

    Attributes:
        spilled: Bytes that went to disk so far.
    """

    def __init__(self, budget: int | None = None) -> None:
        self.budget = _default_budget() if budget is None else budget
        self.spilled = 0
        self._used = 0
        self._moved: list[weakref.ref[Tensor]] = []
        self._arena: Tensor | None = None
        self._free = 0

    def enter(self, parked: Parked, cost: float) -> bool:
        """Keep what a batch holds while it waits, in memory or on disk.

        Args:
            parked: What it holds.
            cost: Seconds that it would take to compute it again.

        Returns:
            Whether it is kept; False if it is better computed again.
        """
        tensors = parked.movable()
        size = sum(t.nbytes for t in tensors)
        if self._used + size <= self.budget:
            parked.in_memory = size
            self._used += size
            return True
        if cost < size / _DISK_RATE:
            return False
        for tensor in tensors:
            tensor.data = self._on_disk(tensor)
            self._moved.append(weakref.ref(tensor))
        return True

    def close(self) -> None:
        """Take back into memory what outlives the batches: somebody else's, then."""
        for ref in self._moved:
            tensor = ref()
            if tensor is not None:
                tensor.data = tensor.clone()

    def leave(self, parked: Parked) -> None:
        """Count it no longer: the batch goes on."""
        self._used -= parked.in_memory
        parked.in_memory = 0

    def _on_disk(self, tensor: Tensor) -> Tensor:
        if self._arena is None or self._free + tensor.nbytes > self._arena.nbytes:
            self._arena, self._free = _map_file(max(_ARENA, tensor.nbytes)), 0
        place = self._arena[self._free : self._free + tensor.nbytes]
        self._free += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        self.spilled += tensor.nbytes
        return place.view(tensor.dtype).as_strided(tensor.shape, tensor.stride()).copy_(tensor)


def _map_file(size: int) -> Tensor:
    """Return bytes in a file that vanishes with them.

    Raises:
        GammabetaError: If the disk has no room; a mapping without room would end the process later.
    """
    handle, name = tempfile.mkstemp(prefix="gammabeta-")
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
        return torch.from_file(name, shared=True, size=size, dtype=torch.uint8)
    except OSError as error:
        raise GammabetaError(
            f"{Path(name).parent}: no room for {size / 1e6:.0f} MB of what batches hold between "
            f"layers ({error.strerror}); point TMPDIR to a larger disk, allow more memory= or use "
            "fewer samples= or sequential=False"
        ) from None
    finally:
        os.close(handle)
        Path(name).unlink()


def _default_budget() -> int:
    return max((available_bytes() or 0) // 4, _SMALLEST_BUDGET)
