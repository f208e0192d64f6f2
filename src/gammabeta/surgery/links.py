"""What an operation means to the batch norm before it: something to fuse, to skip, or neither.

The same operation comes in many spellings: a module, a function of ``torch``, one of
``torch.nn.functional``, a method, each in place or not. They are all read here, as a
:class:`Step`, from the node of a ``torch.fx`` graph.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.nn import functional as F

from gammabeta.norm.activation import POOLS


@dataclass(frozen=True)
class Step:
    """An operation that may be computed together with a batch norm.

    Args:
        kind: "activation", "pool", "add", or "identity" for what does nothing.
        settings: The arguments of ``gammabeta.batch_norm`` that ask for it.
        other: Of "add": the other summand.
        overwrites: Of "add": whether the sum is written into the other summand.
    """

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    other: Any = None
    overwrites: bool = False


def read(node: Node, value: Node) -> Step | None:
    """Read a function or a method called on ``value``; None if it is nothing to fuse.

    Example:
        >>> graph = torch.fx.symbolic_trace(lambda x: F.leaky_relu(x, 0.3)).graph
        >>> x, y, _ = graph.nodes
        >>> read(y, x).settings
        {'activation': 'leaky_relu', 'negative_slope': 0.3}
    """
    table: dict[Any, _Spelling] = _FUNCTIONS if node.op == "call_function" else _METHODS
    if node.op not in {"call_function", "call_method"} or node.target not in table:
        return None
    names, make = table[node.target]
    arguments = _bind(node, names)
    if arguments is None:
        return None
    if make is _add:
        return _add(arguments, value, node.target in _OVERWRITING)
    return make(**arguments) if arguments.pop("input", None) is value else None


def read_module(module: nn.Module) -> Step | None:
    """Read a module called on one tensor; None if it is nothing to fuse.

    Example:
        >>> read_module(nn.Hardtanh(0, 6)).settings
        {'activation': 'relu6'}
    """
    kind = type(module)
    name = f"{kind.__module__.split('.')[0]}.{kind.__name__}"
    make = _MODULES.get(kind) or _MODULES_BY_NAME.get(name)
    return make(module) if make else None


def _bind(node: Node, names: Sequence[str]) -> dict[str, Any] | None:
    """Give the arguments their names; None if there are others than those."""
    if len(node.args) > len(names) or not set(node.kwargs) <= set(names):
        return None
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _add(arguments: dict[str, Any], value: Node, in_place: bool) -> Step | None:
    left, right = arguments.get("input"), arguments.get("other")
    other = right if left is value else left
    if arguments.get("alpha", 1) != 1 or other is value or not isinstance(other, Node):
        return None
    return Step("add", other=other, overwrites=in_place and left is other)


def _activation(name: str) -> Callable[..., Step]:
    return lambda inplace=False: Step("activation", {"activation": name})  # noqa: ARG005


def _leaky_relu(negative_slope: float = 0.01, inplace: bool = False) -> Step:  # noqa: ARG001
    return Step("activation", {"activation": "leaky_relu", "negative_slope": negative_slope})


def _gelu(approximate: str = "none") -> Step:
    return Step("activation", {"activation": "gelu", "approximate": approximate})


def _hardtanh(
    min_val: float = -1.0,
    max_val: float = 1.0,
    inplace: bool = False,  # noqa: ARG001
) -> Step | None:
    return RELU6 if (min_val, max_val) == (0, 6) else None


def _dropout(
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,  # noqa: ARG001
) -> Step | None:
    return IDENTITY if p == 0 or training is False else None


def _max_pool(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Step | None:
    stride = kernel_size if stride is None or stride == () else stride
    asked = tuple(_side(value) for value in (kernel_size, stride, padding))
    if _side(dilation) != 1 or ceil_mode or return_indices:
        return None
    return next((Step("pool", {"pool": k}) for k, known in POOLS.items() if known == asked), None)


def _side(value: Any) -> Any:
    """Return the number that a pair of equal numbers repeats."""
    if isinstance(value, tuple | list) and len(set(value)) == 1:
        return value[0]
    return value


IDENTITY = Step("identity")
RELU6 = Step("activation", {"activation": "relu6"})

_Spelling = tuple[Sequence[str], Callable[..., Any]]
_UNARY = ("input", "inplace")
_ADD = ("input", "other", "alpha")
_POOL = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")

_FUNCTIONS: dict[Any, _Spelling] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_), (_UNARY, _activation("relu"))),
    F.relu6: (_UNARY, _activation("relu6")),
    F.silu: (_UNARY, _activation("silu")),
    F.hardswish: (_UNARY, _activation("hardswish")),
    F.gelu: (("input", "approximate"), _gelu),
    **dict.fromkeys(
        (F.leaky_relu, F.leaky_relu_), (("input", "negative_slope", "inplace"), _leaky_relu)
    ),
    **dict.fromkeys(
        (F.hardtanh, F.hardtanh_), (("input", "min_val", "max_val", "inplace"), _hardtanh)
    ),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), (_POOL, _max_pool)),
    F.dropout: (("input", "p", "training", "inplace"), _dropout),
    **dict.fromkeys((operator.add, operator.iadd, torch.add), (_ADD, _add)),
}
_METHODS: dict[Any, _Spelling] = {
    **dict.fromkeys(("relu", "relu_"), (_UNARY, _activation("relu"))),
    **dict.fromkeys(("add", "add_"), (_ADD, _add)),
}
_OVERWRITING = {operator.iadd, "add_"}


def _module_dropout(module: Any) -> Step | None:
    return IDENTITY if not getattr(module, "p", getattr(module, "drop_prob", None)) else None


_MODULES: dict[type[nn.Module], Callable[[Any], Step | None]] = {
    nn.Identity: lambda _: IDENTITY,
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), _module_dropout),
    nn.ReLU: lambda _: _activation("relu")(),
    nn.ReLU6: lambda _: RELU6,
    nn.SiLU: lambda _: _activation("silu")(),
    nn.Hardswish: lambda _: _activation("hardswish")(),
    nn.LeakyReLU: lambda m: _leaky_relu(m.negative_slope),
    nn.GELU: lambda m: _gelu(m.approximate),
    nn.Hardtanh: lambda m: _hardtanh(m.min_val, m.max_val),
    nn.MaxPool2d: lambda m: _max_pool(
        m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices
    ),
}
_MODULES_BY_NAME: dict[str, Callable[[Any], Step | None]] = {
    "timm.DropPath": _module_dropout,
    "torchvision.StochasticDepth": _module_dropout,
    "timm.GELU": lambda _: _gelu(),
    "timm.GELUTanh": lambda _: _gelu("tanh"),
}
