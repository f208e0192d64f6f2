"""Whether a call computes now, on plain values, or is recorded or transformed for later."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import get_proxy_mode


def recorded() -> bool:
    """Tell whether operators are being recorded, to be run on other data."""
    return bool(torch._C._get_tracing_state()) or get_proxy_mode() is not None


class _Root:
    """Stands in a symbolic trace for the layer that is traced itself, which has no path."""

    def __fx_create_arg__(self, tracer: torch.fx.Tracer) -> Any:
        return tracer.create_node("get_attr", "itself", (), {})


def referable(layer: nn.Module, x: Any) -> Any:
    """Return the layer, or where it is the root of a symbolic trace what a node can refer to.

    Args:
        layer: Which has itself under the attribute ``itself``.
        x: Its input.
    """
    traced = isinstance(x, torch.fx.Proxy) and getattr(x.tracer, "root", None) is layer
    return _Root() if traced else layer


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def transformed() -> bool:
    """Tell whether ``torch.func`` differentiates or batches what runs now."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def watched() -> bool:
    """Tell whether somebody is to see every operator, so that none may hide in a kernel.

    Under ``torch.compile`` a custom operator stands for the kernel, but not in a graph made for
    export, which is to run elsewhere.
    """
    if transformed():
        return True
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    return torch._C._len_torch_dispatch_stack() > 0 or forward_ad._current_level >= 0 or recorded()
