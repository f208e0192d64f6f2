"""Running a model on an example and comparing, so that no trace is left of either."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from gammabeta.errors import GammabetaError

_BOUND = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Largest difference allowed, as a share of the largest value; of half precision, 5 %."""


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Return the floating-point tensors of a model's output in evaluation mode, without gradients.

    Modes, buffers and random generators are afterwards what they were.

    Args:
        model: The model.
        inputs: A tensor, or a tuple of all arguments.

    Raises:
        GammabetaError: If the model is not initialised yet.

    Example:
        >>> model = nn.BatchNorm1d(2)
        >>> [tuple(y.shape) for y in outputs(model, torch.ones(3, 2))], model.training
        ([(3, 2)], True)
    """
    return run(model, inputs, evaluate=True)[0]


def run(model: nn.Module, inputs: Any, *, evaluate: bool) -> tuple[list[Tensor], bool]:
    """Do the work of :func:`outputs`, and tell whether the model drew random numbers.

    Args:
        model: The model.
        inputs: A tensor, or a tuple of all arguments.
        evaluate: Run in evaluation mode, and not in the modes that the modules have.

    Raises:
        GammabetaError: If the model is not initialised yet.

    Example:
        >>> run(nn.Dropout(0.5), torch.ones(3), evaluate=False)[1]
        True
    """
    if any(map(nn.parameter.is_lazy, (*model.parameters(), *model.buffers()))):
        raise GammabetaError("the model has lazy layers: call it once, then pass example_inputs")
    inputs = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs)
    with _aside(model, evaluate), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        before = torch.get_rng_state()
        result = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
        drew = not torch.equal(before, torch.get_rng_state())
        return [y.clone() for y in _tensors(result)], drew


def difference(expected: list[Tensor], got: list[Tensor]) -> str | None:
    """Return in words what differs by more than rounding, or None.

    Example:
        >>> difference([torch.ones(2)], [torch.tensor([1.0, 1.5])])
        'output 0 differs by 50 %'
    """
    if [y.shape for y in expected] != [y.shape for y in got]:
        return "the outputs have other shapes"
    for i, (a, b) in enumerate(zip(expected, got, strict=True)):
        scale = float(torch.nan_to_num(a).abs().max()) if a.numel() else 0.0
        bound = _BOUND.get(a.dtype, 0.05) * scale
        if not torch.allclose(a, b.to(a.dtype), rtol=0.0, atol=bound, equal_nan=True):
            share = float(torch.nan_to_num(a - b).abs().max()) / (scale or 1.0)
            return f"output {i} differs by {100 * share:.3g} %"
    return None


@contextmanager
def _aside(model: nn.Module, evaluate: bool) -> Iterator[None]:
    modes = [(m, m.training) for m in model.modules()]
    buffers = [(b, b.clone()) for b in model.buffers()]
    try:
        for m, _ in modes:
            m.training = m.training and not evaluate
        yield
    finally:
        for m, mode in modes:
            m.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _tensors(result: Any) -> list[Tensor]:
    """Collect tensors, also from objects that only have attributes."""
    found = []
    for leaf in tree_leaves(result):
        if isinstance(leaf, Tensor):
            found += [leaf] if leaf.is_floating_point() else []
        elif hasattr(leaf, "__dict__"):
            found += _tensors(dict(vars(leaf)))
    return found
