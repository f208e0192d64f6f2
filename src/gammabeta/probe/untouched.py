"""Running a model on stand-ins of its tensors, and putting everything back.

What a pass writes (running statistics, gradients, counters) goes into copies, so the model's own
tensors, their gradients and their version counters are never touched. Modes, hooks and plain
attributes are noted and put back, and so are the random generators.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def untouched(model: nn.Module, *, parameters: bool = True) -> Iterator[None]:
    """Let a model run on stand-ins of its tensors, and put back whatever was changed.

    Args:
        model: The model.
        parameters: Whether they have stand-ins too; without a backward pass nobody writes them.

    Example:
        >>> model = nn.BatchNorm1d(2)
        >>> with untouched(model):
        ...     _ = model.train()(torch.randn(4, 2))
        >>> model.num_batches_tracked
        tensor(0)
    """
    held = [_Held(vars(module)) for module in model.modules()]
    with torch.inference_mode(False), torch.enable_grad(), _random_state(model):
        made: dict[int, Tensor] = {}
        try:
            for one in held:
                one.lend(made, parameters)
            yield
        finally:
            for one in held:
                one.restore()
            torch.clear_autocast_cache()  # an ambient autocast would keep the stand-ins' casts


class _Held:
    """The attributes of one module, with what its lists, dictionaries and sets hold."""

    def __init__(self, own: dict[str, Any]) -> None:
        self.own = own
        self.values = dict(own)
        self.inner = {k: v.copy() for k, v in own.items() if isinstance(v, list | dict | set)}

    def lend(self, made: dict[int, Tensor], parameters: bool) -> None:
        """Put stand-ins in place of all tensors; ``made`` keeps shared ones shared."""
        for target in (self.own, *(self.own[k] for k in self.inner)):
            pairs = target.items() if isinstance(target, dict) else enumerate(target)
            for key, value in [] if isinstance(target, set) else list(pairs):
                if isinstance(value, nn.Parameter) and not parameters:
                    continue
                if isinstance(value, Tensor) and value.is_leaf:
                    if id(value) not in made:
                        made[id(value)] = _copy(value)
                    target[key] = made[id(value)]

    def restore(self) -> None:
        """Put every object back to its place, in the containers' own order."""
        for name in set(self.own) - set(self.values):
            del self.own[name]
        self.own.update(self.values)
        for name, content in self.inner.items():
            container = self.own[name]
            if isinstance(container, list):
                container[:] = content
            else:
                container.clear()
                container.update(content)


def _copy(tensor: Tensor) -> Tensor:
    made = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(made, requires_grad=tensor.requires_grad)
    return made.requires_grad_(tensor.requires_grad)


@contextmanager
def _random_state(model: nn.Module) -> Iterator[None]:
    """Put back the global generators, and those that modules hold."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    own = [v for m in model.modules() for v in vars(m).values() if isinstance(v, torch.Generator)]
    states = [generator.get_state() for generator in own]
    cuda = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    with torch.random.fork_rng(devices=cuda):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
            for generator, state in zip(own, states, strict=True):
                generator.set_state(state)
