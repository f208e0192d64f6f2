"""How a dense tensor (N, C, *) lies in memory: its channels together, or its planes."""

from __future__ import annotations

import torch
from torch import Tensor

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def of(x: Tensor) -> str | None:
    """Return "rows" for channels-last and (N, C), "planes" for contiguous, None for neither."""
    if _is_rows(x):
        return "rows"
    return "planes" if x.is_contiguous() else None


def _is_rows(x: Tensor) -> bool:
    if x.dim() in _CHANNELS_LAST:
        return x.is_contiguous(memory_format=_CHANNELS_LAST[x.dim()])
    if x.dim() == 2:
        return x.is_contiguous()
    return x.movedim(1, -1).is_contiguous()


def resolved(x: Tensor) -> Tensor:
    """Return x, or a copy where memory does not hold its values.

    Torch negates the imaginary part of a conjugate when it reads it, and has tensors of zeros that
    have no memory.
    """
    if x.is_neg() or x._is_zerotensor():
        return x.clone()
    return x


def laid(x: Tensor, as_: str) -> Tensor:
    """Return x, or a copy that lies as said and whose memory holds its values."""
    x = resolved(x)
    if as_ == "planes":
        return x.contiguous()
    return x if _is_rows(x) else x.movedim(1, -1).contiguous().movedim(-1, 1)
