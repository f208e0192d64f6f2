"""The memory layout of activations in a captured graph; parameters keep theirs.

On the CPU, kernels for convolutions, batch norm and pooling are faster channels last. A 2-D
convolution follows its input, so each is given its input in the layout that serves it best;
elementwise operators and poolings keep the layout. Wherever such a value leaves these operators (a
``view``, random numbers, an output, code that is not known here), it gets back the layout that
Dynamo saw, which the code after it may depend on. A graph in which such a copy could be told from
the original by a write into one of them, or in which the copies cost more than is won, keeps its
layouts.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from gammabeta.surgery.writes import is_torchs, targets

Edge = tuple[Node, Node]
"""A value, and a node that reads it."""


def lay_out(graph: Graph) -> int:
    """Compute 2-D convolutions and what follows them in the best layout, changing the graph.

    Args:
        graph: As Dynamo captured it: ``meta["example_value"]`` of the nodes tells layouts.

    Returns:
        The number of convolutions that are computed channels last; 0 if the graph is left as it
        was.
    """
    formats = {node: _format(node) for node in graph.nodes if _is_convolution(node)}
    served = {node: found for node, found in formats.items() if found is not None}
    last = [node for node, found in served.items() if found is torch.channels_last]
    values = _followers(graph, served.keys())
    leaving = [(v, user) for v in values for user in v.users if _leaves(user, values)]
    if not _is_safe(graph, leaving) or not _pays(last, leaving):
        return 0
    for node, wanted in served.items():
        data, _ = _operands(node)
        node.replace_input_with(data, _copy(graph, data, node, wanted))
    copies: dict[Node, Node] = {}
    for value, user in sorted(leaving, key=operator.itemgetter(1)):
        if value not in copies:
            copies[value] = _copy(graph, value, user, _seen(value))
        user.replace_input_with(value, copies[value])
    return len(last)


def _copy(graph: Graph, value: Node, user: Node, layout: torch.memory_format | None) -> Node:
    with graph.inserting_before(user):
        return graph.call_method("contiguous", (value,), {"memory_format": layout})


def unsafe_nodes(graph: Graph) -> list[Node]:
    """Return the convolutions of a graph that stay contiguous because torch may get them wrong."""
    return [node for node in graph.nodes if _is_convolution(node) and _is_unsafe(node)]


def _is_convolution(node: Node) -> bool:
    return node.op == "call_function" and node.target is torch.conv2d


def _format(node: Node) -> torch.memory_format | None:
    """Return the layout in which a convolution's data serve it best; None leaves them alone."""
    data, weight = (_example(value) for value in _operands(node))
    if data is None or weight is None or data.dim() != 4 or data.dtype not in _DTYPES:
        return None
    if data.device.type != "cpu" or _seen(node) is None:
        return None
    if not weight.is_contiguous():
        return None if _is_unsafe(node) else torch.channels_last
    heavy = _is_heavy(weight, _values(node) + _values(_operands(node)[0]))
    return torch.contiguous_format if heavy or _is_unsafe(node) else torch.channels_last


def _is_heavy(weight: Tensor, activations: int) -> bool:
    """Tell whether reordering a weight in every call costs more than the layout gains.

    A weight of 1x1 lies the same way in both layouts.
    """
    count = weight.numel()
    return tuple(weight.shape[2:]) != (1, 1) and count > max(activations, 1 << 18)


def _seen(value: Node) -> torch.memory_format | None:
    """Return the layout in which Dynamo saw a value, if it has a name."""
    example = _example(value)
    if example is None:
        return None
    if example.is_contiguous():
        return torch.contiguous_format
    if example.dim() == 4 and example.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return None


def _followers(graph: Graph, convolutions: Collection[Node]) -> dict[Node, None]:
    """Return the values that may then lie otherwise than Dynamo saw, in order."""
    values: dict[Node, None] = {}
    for node in graph.nodes:
        reads = not values.keys().isdisjoint(node.all_input_nodes)
        if node in convolutions or (reads and _follows(node)):
            values[node] = None
    return values


def _follows(node: Node) -> bool:
    if node.op == "call_method":
        return str(node.target).removesuffix("_") in _METHODS
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:  # of the several results of an operator
        return isinstance(node.args[0], Node) and _example(node.args[0]) is None
    name = getattr(node.target, "__name__", "")
    return name.removesuffix("_") in _FUNCTIONS and is_torchs(node)


def _leaves(user: Node, values: dict[Node, None]) -> bool:
    """Tell whether a reader must be given the layout that Dynamo saw."""
    asking = user.op == "call_method" and user.target in _ASKING
    return user not in values and not asking


def _is_safe(graph: Graph, leaving: list[Edge]) -> bool:
    """Tell whether nobody can tell the copies that leave from the values themselves."""
    storages = {value: _storage(value) for value, _ in leaving}
    if len(set(storages.values())) < len(storages) or None in map(_seen, storages):
        return False
    order = {node: i for i, node in enumerate(graph.nodes)}
    written = [(_storage(target), order[node]) for node in graph.nodes for target in targets(node)]
    return not any(
        storages[value] == storage and order[user] <= at
        for value, user in leaving
        for storage, at in written
    )


def _pays(convolutions: list[Node], leaving: list[Edge]) -> bool:
    computed = sum(map(_values, convolutions))
    return computed > 0 and sum(map(_values, {v for v, _ in leaving})) <= _WORTH * computed


_WORTH = 0.25
"""Most values copied back, as a share of those that convolutions compute."""


def _operands(node: Node) -> tuple[Any, Any]:
    """Return a convolution's data and weight."""
    given = dict(zip(_CONVOLUTION, node.args, strict=False)) | node.kwargs
    return given["input"], given["weight"]


def _example(node: Any) -> Tensor | None:
    """Return the stand-in by which Dynamo knew a value, if that is one tensor."""
    example = node.meta.get("example_value") if isinstance(node, Node) else None
    return example if isinstance(example, Tensor) else None


def _storage(node: Node) -> int:
    example = _example(node)
    return id(node) if example is None else example.untyped_storage()._cdata


def _values(node: Node) -> int:
    """Return how many values a tensor has; of sizes that vary, as many as when it was captured."""
    example = _example(node)
    size = 0 if example is None else example.numel()
    return size if isinstance(size, int) else int(size.node.hint or 0)


def unsafe(model: nn.Module) -> list[str]:
    """Return the paths of convolutions that torch may get wrong if a model is channels last.

    Example:
        >>> unsafe(nn.Sequential(nn.Conv2d(3, 8, 1, stride=2), nn.Conv2d(8, 8, 3, stride=2)))
        ['0']
    """
    return [
        path
        for path, m in model.named_modules()
        if isinstance(m, nn.Conv2d) and _errs(m.weight.shape, m.stride)
    ]


def _is_unsafe(node: Node) -> bool:
    given = dict(zip(_CONVOLUTION, node.args, strict=False)) | node.kwargs
    weight = _example(given["weight"])
    return weight is not None and _errs(weight.shape, given.get("stride", 1))


def _errs(weight: torch.Size, stride: Any) -> bool:
    """Tell whether torch may crash or return a wrong gradient for a channels-last convolution.

    oneDNN's kernels (torch 2.14.1) do for a window of 1x1, a stride above one and fewer input
    channels than a vector register holds: 8 for AVX2, 16 for AVX-512. Contiguous data are right.
    """
    strides = stride if isinstance(stride, tuple | list) else [stride]
    strided = any(s != 1 for s in strides)
    return strided and tuple(weight[2:]) == (1, 1) and weight[1] < _SAFE_CHANNELS


_SAFE_CHANNELS = 16
UNSAFE = "stays contiguous: torch may crash or err on strided 1x1 convolutions of few channels"
_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_DTYPES = {torch.float32, torch.bfloat16, torch.float16}
_ASKING = {"size", "dim", "numel", "ndimension", "new_empty", "new_zeros", "new_ones", "new_full"}
"""Methods whose result does not depend on the layout."""
_ARITHMETIC = {"add", "sub", "mul", "div", "truediv", "iadd", "isub", "imul", "itruediv", "neg"}
_ELEMENTWISE = {
    *("relu", "relu6", "leaky_relu", "gelu", "silu", "mish", "elu", "selu", "celu", "hardtanh"),
    *("hardswish", "hardsigmoid", "sigmoid", "tanh", "softplus", "clamp", "exp", "sqrt", "square"),
}
_REDUCING = {"mean", "sum", "amax", "adaptive_avg_pool2d", "adaptive_max_pool2d"}
_METHODS = _ARITHMETIC | _ELEMENTWISE | _REDUCING | {"float", "half", "bfloat16", "detach"}
_FUNCTIONS = (
    _ARITHMETIC
    | _ELEMENTWISE
    | _REDUCING
    | {"batch_norm", "batch_norm.default", "max_pool2d", "avg_pool2d", "interpolate", "cat", "pad"}
)
