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

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.nn import functional as F

from gammabeta.norm.activation import Epilogue
from gammabeta.norm.functional import batch_norm
from gammabeta.surgery.match import Chain, Norm, Reader, find_chains
from gammabeta.surgery.report import Entry, Report
from gammabeta.surgery.rewrite import may_add

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
    report = Report()
    for chain in find_chains(graph.graph, GraphReader({})):
        name = _name(chain.node)
        _replace(graph.graph, chain)
        report.done.append(Entry(name, chain.describe()))
        if not chain.links:
            report.left.append(Entry(name, chain.stop))
    graph.recompile()
    graph.gammabeta_report = report  # type: ignore[assignment]
    _LOG.info("torch.compile: %d batch norms, %d fused with what follows\n%s",
              len(report.done), len(report.done) - len(report.left), report)  # fmt: skip
    return graph.forward


class GraphReader(Reader):
    """Reads a graph of Dynamo's, in which modules are functions of their parameters."""

    def norm(self, node: Node) -> Norm | None:
        """Return what the batch norm called by a node is, or None."""
        if node.op != "call_function" or node.target not in _NORMS:
            return None
        data = _arguments(node)["input"]
        shape = getattr(data.meta.get("example_value"), "shape", ())
        return Norm(data, pools=len(shape) == 4)


_INPUTS = ("input", "running_mean", "running_var", "weight", "bias")
_NORMS: dict[Any, tuple[str, ...]] = {
    F.batch_norm: (*_INPUTS, "training", "momentum", "eps"),
    torch.batch_norm: (
        *("input", "weight", "bias", "running_mean", "running_var"),
        *("training", "momentum", "eps", "cudnn_enabled"),
    ),
}


def _arguments(node: Node) -> dict[str, Any]:
    """Give the arguments of either spelling their names."""
    given = {**dict(zip(_NORMS[node.target], node.args, strict=False)), **node.kwargs}
    given.pop("cudnn_enabled", None)
    return given


def _replace(graph: Graph, chain: Chain) -> None:
    """Replace a chain by one call, in place."""
    last = chain.links[-1] if chain.links else chain.node
    options = _arguments(chain.node) | chain.settings
    if chain.residual is not None:
        options["residual"] = chain.residual
    with graph.inserting_before(chain.place):
        call = graph.call_function(fused, (), options)
    call.meta = dict(last.meta)
    last.replace_all_uses_with(call)
    for node in [*reversed(chain.links), chain.node]:
        graph.erase_node(node)


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
    return Epilogue(**settings)(batch_norm(input, **options) + residual)


def _name(node: Node) -> str:
    """Return the path of the module whose code made a node, or the node's own name."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]).removeprefix("L['self'].") if stack else node.name
