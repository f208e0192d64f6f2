"""One training step: forward, loss, check, backward, update; and the optimizer it moves."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gammabeta.training.recipe import Recipe


class Outcome(NamedTuple):
    """What one step saw: mean loss, correct predictions, images. ``loss`` may be non-finite."""

    loss: float
    correct: int
    total: int


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters for an optimizer, so that γ, β and biases are not decayed.

    Decay shrinks weights that a following batch norm makes scale-free anyway; on γ, β and biases
    it only pulls the function itself towards zero (Jia et al. 2018, arXiv:1807.11205, section 3.2).
    Shared parameters appear once; those with ``requires_grad=False`` not at all.

    Args:
        model: Any module.
        weight_decay: For the parameters with two or more dimensions.

    Returns:
        Groups for ``torch.optim``: decayed first, then undecayed; empty ones are left out.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> [(len(g["params"]), g["weight_decay"]) for g in param_groups(model, 5e-4)]
        [(1, 0.0005), (3, 0.0)]
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """Return SGD over the model's parameters as the recipe asks."""
    groups = (
        [{"params": list(model.parameters()), "weight_decay": recipe.weight_decay}]
        if recipe.decay_all
        else param_groups(model, recipe.weight_decay)
    )
    return torch.optim.SGD(
        groups,
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        fused=True,
    )


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float,
    bf16: bool,
) -> Outcome:
    """Take one step, unless the loss is NaN or infinite: then nothing is updated.

    Args:
        model: In training mode; its float32 parameters are updated.
        images: float32, (N, 3, H, W).
        labels: int64, (N,).
        optimizer: Over the model's parameters, its learning rate already set.
        label_smoothing: Share of the target spread over all classes.
        bf16: Whether convolutions and linear layers compute in bfloat16 (autocast).

    Returns:
        The outcome before the update.
    """
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        logits = model(images)
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
    correct = int((logits.argmax(dim=1) == labels).sum())
    outcome = Outcome(loss.item(), correct, len(labels))
    if torch.isfinite(loss):
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return outcome
