"""Recording a model as a graph that serves every batch size, with nothing in it of the machine."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection

from gammabeta.deploy.verify import rows
from gammabeta.errors import GammabetaError

_TRACED_ROWS = 2
"""Of one sample the batch axis would count as the constant 1."""


def capture(model: nn.Module, inputs: tuple[Tensor, ...]) -> ExportedProgram:
    """Record a model with ``torch.export``.

    Args:
        model: In eval mode.
        inputs: An example; the first axis of each tensor is the batch.

    Returns:
        The program. It holds no example and no path of a source file.

    Raises:
        GammabetaError: If the model cannot be recorded, or normalises with batch statistics.

    Example:
        >>> program = capture(nn.Linear(3, 2).eval(), (torch.ones(4, 3),))
        >>> program.example_inputs is None
        True
    """
    traced = tuple(rows(x, _TRACED_ROWS) for x in inputs)
    shapes = ShapesCollection()
    for x in traced:
        shapes[x] = (Dim.DYNAMIC, *x.shape[1:])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own internals
            program = torch.export.export(model, traced, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise GammabetaError(
            f"{type(model).__name__} cannot be recorded for any batch size: {reason}"
        ) from error
    _refuse_training(program)
    _forget(program)
    return program


def nodes(program: ExportedProgram) -> Iterator[fx.Node]:
    """Yield the nodes of a program, those of nested graphs too.

    Example:
        >>> program = capture(nn.ReLU(), (torch.ones(4, 3),))
        >>> [node.op for node in nodes(program)]
        ['placeholder', 'call_function', 'output']
    """
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            yield from module.graph.nodes


def count_batch_norms(program: ExportedProgram) -> int:
    """Count the batch norms that a program computes.

    Example:
        >>> count_batch_norms(capture(nn.BatchNorm1d(3).eval(), (torch.ones(4, 3),)))
        1
    """
    return sum("batch_norm" in str(node.target) for node in nodes(program))


def _refuse_training(program: ExportedProgram) -> None:
    """Refuse what no eval mode reaches: ``F.batch_norm(..., training=True)`` in a forward."""
    for node in nodes(program):
        if "batch_norm" in str(node.target) and _trains(node):
            where = _path(node)
            raise GammabetaError(
                f"{where} normalises with its batch's statistics in eval mode too: pass "
                "training=self.training to its batch norm"
            )


def _trains(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema else []
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    if "training" in names:
        return bool(given.get("training"))
    return "with_update" in str(node.target)


def _path(node: fx.Node) -> str:
    stack: dict[str, tuple[str, Any]] = node.meta.get("nn_module_stack", {})
    paths = [path for path, _ in stack.values() if path]
    return paths[-1] if paths else "the model"


def _forget(program: ExportedProgram) -> None:
    """Remove the user's samples, and the paths and lines of the user's source files."""
    program.example_inputs = None
    for node in nodes(program):
        node.meta.pop("stack_trace", None)
