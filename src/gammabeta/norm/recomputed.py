"""What a forward pass used, for when activation checkpointing runs it again.

A forward that depends on running statistics moves them too, so that the same forward, run again
inside the backward pass, would see others. It is known again by the statistics of its batch, which
are the same bits.
"""

from __future__ import annotations

from collections import deque
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gammabeta.norm.updates import recomputing

Used = tuple[Tensor, ...]
_MOST = 256
"""Forward passes of a layer that may wait for their backward."""
_waiting: WeakKeyDictionary[nn.Module, deque[tuple[Used, Used]]] = WeakKeyDictionary()


def remember(layer: nn.Module, batch: Used, used: Used) -> None:
    """Keep what a forward used, if checkpointing may run it again.

    Args:
        layer: Whose forward it is.
        batch: The statistics of its batch, which nobody writes any more.
        used: What it took from running statistics, likewise.
    """
    if not torch.compiler.is_compiling() and _may_be_checkpointed():
        _waiting.setdefault(layer, deque(maxlen=_MOST)).append((batch, used))


def recalled(layer: nn.Module, batch: Used) -> Used | None:
    """Return what the forward that is run again used, or None if none is.

    Of equal batches that wait, the newest is run again first, as a backward pass does.
    """
    if torch.compiler.is_compiling() or not recomputing():
        return None
    waiting = _waiting.setdefault(layer, deque(maxlen=_MOST))
    for i in reversed(range(len(waiting))):
        its_batch, used = waiting[i]
        if all(torch.equal(a, b) for a, b in zip(its_batch, batch, strict=True)):
            del waiting[i]
            waiting.appendleft((its_batch, used))  # it may be asked for again, after the others
            return used
    return None


def _may_be_checkpointed() -> bool:
    """Tell whether a forward looks like checkpointing's first: no graph is kept, or by hooks."""
    hooks: object = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None or not torch.is_grad_enabled()
