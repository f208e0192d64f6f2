"""When a training forward may write running statistics, and by how much.

Not when the user asked it not to, and not when activation checkpointing runs a forward again
inside the backward pass: the same batch would be counted twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_allowed: ContextVar[bool] = ContextVar("gammabeta_stats_update", default=True)


@contextmanager
def no_stats_update() -> Iterator[None]:
    """Leave running statistics and counters alone in every forward within the block.

    Layers in training mode still normalise with the batch's own statistics. It concerns this
    thread only, and gammabeta's layers only.

    Example:
        >>> from gammabeta import BatchNorm1d
        >>> bn = BatchNorm1d(2)
        >>> with no_stats_update():
        ...     _ = bn(torch.randn(4, 2))
        >>> bn.num_batches_tracked
        tensor(0)
    """
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)


def updates_allowed() -> bool:
    """Tell whether a training forward, running now, counts as a new batch."""
    return _allowed.get() and (torch.compiler.is_compiling() or not recomputing())


def recomputing() -> bool:
    """Tell whether a backward pass is running here: the mark that checkpointing itself goes by."""
    return torch._C._current_graph_task_id() != -1


def batch_weight(momentum: float | None, count: Tensor | None, like: Tensor) -> float | Tensor:
    """Return what a new batch weighs: the momentum, or for None 1 / count, of their plain average.

    Args:
        momentum: Of the layer.
        count: Batches including this one; a tensor, so that it may be compiled. None counts none.
        like: A running statistic, for the dtype.
    """
    if momentum is not None:
        return momentum
    return 0.0 if count is None else count.to(like.dtype).reciprocal()


def moved(
    running: Tensor,
    batches: list[Tensor],
    momentum: float | Tensor,
    *,
    in_place: bool,
    alike: bool = False,
) -> Tensor:
    """Move a running statistic towards those of k parts of a batch, as far as one batch would.

    Each part weighs 1 - (1 - momentum)^(1/k), so that the old value keeps 1 - momentum in all.

    Args:
        running: (C,).
        batches: The k parts' statistics, (C,) each, without gradients.
        momentum: Weight of the new batch, a number or a tensor of one.
        alike: Whether the parts weigh alike instead, as a cumulative average needs.
        in_place: Whether ``running`` itself is written, as CUDA graphs and DDP need.
    """
    if alike and len(batches) > 1:
        batches = [torch.stack(batches).mean(dim=0)]
    weight = momentum if len(batches) == 1 else 1 - (1 - momentum) ** (1 / len(batches))
    for batch in batches:
        # As torch adds them, and not by lerp: an infinity stays one, and vmap knows the operators.
        if in_place and isinstance(weight, float):
            running.mul_(1 - weight).add_(batch, alpha=weight)
        elif in_place:
            running.mul_(1 - weight).add_(batch.to(running.dtype) * weight)
        else:
            running = running * (1 - weight) + batch.to(running.dtype) * weight
    return running
