"""All that a look at a model must leave alone, and models that fail half-way."""

from __future__ import annotations

import random

import numpy as np
import torch


def bits(tensor):
    return tensor.detach().contiguous().numpy().tobytes()


def state(model):
    """Return all that a probe must leave alone: objects by identity, tensors also by their bits."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [v for m in model.modules() for v in vars(m).values() if isinstance(v, torch.Tensor)]
    return {
        "tensors": [(id(t), t._version, t.requires_grad, bits(t)) for t in tensors],
        "gradients": [t.grad if t.grad is None else (id(t.grad), bits(t.grad)) for t in tensors],
        "attributes": [
            (k, id(v), [*v] if isinstance(v, list | dict | set) else None)
            for m in model.modules()
            for k, v in vars(m).items()
        ],
        "modes": [m.training for m in model.modules()],
        "generators": [
            bits(v.get_state())
            for m in model.modules()
            for v in vars(m).values()
            if isinstance(v, torch.Generator)
        ],
        "random": (bits(torch.get_rng_state()), random.getstate(), repr(np.random.get_state())),  # noqa: NPY002
    }


class BrokenError(Exception):
    pass


class _Breaks(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return x.clone()

    @staticmethod
    def backward(*_):
        raise BrokenError


def broken(place, way):
    """Make the module at a place raise, in its forward or in its backward."""

    def hook(module, args, output):
        if way == "forward":
            raise BrokenError
        return _Breaks.apply(output) if torch.is_grad_enabled() else output

    return lambda model: list(model.modules())[place].register_forward_hook(hook)
