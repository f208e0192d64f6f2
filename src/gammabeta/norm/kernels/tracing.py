"""Whether a call computes now, on plain values, or is recorded or transformed for later."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import get_proxy_mode


def recorded() -> bool:
    """Tell whether operators are being recorded, to be run on other data."""
    return bool(torch._C._get_tracing_state()) or get_proxy_mode() is not None


def transformed(x: Tensor) -> bool:
    """Tell whether x cannot be handed to code that knows only memory.

    Under ``torch.compile`` it can: a custom operator stands for that code in the graph, but not in
    one made for export, which is to run elsewhere.
    """
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    return (
        recorded()
        or torch._C._functorch.is_functorch_wrapped_tensor(x)
        or forward_ad._current_level >= 0
    )
