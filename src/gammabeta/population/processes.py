"""All processes of the default process group as one, or this process alone.

Every process makes the same sequence of exchanges. One that fails says so in its next exchange,
so that the others stop with its reason instead of waiting for it.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch.distributed as dist

from gammabeta.errors import GammabetaError

T = TypeVar("T")


class Processes:
    """The processes that measure together.

    Example:
        >>> Processes().gather("mine")
        ['mine']
    """

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size() if together else 1
        self.broken = False

    def gather(self, mine: T) -> list[T]:
        """Return what every process brought, in their order.

        Raises:
            GammabetaError: If one of them failed.
        """
        if self.size == 1:
            return [mine]
        brought = self._exchange(("", mine))
        for rank, (error, _) in enumerate(brought):
            if error:
                self.broken = True
                raise GammabetaError(f"process {rank} failed: {error}")
        return [thing for _, thing in brought]

    def fail(self, error: Exception) -> None:
        """Tell the others that this process cannot go on, unless one of them said so first."""
        if self.size > 1 and not self.broken:
            self.broken = True
            self._exchange((f"{type(error).__name__}: {error}".splitlines()[0], None))

    def _exchange(self, mine: tuple[str, Any]) -> list[tuple[str, Any]]:
        brought: list[Any] = [None] * self.size
        dist.all_gather_object(brought, mine)
        return cast("list[tuple[str, Any]]", brought)
