"""What the matcher asks of a graph: which node is a batch norm, and what the others are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.fx import Node
from torch.nn import functional as F

from gammabeta.surgery import links
from gammabeta.surgery.links import Step


@dataclass(frozen=True)
class Norm:
    """A batch norm in a graph.

    Args:
        input: What it normalises.
        pools: Whether its output has four axes, so that a pooling may be fused.
        output: The node of its output, if that is another: an element of what it returns.
        waits: Whether it may be computed later than it is called, when a residual is known.
    """

    input: Node
    pools: bool
    output: Node | None = None
    waits: bool = True


class Reader:
    """What the nodes of a graph are. The two kinds of graphs differ in :meth:`norm`."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = modules

    def norm(self, node: Node) -> Norm | None:
        """Return what the batch norm called by a node is, or None."""
        raise NotImplementedError

    def module(self, node: Node) -> nn.Module | None:
        """Return the module that a node calls, or None."""
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def step(self, node: Node, value: Node) -> Step | None:
        """Return what a node does to a value, if it is something to fuse."""
        module = self.module(node)
        if module is None:
            return links.read(node, value)
        alone = node.args == (value,) and not node.kwargs
        return links.read_module(module) if alone else None

    def fresh(self, node: Node) -> bool:
        """Tell whether a node's value is surely a tensor of its own, not a view of another."""
        module = self.module(node)
        if module is not None:
            return isinstance(module, _MAKERS)
        return node.op == "call_function" and node.target in _MAKING

    def describe(self, node: Node) -> str:
        """Name a node for a reader of the report."""
        if node.op == "output":
            return "leaves the module"
        module = self.module(node)
        if module is not None:
            return f"goes to {node.target} ({type(module).__name__})"
        name = getattr(node.target, "__name__", str(node.target))
        return f"goes to {name}()"


_MAKERS = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase)
_MAKING = {
    *(torch.conv1d, torch.conv2d, torch.conv3d, F.conv1d, F.conv2d, F.conv3d),
    *(F.linear, F.batch_norm, torch.cat),
}
