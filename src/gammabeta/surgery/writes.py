"""What a node of a graph may write into, by torch's conventions for names and arguments."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.fx import Node


def targets(node: Node) -> list[Node]:
    """Return the values that a function or method may write into; of unknown code, all it reads.

    Example:
        >>> graph = torch.fx.symbolic_trace(lambda x, y: torch._foreach_mul_([x, y], 2)).graph
        >>> x, y, written, _ = graph.nodes
        >>> targets(written)
        [x, y]
    """
    if node.op not in {"call_function", "call_method"}:
        return []
    if not is_torchs(node):
        return list(node.all_input_nodes)
    out = _nodes(node.kwargs.get("out"))
    if _is_in_place(node) or _is_flagged(node):
        return out + _nodes(node.args[0] if node.args else dict(node.kwargs))
    return out


def is_torchs(node: Node) -> bool:
    """Tell whether torch's own conventions hold for what a node calls.

    Example:
        >>> *_, relu, _ = torch.fx.symbolic_trace(torch.nn.ReLU()).graph.nodes
        >>> is_torchs(relu)
        True
    """
    if node.op == "call_method" or str(node.target).startswith("gammabeta.batch_norm"):
        return True
    home = getattr(node.target, "__module__", "") or ""
    return home.split(".")[0] in {"torch", "_operator", "math", "builtins"} and not isinstance(
        node.target, torch._ops.OpOverloadPacket | torch._ops.HigherOrderOperator
    )


def _nodes(argument: Any) -> list[Node]:
    found: list[Node] = []
    torch.fx.node.map_arg(argument, found.append)
    return found


def _is_in_place(node: Node) -> bool:
    name = str(node.target if node.op == "call_method" else getattr(node.target, "__name__", ""))
    special = name.startswith("__") and name.endswith("__")
    return name.strip("_") in _WRITING or (name.endswith("_") and not special)


def _is_flagged(node: Node) -> bool:
    """Tell whether a function is called with ``inplace=True``, by name or by position."""
    if node.op != "call_function" or not inspect.isfunction(node.target):
        return False
    names = list(inspect.signature(node.target).parameters)
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    return bool(given.get("inplace"))


_WRITING = {"setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand",
            "ior", "ixor"}  # fmt: skip
