"""What a probe records of each call of a batch norm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from gammabeta.norm.functional import Stats


@dataclass(eq=False)
class Seen:
    """What one batch norm saw in one call. Tensors are what ``keep`` made of them.

    Args:
        path: Of the layer in the model; of a ``BatchNormAct``, its own.
        layer: The batch norm itself.
        caller: The module that was called: the layer, or the ``BatchNormAct`` around it.
        number: Which call of this layer it was, from 0.
        batch: Whether the batch's own statistics normalised it, and not the running ones.
        before: Running mean and variance before the call, or None.
        after: The same after the call.
        momentum: What the batch weighs in ``after``; 0 if it was not counted.
        x: The input, (N, C, *).
        residual: What a ``BatchNormAct`` added, of the input's shape, or None.
        y: Batch norm's own output; where a fused layer never makes it, it is computed again.
        z: What the module returned: y, or y after activation and pooling.
        dy: Gradient at y, None where no backward pass reached it.
        dx: Gradient at x of this layer alone, whoever else reads x.
    """

    path: str
    layer: Any
    caller: nn.Module
    number: int
    batch: bool
    before: Stats | None
    after: Stats | None = None
    momentum: float = 0.0
    x: Any = None
    residual: Any = None
    y: Any = None
    z: Any = None
    dy: Any = None
    dx: Any = None


Keep = Callable[[Seen, str, Tensor], Any]
"""Called with a call, the name of a field ("x", "y", …) and its live tensor; returns what to keep.

The order is x, residual, y, z while the forward runs, then dy and dx."""


@dataclass(eq=False)
class Record:
    """What a probe has seen so far.

    Args:
        paths: Every batch norm in the model.
        calls: The calls, in the order in which the forward made them.
    """

    paths: list[str]
    calls: list[Seen] = field(default_factory=list)

    def of(self, path: str) -> list[Seen]:
        """Return the calls of one layer; of a shared one there are several."""
        return [seen for seen in self.calls if seen.path == path]

    @property
    def unreached(self) -> list[str]:
        """The layers that no forward has called."""
        reached = {seen.path for seen in self.calls}
        return [path for path in self.paths if path not in reached]


def copied(seen: Seen, name: str, tensor: Tensor) -> Tensor:  # noqa: ARG001 (a Keep's arguments)
    """Keep a copy of everything."""
    return tensor.detach().clone()
