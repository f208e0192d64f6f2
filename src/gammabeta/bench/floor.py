"""What no implementation on this machine can beat: the bytes to move, the arithmetic left over.

A fused block is bound by memory, so its floor is copying as many bytes as it must read and write.
A training step is bound by its convolutions and linear layers, so its floor is those alone, on the
inputs that they have in the model.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gammabeta.norm.activation import POOLS

BIG_BYTES = 256 * 2**20


def block_bytes(
    shape: tuple[int, ...], dtype: torch.dtype, pool: int | None = None, mode: str = "backward"
) -> int:
    r"""Return the bytes that batch norm + ReLU (+ max pooling) must read and write.

    With :math:`n` values of :math:`b` bytes in the input, :math:`m` in the output, and an index of
    :math:`i` bytes: one a pooled value, which tells where the maximum was, none without pooling:

    .. math::

       \text{eval} &= nb + mb \\
       \text{forward} &= 2nb + mb \; (+ i) \\
       \text{backward} &= 2mb + i + 2nb

    Forward in training reads x twice, for the statistics and to normalise, and writes y, and the
    index if a backward pass follows. Backward reads y (which holds x̂ wherever ReLU passed), dy and
    the index to reduce, reads x and writes dx. That dy and the index are needed again to write dx
    is not counted, nor are vectors of one value a channel: they may come from a cache.

    Args:
        shape: Of the input, (N, C, *).
        dtype: Of the data.
        pool: None, or the window of the max pooling: 2 or 3.
        mode: "backward" (forward and backward in training), "forward" (without gradients) or
            "eval" (with given statistics, without gradients).

    Example:
        >>> block_bytes((1, 1, 4, 4), torch.float32, pool=2, mode="forward") == 2 * 64 + 16
        True
        >>> block_bytes((1, 1, 4, 4), torch.bfloat16, 2) == (2 * 32 + 8 + 4) + (32 + 2 * 8 + 4 + 32)
        True
    """
    size = dtype.itemsize
    inputs, outputs = math.prod(shape), math.prod(pooled(shape, pool))
    reads = 1 if mode == "eval" else 2
    forward = reads * inputs * size + outputs * size
    if mode != "backward":
        return forward
    index = outputs if pool else 0
    return forward + index + 2 * outputs * size + index + 2 * inputs * size


def pooled(shape: tuple[int, ...], pool: int | None) -> tuple[int, ...]:
    """Return the shape of the output of a block.

    Example:
        >>> pooled((8, 3, 7, 7), 2), pooled((8, 3, 7, 7), 3), pooled((8, 3), None)
        ((8, 3, 3, 3), (8, 3, 4, 4), (8, 3))
    """
    if pool is None:
        return shape
    kernel, stride, padding = POOLS[pool]
    return *shape[:2], *((s + 2 * padding - kernel) // stride + 1 for s in shape[2:])


class Copy:
    """Moves a number of bytes, half of them read and half written, when called.

    Args:
        moved_bytes: Read and written together.

    Example:
        >>> Copy(1600)().nbytes
        800
    """

    def __init__(self, moved_bytes: int) -> None:
        self.source = torch.ones(moved_bytes // 2 // 8 or 1, dtype=torch.int64)
        self.target = torch.zeros_like(self.source)
        self.moved_bytes = 2 * self.source.nbytes

    def __call__(self) -> Tensor:
        """Copy."""
        return self.target.copy_(self.source)


def copy_bandwidth(moved_bytes: int = 2 * BIG_BYTES, rounds: int = 7) -> float:
    """Return the bytes a second that a copy of big tensors moves, read and written together."""
    copy = Copy(moved_bytes)
    copy()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        copy()
        seconds.append(time.perf_counter() - began)
    return copy.moved_bytes / statistics.median(seconds)


@dataclass(frozen=True)
class LayerCall:
    """One call of a convolution or linear layer in a model's forward pass."""

    layer: nn.Module
    x: Tensor
    dy: Tensor


class LayersAlone:
    """The convolutions and linear layers of a model, forward and backward, and nothing else.

    Each runs on the input that it was given in the model, of the same shape, layout and dtype, and
    receives a random gradient; the first layer owes none to the images. Matrix products that are no
    such module (attention's) are not counted.

    Args:
        model: Any module; it is run once, in the mode it is in.
        images: (N, C, H, W).
        bf16: Whether under autocast to bfloat16.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(),
        ...                       nn.Linear(16, 2))
        >>> alone = LayersAlone(model, torch.randn(2, 3, 4, 4))
        >>> [tuple(call.x.shape) for call in alone.calls]
        [(2, 3, 4, 4), (2, 16)]
        >>> len(alone())  # gradients of two weights, two biases, and the linear layer's input
        5
    """

    def __init__(self, model: nn.Module, images: Tensor, *, bf16: bool = False) -> None:
        self.bf16 = bf16
        self.device = images.device.type
        with _recorded(model) as calls, self._autocast():
            model(images)
        self.calls = tuple(calls)

    def __call__(self) -> tuple[Tensor, ...]:
        """Run all layers forward, then all of them backward."""
        with self._autocast():
            outputs = [call.layer(call.x) for call in self.calls]
        leaves = {
            id(leaf): leaf
            for call in self.calls
            for leaf in (call.x, *call.layer.parameters())
            if leaf.requires_grad
        }
        dys = [call.dy for call in self.calls]
        return torch.autograd.grad(outputs, list(leaves.values()), dys)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bf16)


@contextmanager
def _recorded(model: nn.Module) -> Iterator[list[LayerCall]]:
    """Collect every call of a convolution or linear layer meanwhile."""
    calls: list[LayerCall] = []

    def record(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        x: Tensor = inputs[0]
        alone = x.detach().requires_grad_(x.requires_grad)
        calls.append(LayerCall(layer, alone, torch.randn_like(output)))

    layers = [module for module in model.modules() if isinstance(module, _ConvNd | nn.Linear)]
    hooks = [layer.register_forward_hook(record) for layer in layers]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
