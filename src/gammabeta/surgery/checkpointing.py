"""Activation checkpointing in a captured graph, run as torch runs it without Dynamo.

Dynamo hands over a checkpointed part as one operator, whose inputs are all tensors that the part
reads: also the buffers that a batch norm in it moves. As inputs of a checkpoint they would be
saved, and backward would refuse them as changed since. Here a checkpoint is given only what
gradients flow through, as in eager code, where a module holds its own buffers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Graph, GraphModule
from torch.utils.checkpoint import checkpoint

_OPERATOR = "tag_activation_checkpoint"


def mend(graph: Graph) -> None:
    """Exchange the operator for :func:`run`, in place; one with policies of its own is left."""
    root: Any = graph.owning_module
    for node in graph.nodes:
        if node.op != "call_function" or str(node.target) != _OPERATOR:
            continue
        body = root.get_submodule(str(node.args[0].target))
        if isinstance(body, GraphModule) and "_checkpoint_context_fn" not in body.meta:
            node.target = run


def run(body: GraphModule, *inputs: Any, **options: Any) -> Any:
    """Run a part of a graph, and again in backward.

    Args:
        body: The part.
        inputs: All that it reads.
        options: Of ``torch.utils.checkpoint.checkpoint``.

    Example:
        >>> import torch
        >>> body = torch.fx.symbolic_trace(torch.nn.Sigmoid())
        >>> run(body, torch.zeros(2, requires_grad=True), use_reentrant=False).detach()
        tensor([0.5000, 0.5000])
    """
    moving = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad]

    def part(*given: Tensor) -> Any:
        everything = list(inputs)
        for i, x in zip(moving, given, strict=True):
            everything[i] = x
        return body(*everything)

    return checkpoint(part, *(inputs[i] for i in moving), **options)
