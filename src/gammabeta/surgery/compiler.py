"""A backend for ``torch.compile`` that fuses batch norms and compiles nothing.

    torch.compile(model, backend="gammabeta")

Dynamo follows the model while it runs, through code that no symbolic trace could, and hands over
graphs of torch's functions. In each, ``batch_norm`` and what follows it become one call of
gammabeta's; then the graph runs eagerly, without Inductor or a C++ compiler. A graph in which
nothing can be fused runs as it is.

The backend is an entry point, so gammabeta need not be imported. What it fused is logged, at level
INFO, to the logger "gammabeta".
"""

from __future__ import annotations

import functools
import logging
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.nn import functional as F

from gammabeta.norm.activation import Epilogue
from gammabeta.norm.functional import batch_norm
from gammabeta.norm.kernels.registry import select
from gammabeta.surgery.channels_last import UNSAFE, lay_out, unsafe_nodes
from gammabeta.surgery.checkpointing import mend
from gammabeta.surgery.match import Chain, find_chains
from gammabeta.surgery.reader import Norm, Reader
from gammabeta.surgery.report import Entry, Report

_LOG = logging.getLogger("gammabeta")
_SETTINGS = ("activation", "negative_slope", "approximate", "pool")


def gammabeta(
    graph: GraphModule,
    example_inputs: list[Any],  # noqa: ARG001 (what Dynamo passes)
    **options: Any,  # noqa: ARG001
) -> Callable[..., Any]:
    """Fuse the batch norms of a captured graph and return what runs it.

    Args:
        graph: As Dynamo captured it; changed in place. Its ``gammabeta_report`` says what was done.
        example_inputs: Not needed.
        options: Of ``torch.compile``; there are none.

    Returns:
        The graph's forward.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.ReLU())
        >>> torch.compile(model, backend=gammabeta)(torch.randn(4, 3)).shape
        torch.Size([4, 3])
    """
    return fuse(graph).forward


def fuse(graph: GraphModule, paths: Mapping[str, str] | None = None) -> GraphModule:
    """Rewrite a captured graph, keep the report on it, and log it.

    Args:
        graph: As Dynamo captured it; changed in place.
        paths: As for :func:`rewrite`.
    """
    report = rewrite(graph, paths)
    graph.gammabeta_report = report  # type: ignore[assignment]
    _LOG.info("torch.compile: %d batch norms fused\n%s", len(report.done), report)
    return graph


def rewrite(graph: GraphModule, paths: Mapping[str, str] | None = None) -> Report:
    """Lay out a captured graph channels last and fuse its batch norms, in place.

    Args:
        graph: As Dynamo captured it.
        paths: Names of modules for the report, by ``str(id(module))``; by default, Dynamo's.

    Returns:
        The batch norms that were fused with what follows them, and those that were not, and why.
    """
    report, paths = Report(), paths or {}
    for node in graph.graph.nodes:
        if _is_kernel(node) and not _is_plain(node):
            report.left.append(Entry(_name(node, paths), "it is fused by its own layer"))
    report.left += [Entry(_name(node, paths), UNSAFE) for node in unsafe_nodes(graph.graph)]
    mend(graph.graph)
    lay_out(graph.graph)
    for chain in find_chains(graph.graph, GraphReader({})):
        name = _name(chain.node, paths)
        if chain.links:
            report.done.append(Entry(name, f"fused {chain.describe()}"))
        else:
            report.left.append(Entry(name, f"BN alone: {chain.stop}"))
        if chain.links or chain.node.target in _NORMS:
            _replace(graph.graph, chain)
    graph.recompile()
    return report


class GraphReader(Reader):
    """Reads a graph of Dynamo's, in which modules are functions of their parameters."""

    def norm(self, node: Node) -> Norm | None:
        """Return what the batch norm called by a node is, or None."""
        if node.op != "call_function":
            return None
        if node.target in _NORMS:
            data = _arguments(node)["input"]
            return Norm(data, pools=_axes(data) == 4)
        if not _is_kernel(node) or not _is_plain(node):
            return None
        data, others = node.args[0], [n for n in node.users if n.args[1] != 0]
        output = next((n for n in node.users if n.args[1] == 0), None)
        if not isinstance(data, Node) or output is None:
            return None
        return Norm(data, pools=_axes(data) == 4, output=output, waits=not others)


_INPUTS = ("input", "running_mean", "running_var", "weight", "bias")
_NORMS: dict[Any, tuple[str, ...]] = {
    F.batch_norm: (*_INPUTS, "training", "momentum", "eps"),
    torch.batch_norm: (
        *("input", "weight", "bias", "running_mean", "running_var"),
        *("training", "momentum", "eps", "cudnn_enabled"),
    ),
}


def _is_kernel(node: Node) -> bool:
    """Tell whether a node calls gammabeta's own operator, as its layers do under Dynamo."""
    return str(node.target) in {"gammabeta.batch_norm", "gammabeta.batch_norm.default"}


def _is_plain(node: Node) -> bool:
    """Tell whether gammabeta's operator is called without a residual, activation or pooling."""
    residual, activation, pool = node.args[3], node.args[7], node.args[9]
    return residual is None and (activation, pool) == ("identity", 0)


def _axes(data: Node) -> int:
    return len(getattr(data.meta.get("example_value"), "shape", ()))


def _arguments(node: Node) -> dict[str, Any]:
    """Give the arguments of either spelling of torch's function their names."""
    given = {**dict(zip(_NORMS[node.target], node.args, strict=False)), **node.kwargs}
    given.pop("cudnn_enabled", None)
    return given


def _replace(graph: Graph, chain: Chain) -> None:
    """Replace a chain by one call, in place."""
    last = chain.links[-1] if chain.links else chain.node
    kernel = chain.node.target not in _NORMS
    for setting in chain.settings.values():
        if isinstance(setting, Node) and setting.op != "placeholder":
            chain.place.prepend(setting)
    with graph.inserting_before(chain.place):
        if kernel:
            data = (*chain.node.args[:3], chain.residual, *chain.node.args[4:7])
            call = graph.call_function(fused_kernel, data, chain.settings)
            value = graph.call_function(operator.getitem, (call, 0))
        else:
            options = _arguments(chain.node) | chain.settings | {"residual": chain.residual}
            call = value = graph.call_function(fused, (), options)
    value.meta = dict(last.meta)
    last.replace_all_uses_with(value)
    for node in [*reversed(chain.links), *([chain.output] if kernel else [])]:
        graph.erase_node(node)
    chain.node.replace_all_uses_with(call)  # what an operator returns besides
    graph.erase_node(chain.node)


def fused(input: Tensor, *, residual: Any = None, **options: Any) -> Tensor:  # noqa: A002
    """Call ``gammabeta.batch_norm``; a sum that broadcasts or changes the dtype comes after it.

    Args:
        input: The data.
        residual: What is added, of any shape that broadcasts.
        options: The other arguments of ``gammabeta.batch_norm``, by name.

    Example:
        >>> x, stats = torch.randn(4, 3), {"running_mean": None, "running_var": None}
        >>> fused(x, residual=torch.ones(1), training=True, **stats).shape
        torch.Size([4, 3])
    """
    if residual is None or may_add(input, residual):
        return batch_norm(input, residual=residual, **options)
    settings = {name: options.pop(name) for name in _SETTINGS if name in options}
    return epilogue(**settings)(batch_norm(input, **options) + residual)


def fused_kernel(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Any,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    **settings: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Call the kernel that serves best in the place of gammabeta's operator.

    Args:
        x: The data; this and the next are the operator's arguments.
        weight: γ, or None.
        bias: β, or None.
        residual: What is added, of any shape that broadcasts.
        mean: None computes it.
        var: None computes it.
        eps: Added to the variance.
        settings: The activation and pooling, as of ``gammabeta.batch_norm``.

    Returns:
        The output, mean and variance.

    Example:
        >>> y, mean, var = fused_kernel(torch.randn(4, 3), None, None, None, None, None, 1e-5)
        >>> y.shape, mean.shape
        (torch.Size([4, 3]), torch.Size([3]))
    """
    what = epilogue(**settings)
    added = residual if residual is not None and may_add(x, residual) else None
    inside = what if added is residual else epilogue()
    if mean is None or var is None:
        kernel = select("auto", x, weight, bias, added)
        done = kernel.train(x, weight, bias, added, eps, inside)
        y, mean, var = cast("tuple[Tensor, Tensor, Tensor]", done)
    else:
        kernel = select("auto", x, weight, bias, added, (mean, var))
        y = kernel.infer(x, mean, var, weight, bias, added, eps, inside)
    return (y if added is residual else what(y + residual)), mean, var


def may_add(x: Tensor, residual: Any) -> bool:
    """Tell whether a sum with batch norm's output, which is like x, stays like x."""
    return isinstance(residual, Tensor) and residual.shape == x.shape and residual.dtype == x.dtype


@functools.cache
def epilogue(**settings: Any) -> Epilogue:
    """Return the epilogue of these settings, made once."""
    return Epilogue(**settings)


def _name(node: Node, paths: Mapping[str, str]) -> str:
    """Return the path of the module whose code made a node, or the node's own name."""
    stack = node.meta.get("nn_module_stack", {})
    if not stack:
        return node.name
    key, (path, _) = list(stack.items())[-1]
    return paths.get(key.split("@")[0]) or re.sub(r"^L\['\w+'\](\.__self__)?\.?", "", str(path))
