"""How rough the loss is along the step that a training is about to take.

Santurkar et al. 2018 (arXiv:1805.11604, section 3.1, figure 4) walk from the weights along the
negative gradient and record, at several step lengths, the loss, how far the gradient has moved, and
the ratio of that to the distance walked: an "effective" smoothness β. All of it is computed here in
float32 on the very batch of the training, and leaves weights, buffers, gradients and the
random state to the bit as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gammabeta.norm.updates import no_stats_update

STEP_SIZES = (0.05, 0.1, 0.2, 0.4)
"""Multiples of the gradient that are walked: those of the paper's figure, for every variant."""


def along_the_step(
    model: nn.Module, images: Tensor, labels: Tensor, *, label_smoothing: float
) -> dict[str, Any]:
    """Walk along the negative gradient and back.

    Args:
        model: In training mode.
        images: float32, (N, 3, H, W).
        labels: int64, (N,).
        label_smoothing: Of the training's loss.

    Returns:
        ``loss`` and ``gradient_norm`` where the walk begins; ``losses``, ``distances`` (of the
        gradient from the first one) and ``smoothness`` (distance of gradients by distance of
        weights), one for each of ``STEP_SIZES``. None where a number is not finite.
    """
    weights = [p for p in model.parameters() if p.requires_grad]

    def look() -> tuple[float, list[Tensor]]:
        torch.set_rng_state(masks)  # Dropout drops the same units in every look
        loss = F.cross_entropy(model(images), labels, label_smoothing=label_smoothing)
        return loss.item(), list(torch.autograd.grad(loss, weights))

    masks = torch.get_rng_state()
    with _unnoticed(weights):
        loss, gradient = look()
        norm = _norm(gradient)
        start = [w.detach().clone() for w in weights]
        losses, distances = [], []
        for size in STEP_SIZES:
            _move(weights, start, gradient, size)
            there, other = look()
            losses.append(there)
            distances.append(_norm([a - b for a, b in zip(other, gradient, strict=True)]))
    walked = [size * norm for size in STEP_SIZES]
    return {
        "loss": known(loss),
        "gradient_norm": known(norm),
        "losses": [known(value) for value in losses],
        "distances": [known(value) for value in distances],
        "smoothness": [known(d / w) if w else None for d, w in zip(distances, walked, strict=True)],
    }


@contextmanager
def _unnoticed(weights: Sequence[Tensor]) -> Iterator[None]:
    """Give weights, buffers and random state back."""
    kept = [w.detach().clone() for w in weights]
    try:
        with torch.random.fork_rng(devices=[]), no_stats_update():
            yield
    finally:
        _set(weights, kept)


def _move(weights: Sequence[Tensor], start: list[Tensor], way: list[Tensor], size: float) -> None:
    _set(weights, [s - size * g for s, g in zip(start, way, strict=True)])


def _set(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for weight, value in zip(weights, values, strict=True):
            weight.copy_(value)


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.stack(torch._foreach_norm(tensors)).norm())


def known(value: float, figures: int = 6) -> float | None:
    """Return the number to some figures, or None where it is NaN or infinite.

    Example:
        >>> known(0.123456789), known(float("nan"))
        (0.123457, None)
    """
    return float(f"{value:.{figures}g}") if value - value == 0 else None
