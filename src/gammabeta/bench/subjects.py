"""Who is measured: torch's layers in two memory layouts, compiled by Inductor, and ours.

``SUBJECTS`` is data. A subject makes a block or a model its own way out of the same plain one, with
the same weights, so that all compute the same.
"""

from __future__ import annotations

import copy
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gammabeta.bench.models import TorchNet
from gammabeta.models import Net
from gammabeta.norm.act import BatchNormAct2d
from gammabeta.norm.activation import POOLS
from gammabeta.surgery.accelerate import accelerate

EAGER_NCHW = "eager NCHW"
EAGER_LAST = "eager channels-last"
OURS = "gammabeta"


@dataclass(frozen=True)
class Block:
    """Batch norm, activation and max pooling over an input (N, C, H, W).

    Args:
        shape: Of the input.
        pool: None, or the window of the max pooling: 2 or 3.
        activation: "relu" or None.

    Example:
        >>> print(Block((128, 64, 32, 32), pool=2))
        block (128, 64, 32, 32)
    """

    shape: tuple[int, int, int, int]
    pool: int | None = None
    activation: str | None = "relu"

    def __str__(self) -> str:
        return f"block {self.shape}"

    def with_torch(self) -> nn.Module:
        """Return it as torch's layers, one after the other."""
        layers: list[nn.Module] = [nn.BatchNorm2d(self.shape[1])]
        if self.activation:
            layers.append(nn.ReLU())
        if self.pool:
            layers.append(nn.MaxPool2d(*POOLS[self.pool]))
        return nn.Sequential(*layers)

    def with_ours(self) -> nn.Module:
        """Return it as one fused layer."""
        return BatchNormAct2d(self.shape[1], activation=self.activation, pool=self.pool)


NET_BLOCKS = (
    Block((128, 64, 32, 32), pool=2),
    Block((128, 128, 16, 16), pool=2),
    Block((128, 256, 8, 8), pool=2),
)
"""What follows the convolutions of the reference network at batches of 128."""


def accelerated(model: nn.Module) -> nn.Module:
    """Return the model as gammabeta runs it, with the weights of the given one."""
    if isinstance(model, TorchNet):
        net = Net(model.num_classes, model.image_size)
        net.load_state_dict(model.state_dict())
        return net
    return accelerate(copy.deepcopy(model))


def compiler() -> str | None:
    """Return the path of the C++ compiler that Inductor would call, or None."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++"))


def inductor(model: nn.Module) -> nn.Module:
    """Return the model compiled by Inductor for the one shape it will see."""
    torch.compiler.reset()  # Dynamo compiles a forward of one class for a few modules only
    compiled: Any = torch.compile(model, dynamic=False)
    module: nn.Module = compiled
    return module


@dataclass(frozen=True)
class Subject:
    """A way to run batch norm.

    Args:
        name: As printed.
        layout: Memory layout of data and weights.
        of_block: Makes the layers of a block.
        of_model: Makes the model out of a plain one, which it leaves as it is.
        compiled: Whether Inductor compiles what they made.
    """

    name: str
    layout: torch.memory_format
    of_block: Callable[[Block], nn.Module] = Block.with_torch
    of_model: Callable[[nn.Module], nn.Module] = copy.deepcopy
    compiled: bool = False

    def finish(self, module: nn.Module) -> nn.Module:
        """Return the module in the subject's layout, compiled if it is to be."""
        module = module.to(memory_format=self.layout)
        return inductor(module) if self.compiled else module


SUBJECTS: tuple[Subject, ...] = (
    Subject(EAGER_NCHW, torch.contiguous_format),
    Subject(EAGER_LAST, torch.channels_last),
    Subject("torch.compile NCHW", torch.contiguous_format, compiled=True),
    Subject("torch.compile channels-last", torch.channels_last, compiled=True),
    Subject(OURS, torch.channels_last, Block.with_ours, accelerated),
)


def named(*names: str) -> tuple[Subject, ...]:
    """Return the subjects of these names, in the order of ``SUBJECTS``.

    Example:
        >>> [subject.layout for subject in named("gammabeta")]
        [torch.channels_last]
    """
    return tuple(subject for subject in SUBJECTS if subject.name in names)
