"""Checking a folding by itself: the layers' own forwards against the new weights, in float64.

What is checked here is the arithmetic, not the rounding: on a small random input, the batch norms
and the layer between them, as copies of their own classes, must return what the layer returns with
the new weight and bias, up to 1e-10 of the largest sum that occurs in it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gammabeta.errors import GammabetaError
from gammabeta.surgery.folding.affine import ChannelAffine
from gammabeta.surgery.folding.norms import Norm
from gammabeta.surgery.folding.report import Verified
from gammabeta.surgery.folding.weights import Folding

_SHARE = 1e-10
_HOW = "each layer by itself, in float64 on random data; give example_inputs to compare the whole"


def check(
    foldings: Iterable[Folding], affine: Iterable[tuple[Norm, ChannelAffine]]
) -> Verified | None:
    """Check all that is to be folded.

    Returns:
        The comparison that comes nearest to its bound; None if there was nothing to check.

    Raises:
        GammabetaError: If a difference exceeds its bound.
    """
    found = [(folding.path, *_layer(folding)) for folding in foldings]
    found += [(norm.path, *_norm(norm)) for norm, _ in affine]
    if not found:
        return None
    path, error, bound = max(found, key=lambda row: row[1] / row[2] if row[2] else row[1])
    if not error <= bound:
        raise GammabetaError(
            f"folding would change what {path} computes: the difference is {error:.3g} on random "
            f"data, and the bound {bound:.3g}; the model was left as it was"
        )
    return Verified(error, bound, _HOW)


@torch.no_grad()
def _layer(folding: Folding) -> tuple[float, float]:
    """Return difference and bound of a layer that takes batch norms."""
    x = _input(folding)
    inner = x
    for norm, repeats in reversed(folding.before):
        inner = _normalise(norm, repeats, inner)
    unfolded = copy.deepcopy(folding.layer).to("cpu", torch.float64)
    expected = unfolded(inner)
    for norm in folding.after:
        expected = norm.twin()(expected)
    folded = _with(unfolded, folding.weight, folding.bias)
    difference = (folded(x) - expected).abs()
    largest = _with(unfolded, unfolded.weight.abs(), folding.bias.abs())(inner.abs()).abs()
    for norm in folding.after:
        largest = largest * norm.scale.abs().max()
    return float(difference.max()), _SHARE * float(largest.max() + expected.abs().max())


@torch.no_grad()
def _norm(norm: Norm) -> tuple[float, float]:
    """Return difference and bound of a batch norm that becomes a scale and a shift."""
    x = _random(2, norm.channels, *[2] * (norm.ranks[0] - 2))
    expected, tail = norm.twin()(x), [1] * (x.dim() - 2)
    got = x * norm.scale.view(-1, *tail) + norm.shift.view(-1, *tail)
    largest = (x.abs() * norm.scale.abs().view(-1, *tail)).max() + norm.shift.abs().max()
    return float((got - expected).abs().max()), _SHARE * float(largest)


def _input(folding: Folding) -> Tensor:
    """Return a small input: a window and a step of a convolution, so that all of it is used."""
    layer = folding.layer
    if not isinstance(layer, _ConvNd):
        return _random(3, layer.in_features)
    padding = layer.padding if isinstance(layer.padding, tuple) else [0] * len(layer.kernel_size)
    windows = zip(layer.kernel_size, layer.dilation, layer.stride, padding, strict=True)
    sizes = [d * (k - 1) + 1 + s + 2 * p for k, d, s, p in windows]
    return _random(2, layer.in_channels, *sizes)


def _normalise(norm: Norm, repeats: int, x: Tensor) -> Tensor:
    """Apply a batch norm to what may be its output flattened."""
    if x.dim() > 2 or (repeats == 1 and 2 in norm.ranks):
        return _called(norm, x)
    rank = next(rank for rank in norm.ranks if rank > 2)
    return _called(norm, x.view(len(x), norm.channels, repeats, *[1] * (rank - 3))).flatten(1)


def _called(norm: Norm, x: Tensor) -> Tensor:
    y: Tensor = norm.twin()(x)
    return y


def _with(layer: nn.Module, weight: Tensor, bias: Tensor) -> Any:
    made: Any = copy.deepcopy(layer)
    made.weight, made.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return made


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
