"""The passes through the model: their modes, their loss, their output."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gammabeta.errors import GammabetaError
from gammabeta.probe import is_batch_norm

SEED = 0
"""Of every random number drawn in a pass, as by dropout; so a pass can be run again."""

Loss = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Target:
    """What the backward pass descends from.

    Args:
        kind: "labels" or "prediction" (cross entropy against the batch's labels, or against the
            class that the model itself names in eval mode), "random" (a fixed random cotangent,
            for outputs that are no logits), "given" (the caller's own loss).
        classes: Number of logits, or None.
        loss: From the output to a scalar.
    """

    kind: str
    classes: int | None
    loss: Callable[[Tensor], Tensor]


def target(output: Tensor, labels: Tensor | None, loss: Loss | None) -> Target:
    """Choose the loss by the output of an eval pass."""
    classes = output.shape[1] if output.dim() == 2 and output.shape[1] > 1 else None
    if loss is not None:
        return Target("given", classes, lambda y: loss(y, labels))
    if classes is None:
        noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(SEED))
        cotangent = noise.to(output.device) / len(output)
        return Target("random", None, lambda y: (y.float() * cotangent).sum())
    wanted = output.argmax(dim=1) if labels is None else labels
    kind = "prediction" if labels is None else "labels"
    return Target(kind, classes, lambda y: F.cross_entropy(y.float(), wanted))


def run(model: nn.Module, images: Tensor) -> Tensor:
    """Return the model's output: of several tensors, the first with real numbers."""
    # Not torch.manual_seed, which would leave a seed waiting for a GPU that is not used yet.
    torch.default_generator.manual_seed(SEED)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(SEED)
    output = next(_tensors(model(images)), None)
    if output is None:
        raise GammabetaError(f"{type(model).__name__} returns no tensor of real numbers")
    return output


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)
    elif dataclasses.is_dataclass(output):
        for entry in dataclasses.fields(output):
            yield from _tensors(getattr(output, entry.name))


def to_training(model: nn.Module, stay: Iterable[str] = ()) -> None:
    """Put a model into training mode, but for frozen layers and those that cannot.

    A model in training mode already keeps its modes: who put single layers into eval mode there,
    trains like that.
    """
    if not model.training:
        model.train()
    for path in stay:
        for module in model.get_submodule(path).modules():
            module.training = False


def only_batch_norms(model: nn.Module, stay: Iterable[str] = ()) -> None:
    """Put batch norms alone into training mode, so that no dropout blurs the comparison."""
    to_training(model, stay)
    training = [m for m in model.modules() if is_batch_norm(m) and m.training]
    to_eval(model)
    for layer in training:
        layer.training = True


def to_eval(model: nn.Module) -> None:
    """Put every module into eval mode."""
    for module in model.modules():
        module.training = False


def leaf(images: Tensor) -> Tensor:
    """Return the batch as something that gradients reach, though every weight may be frozen."""
    images = images.detach().clone()
    # The model gets a copy that is no leaf, as it may write into its input.
    return images.requires_grad_().clone() if images.is_floating_point() else images
