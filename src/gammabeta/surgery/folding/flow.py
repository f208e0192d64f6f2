"""Following values through a graph: who made this one, who alone reads that one.

What does nothing at inference is looked through: ``Identity``, dropout in eval mode, a batch norm
that is folded away already. A flattening is looked through on the way to a linear layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from gammabeta.norm.act import _has_hooks
from gammabeta.surgery.folding.regions import Region
from gammabeta.surgery.writes import targets

_DROPPING = {"DropPath", "StochasticDepth", "DropBlock2d", "DropBlock3d"}  # timm's, torchvision's
_DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, torch.dropout}
_SHAPES = {"size", "dim", "ndimension", "numel", "stride", "is_contiguous"}
_FACTS = {"shape", "ndim", "dtype", "device", "requires_grad"}


@dataclass
class End:
    """Where following a value ends.

    Args:
        node: The value's maker, or its first true reader; None for what is no value of the graph.
        module: What that node calls, if it calls a module.
        readers: How often the most read value on the way is read.
        passed: The nodes on the way, which do nothing or flatten.
        flattened: Whether one of them flattens.
    """

    node: Node | None
    module: nn.Module | None
    readers: int = 1
    passed: list[Node] = field(default_factory=list)
    flattened: bool = False


class Flow:
    """Follows the values of one region.

    Args:
        region: The region.
        gone: Ids of the batch norms that leave nothing in their place, kept up to date.
    """

    def __init__(self, region: Region, gone: set[int]) -> None:
        self.region = region
        self.gone = gone
        self.order = {node: i for i, node in enumerate(region.graph.nodes)}

    def maker(self, reader: Node) -> End:
        """Follow the first argument of a node back to what made it."""
        value: Any = reader.args[0] if reader.args else None
        end = End(None, None)
        while isinstance(value, Node):
            end.readers = max(end.readers, _reads(value))
            end.node = value
            if not self._does_nothing(value):
                break
            end.passed.append(value)
            value = value.args[0]
        end.module = self.region.called(end.node) if end.node else None
        return end

    def reader(self, maker: Node) -> End:
        """Follow a value to the first node that does something with it."""
        end, value, sources = End(None, None), maker, {maker, maker.args[0]}
        while True:
            users = [user for user in value.users if not _asks(user)]
            end.readers = max(end.readers, _reads(value))
            layers = [user for user in users if is_linear(self.region.called(user))]
            end.node = next(iter(layers or users), None)
            if end.node is None or end.readers > 1:
                break
            flattens = self._flattens(end.node, sources)
            if not (flattens or self._does_nothing(end.node)):
                break
            end.flattened = end.flattened or flattens
            end.passed.append(end.node)
            value = end.node
            sources.add(value)
        end.module = self.region.called(end.node) if end.node else None
        return end

    def written_between(self, first: Node, end: End) -> bool:
        """Tell whether anything between two nodes, the way itself apart, may write in place."""
        start, stop = self.order[first], self.order.get(end.node, 0) if end.node else 0
        between = [n for n, i in self.order.items() if start < i < stop and n not in end.passed]
        return any(map(self._may_write, between))

    def _does_nothing(self, node: Node) -> bool:
        module = self.region.called(node)
        alone = len(node.args) == 1 and not node.kwargs and isinstance(node.args[0], Node)
        if module is not None:
            return alone and (id(module) in self.gone or is_idle(module))
        if node.op == "call_method":
            return alone and node.target == "contiguous"
        return node.target in _DROPOUTS and _drops_nothing(node)

    def _flattens(self, node: Node, sources: set[Any]) -> bool:
        """Tell whether a node makes (N, C·K) of (N, C, *)."""
        module = self.region.called(node)
        if module is not None:
            axes = [getattr(module, name, None) for name in ("start_dim", "end_dim")]
            return type(module) is nn.Flatten and axes == [1, -1] and not _has_hooks(module)
        if node.target in {torch.flatten, "flatten"}:
            given = dict(zip(("input", "start_dim", "end_dim"), node.args, strict=False))
            asked = {"start_dim": 0, "end_dim": -1, **given, **node.kwargs}
            return (asked["start_dim"], asked["end_dim"]) == (1, -1)
        if node.op != "call_method" or node.target not in {"view", "reshape"}:
            return False
        sizes = node.args[1:]
        return len(sizes) == 2 and sizes[1:] == (-1,) and _is_batch(sizes[0], sources)

    def _may_write(self, node: Node) -> bool:
        module = self.region.called(node)
        if module is not None:
            known = type(module).__module__.startswith(("torch.nn.", "gammabeta.norm."))
            return not known or bool(getattr(module, "inplace", False)) or _has_hooks(module)
        return bool(targets(node))


def is_linear(module: nn.Module | None) -> bool:
    """Tell whether a module is a convolution or a linear layer of whatever class."""
    return isinstance(module, _ConvNd | nn.Linear)


def is_idle(module: nn.Module) -> bool:
    """Tell whether a module returns its input, in the mode that it is in.

    Example:
        >>> is_idle(nn.Identity()), is_idle(nn.Dropout(0.5)), is_idle(nn.Dropout(0.5).eval())
        (True, False, True)
    """
    kind = type(module)
    if _has_hooks(module):
        return False
    if kind.__module__ == "torch.nn.modules.dropout":
        return not module.training or getattr(module, "p", 1.0) == 0.0
    if kind.__name__ in _DROPPING and kind.__module__.split(".")[0] in {"timm", "torchvision"}:
        return not module.training
    return kind is nn.Identity


def _drops_nothing(node: Node) -> bool:
    """Tell whether a functional dropout is off."""
    given = dict(zip(("input", "p", "training"), node.args, strict=False)) | node.kwargs
    training = given.get("train", given.get("training", True))
    share = given.get("p", 0.5)
    return training is False or (isinstance(share, int | float) and share == 0)


def _asks(node: Node) -> bool:
    """Tell whether a node asks for a value's shape or the like, and not for what is in it."""
    if node.op == "call_method":
        return node.target in _SHAPES
    return node.target is getattr and len(node.args) == 2 and node.args[1] in _FACTS


def _reads(value: Node) -> int:
    """Count how often a value is read, twice by a node that has it for two arguments."""
    found: list[Node] = []
    for user in value.users:
        if not _asks(user):
            torch.fx.map_arg((user.args, user.kwargs), lambda n: found.append(n))
    return sum(node is value for node in found)


def _is_batch(size: Any, sources: set[Any]) -> bool:
    """Tell whether a number is the size of the first axis of one of some values."""
    if not isinstance(size, Node):
        return False
    if size.op == "call_method" and size.target == "size":
        return size.args[0] in sources and size.args[1:] == (0,)
    source = size.args[0] if getattr(size.target, "__name__", "") == "getitem" else None
    if not isinstance(source, Node) or size.args[1:] != (0,) or not _asks(source):
        return False
    return source.args[0] in sources and (source.target == "size" or source.args[1:] == ("shape",))
