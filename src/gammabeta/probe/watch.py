"""The hooks on one batch norm.

A batch norm that computes its activation and pooling in the same pass never makes its own output.
It is left to compute as it does, and that output and its gradient are computed again beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gammabeta.norm.act import _BatchNormAct
from gammabeta.norm.activation import Epilogue
from gammabeta.norm.functional import PLAIN, Stats, normalize
from gammabeta.norm.updates import batch_weight
from gammabeta.probe.seen import Keep, Record, Seen

_HALF = {torch.bfloat16, torch.float16}


class Watch:
    """The hooks on one batch norm."""

    def __init__(
        self, record: Record, keep: Keep, path: str, caller: nn.Module, layer: Any
    ) -> None:
        self.record, self.keep, self.path = record, keep, path
        self.caller, self.layer = caller, layer
        self.count = 0
        self.now: Seen | None = None
        self.inputs: tuple[Tensor, Tensor | None] | None = None
        self.held_y = False
        self.without_graph: list[tuple[Seen, bytes]] = []  # calls whose gradients a rerun will see

    def attach(self) -> Iterator[RemovableHandle]:
        """Register the hooks: after the user's own on the way in, before them on the way out."""
        yield self.caller.register_forward_pre_hook(self.before, with_kwargs=True)
        yield self.caller.register_forward_hook(self.behind, prepend=True)
        inside = getattr(self.caller, "drop", None)
        if isinstance(inside, nn.Module) and not isinstance(self.caller, _BatchNormAct):
            yield inside.register_forward_pre_hook(self.within)  # timm's: y goes to its dropout

    def before(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Note the input, and hand the layer a view that is its alone."""
        given = dict(zip(("input", "residual"), args, strict=False)) | kwargs
        x, residual = given["input"], given.get("residual")
        self.now = self._rerun(x) if _in_backward() else self._begin(x, residual)
        self.held_y = False
        if x.requires_grad and torch.is_grad_enabled():
            x = x.view_as(x)
            if self.now is not None:
                x.register_hook(self._gradient(self.now, "dx"))
        self.inputs = (x.detach(), None if residual is None else residual.detach())
        return (x, *args[1:]), {k: v for k, v in kwargs.items() if k != "input"}

    def within(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Note y on its way to an activation that the layer itself holds."""
        if self.now is not None and not self.held_y:
            self._output(self.now, args[0])
            self.held_y = True

    def behind(self, _: nn.Module, __: Any, output: Tensor) -> None:
        """Note what came out."""
        seen, inputs = self.now, self.inputs
        self.now = self.inputs = None
        if seen is None or inputs is None:
            return
        if self.caller is not self.layer:
            self._fused(seen, inputs, output)
        elif not self.held_y:
            self._output(seen, output)
        if not _in_backward():
            seen.after, seen.momentum = _running(self.layer), _weight(self.layer)
            seen.z = self.keep(seen, "z", output.detach())

    def _begin(self, x: Tensor, residual: Tensor | None) -> Seen:
        layer, running = self.layer, _running(self.layer)
        seen = Seen(
            self.path, layer, self.caller, self.count, layer.training or running is None, running
        )
        self.count += 1
        self.record.calls.append(seen)
        if not (x.requires_grad and torch.is_grad_enabled()):
            self.without_graph.append((seen, _mark(x)))
        seen.x = self.keep(seen, "x", x.detach())
        if residual is not None:
            seen.residual = self.keep(seen, "residual", residual.detach())
        return seen

    def _rerun(self, x: Tensor) -> Seen | None:
        """Return the call that checkpointing runs again to have a graph, if that is why it does."""
        mark = _mark(x) if self.without_graph else b""
        for i, (seen, known) in enumerate(self.without_graph):
            if known == mark:
                del self.without_graph[i]
                return seen
        return None

    def _output(self, seen: Seen, y: Tensor) -> None:
        if not _in_backward():
            seen.y = self.keep(seen, "y", y.detach())
        if y.requires_grad:
            y.register_hook(self._gradient(seen, "dy"))

    def _fused(self, seen: Seen, inputs: tuple[Tensor, Tensor | None], output: Tensor) -> None:
        x, residual = inputs
        if not _in_backward():
            seen.y = self.keep(seen, "y", _again(seen, x))
        if output.requires_grad:
            output.register_hook(lambda dz: self._through(seen, x, residual, dz))

    def _through(self, seen: Seen, x: Tensor, residual: Tensor | None, dz: Tensor) -> None:
        """Take a gradient back through pooling and activation to y.

        What is added to y has y's own gradient, and the layer's kernel gives it. Half-precision
        kernels pool before they round, unless they add: so nothing is added in half precision that
        was not, and values that only rounding makes equal stay apart.
        """
        if residual is None:
            x = x.float() if x.dtype in _HALF else x
            residual = torch.zeros_like(x)
        added = residual.clone().requires_grad_()
        with torch.enable_grad():
            z = _again(seen, x, added, self.caller.epilogue)  # type: ignore[arg-type]
        (dy,) = torch.autograd.grad(z, added, dz.to(z.dtype))
        seen.dy = self.keep(seen, "dy", dy)

    def _gradient(self, seen: Seen, name: str) -> Callable[[Tensor], None]:
        def note(gradient: Tensor) -> None:
            setattr(seen, name, self.keep(seen, name, gradient.detach()))

        return note


def _again(
    seen: Seen, x: Tensor, residual: Tensor | None = None, epilogue: Epilogue = PLAIN
) -> Tensor:
    """Compute the layer's output for x again, as the call did, writing nothing."""
    layer = seen.layer
    weight, bias = (None if p is None else p.detach() for p in (layer.weight, layer.bias))
    y, _ = normalize(
        x,
        None if seen.batch else seen.before,
        weight,
        bias,
        seen.batch,
        0.0,
        layer.eps,
        residual=residual,
        epilogue=epilogue,
        virtual_batch_size=layer.virtual_batch_size if layer.training else None,
        backend=layer.backend,
    )
    return y


def _running(layer: Any) -> Stats | None:
    """Return copies of the running statistics."""
    if layer.running_mean is None or layer.running_var is None:
        return None
    return Stats(layer.running_mean.detach().clone(), layer.running_var.detach().clone())


def _weight(layer: Any) -> float:
    """Return what the call that was just made weighs in the running statistics."""
    if not (layer.training and layer.track_running_stats) or layer.running_mean is None:
        return 0.0
    return float(batch_weight(layer.momentum, layer.num_batches_tracked, layer.running_mean))


def _mark(x: Tensor) -> bytes:
    """Return what tells one input from another: its shape and its first sample."""
    first: bytes = x[:1].detach().cpu().double().numpy().tobytes()
    return str(tuple(x.shape)).encode() + first


def _in_backward() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)
