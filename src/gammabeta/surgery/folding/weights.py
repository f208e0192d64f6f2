"""The arithmetic of folding: a scale and a shift become part of a layer's weight and bias.

All of it happens in float64 on the CPU, however many batch norms one layer takes; the result is
rounded once, to the layer's own dtype. ``gammabeta.equations`` has the same formulas in NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from gammabeta.surgery.folding.norms import Norm


@dataclass
class Folding:
    """A convolution or linear layer, and what it has taken so far.

    Args:
        path: Where it is in the model.
        layer: The layer; nothing of it is changed before :meth:`apply`.
        before: Batch norms before it, the nearest first, and the features a channel becomes.
        after: Batch norms after it, the nearest first.
    """

    path: str
    layer: Any
    before: list[tuple[Norm, int]] = field(default_factory=list)
    after: list[Norm] = field(default_factory=list)

    def __post_init__(self) -> None:
        bias = self.layer.bias
        self.weight: Tensor = _wide(self.layer.weight)
        self.bias = self.weight.new_zeros(_outputs(self.layer)) if bias is None else _wide(bias)

    def take_after(self, norm: Norm) -> str | None:
        """Take a batch norm that follows; return why not, if it does not fit."""
        merged = into_previous(self.layer, self.weight, self.bias, norm.scale, norm.shift)
        why = self._misfit(*merged)
        if why is None:
            self.weight, self.bias = merged
            self.after.append(norm)
        return why

    def take_before(self, norm: Norm, repeats: int) -> str | None:
        """Take a batch norm that comes before; return why not, if it does not fit.

        Args:
            norm: The batch norm.
            repeats: Features that each of its channels becomes, where it is flattened.
        """
        scale, shift = (v.repeat_interleave(repeats) for v in (norm.scale, norm.shift))
        merged = into_next(self.layer, self.weight, self.bias, scale, shift)
        why = self._misfit(*merged)
        if why is None:
            self.weight, self.bias = merged
            self.before.append((norm, repeats))
        return why

    def apply(self) -> None:
        """Give the layer its new weight and bias."""
        old = self.layer.weight
        # A new tensor, since other parameters may be views of the old one's memory.
        weight = torch.empty_like(old, memory_format=torch.preserve_format).copy_(self.weight)
        self.layer.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
        wanted = old if self.layer.bias is None else self.layer.bias
        bias = self.bias.to(old.dtype).to(old.device)
        self.layer.bias = nn.Parameter(bias, requires_grad=wanted.requires_grad)

    def _misfit(self, weight: Tensor, bias: Tensor) -> str | None:
        dtype = self.layer.weight.dtype
        if not (_finite(self.weight) and _finite(self.bias)):
            return "its weights are not finite"
        if not (_finite(weight.to(dtype)) and _finite(bias.to(dtype))):
            return f"the folded weights are too large for {dtype}"
        transposed = isinstance(self.layer, _ConvTransposeNd)
        if _lost(weight.transpose(0, 1) if transposed else weight, dtype):
            return f"the folded weights are too small for {dtype}"
        return None


def into_previous(
    layer: nn.Module, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Return W' = s·W and b' = s·b + t, for a scale and a shift of the layer's output.

    Args:
        layer: Says what the axes of the weight are.
        weight: (C_out, C_in / groups, *), of a transposed convolution (C_in, C_out / groups, *).
        bias: (C_out,).
        scale: (C_out,).
        shift: (C_out,).
    """
    if isinstance(layer, _ConvTransposeNd):
        grouped = weight.unflatten(0, (layer.groups, -1))  # (g, C_in/g, C_out/g, *)
        factor = scale.view(layer.groups, 1, -1, *[1] * (weight.dim() - 2))
        return (grouped * factor).flatten(0, 1), scale * bias + shift
    return weight * scale.view(-1, *[1] * (weight.dim() - 1)), scale * bias + shift


def into_next(
    layer: nn.Module, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Return W' = W·s and b' = b + W·t, for a scale and a shift of the layer's input.

    Args:
        layer: Says how many groups there are.
        weight: (C_out, C_in / groups, *).
        bias: (C_out,).
        scale: (C_in,).
        shift: (C_in,).
    """
    groups = getattr(layer, "groups", 1)
    grouped = weight.unflatten(0, (groups, -1))  # (g, C_out/g, C_in/g, *)
    tail = (groups, 1, -1, *[1] * (weight.dim() - 2))
    added = (grouped * shift.view(tail)).flatten(2).sum(2).flatten()
    return (grouped * scale.view(tail)).flatten(0, 1), bias + added


def _wide(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float64)


def _outputs(layer: Any) -> int:
    return int(layer.out_channels if isinstance(layer, _ConvNd) else layer.out_features)


def _finite(values: Tensor) -> bool:
    return bool(values.isfinite().all())


def _lost(weight: Tensor, dtype: torch.dtype) -> bool:
    """Tell whether rounding takes more than its share, as it does near a dtype's smallest values.

    A channel that is nothing beside the others, as weight decay makes of a dead one, may lose more.
    """
    if weight.numel() == 0:
        return False
    rows = weight.flatten(1)
    error, largest = (rows.to(dtype).double() - rows).abs().amax(1), rows.abs().amax(1)
    counts = largest > unit(dtype) * largest.max()
    return bool((counts & (error > 2 * unit(dtype) * largest)).any())


def unit(dtype: torch.dtype) -> float:
    """Return the unit roundoff of a dtype: the largest relative error of rounding to nearest."""
    return torch.finfo(dtype).eps / 2
