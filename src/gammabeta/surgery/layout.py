"""Channels-last convolutions, where the model bears them.

A convolution whose weight is laid out channels last returns activations laid out so, and the
layers after it keep them that way. Convolutions and batch norms on the CPU are faster for it. But
``view`` refuses to flatten such activations, so a model that uses it keeps its layout unless an
example shows that it runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


def channels_last(model: nn.Module) -> list[Callable[[], None]]:
    """Lay out the weights of 2-D convolutions channels last, in place.

    Returns:
        What undoes it; nothing where there is nothing to lay out.

    Example:
        >>> conv = nn.Conv2d(3, 4, 3)
        >>> len(channels_last(conv)), conv.weight.is_contiguous(memory_format=torch.channels_last)
        (1, True)
    """
    undo = []
    for weight in _weights(model):
        undo.append(_setter(weight, weight.data))
        weight.data = weight.data.to(memory_format=torch.channels_last)
    return undo


def uses_view(model: nn.Module) -> str | None:
    """Return the name of a class in the model whose methods mention ``view``, or None."""
    kinds = dict.fromkeys(base for m in model.modules() for base in type(m).__mro__)
    for kind in kinds:
        if not kind.__module__.startswith(("torch.nn.", "builtins", "gammabeta.")):
            functions = [f for f in vars(kind).values() if inspect.isfunction(f)]
            if any(_mentions_view(f) for f in functions):
                return kind.__name__
    return None


def _mentions_view(function: Any, deep: bool = True) -> bool:
    names = function.__code__.co_names
    if "view" in names:
        return True
    called = [function.__globals__.get(name) for name in names] if deep else []
    return any(_mentions_view(f, deep=False) for f in called if inspect.isfunction(f))


def _weights(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        weight = module._parameters.get("weight")
        if (
            isinstance(module, nn.Conv2d)
            and type(weight) is nn.Parameter
            and weight.device.type == "cpu"
        ):
            yield weight


def _setter(weight: Any, data: torch.Tensor) -> Callable[[], None]:
    def reset() -> None:
        weight.data = data

    return reset
