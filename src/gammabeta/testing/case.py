"""What a behaviour works with: layers of the class under test, inputs, and comparisons.

A case remembers the largest error it measured and the input it used last, so that a behaviour goes
from small inputs to large ones and stops at the first that fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.testing.oracle import definition, normalised, tolerance


class BrokenError(Exception):
    """The class under test does not behave as claimed."""


class NotApplicableError(Exception):
    """The claim does not concern the class under test."""


@dataclass
class Case:
    """One class under test, seen by one behaviour.

    Args:
        make: Called as ``make(num_features, **options)``.
        dims: Ranks of input that it accepts, from 2 to 5.
        modes: "training" and "eval", or "eval" alone.
        plain: Options that turn its activation off.
        relu: Whether its output is that of a ReLU, which cannot be turned off.
    """

    make: Callable[..., nn.Module]
    dims: tuple[int, ...]
    modes: tuple[str, ...] = ("training", "eval")
    plain: dict[str, Any] = field(default_factory=dict)
    relu: bool = False
    error: float | None = None
    where: str = ""
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(7))

    def layer(
        self,
        channels: int,
        mode: str = "training",
        dtype: torch.dtype = torch.float32,
        *,
        with_activation: bool = False,
        **options: Any,
    ) -> nn.Module:
        """Return a layer with random γ, β and running statistics.

        Raises:
            NotApplicableError: If the class takes no such option.
        """
        try:
            layer = self.make(channels, **({} if with_activation else self.plain) | options)
        except TypeError as error:
            if not options:
                raise
            taken = " or ".join(f"`{name}`" for name in options)
            raise NotApplicableError(f"it takes no {taken} argument") from error
        layer = layer.to(dtype).train(mode == "training")
        with torch.no_grad():
            for name, low in (
                ("weight", 0.5),
                ("bias", -1),
                ("running_mean", -1),
                ("running_var", 0.5),
            ):
                tensor = find(layer, name)
                if tensor is not None:
                    tensor.copy_(self.uniform(tensor.shape, low, low + 2))
        return layer

    def uniform(self, shape: tuple[int, ...], low: float, high: float) -> Tensor:
        """Draw float64 values."""
        return low + (high - low) * torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Draw float64 values."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def input(
        self,
        shape: tuple[int, ...],
        mode: str = "training",
        dtype: torch.dtype = torch.float32,
        note: str = "contiguous",
    ) -> Tensor:
        """Draw an input whose channels have means within ±3 and deviations from 0.5 to 2.

        Exactly so, however few the values: a chance variance near zero would magnify rounding.
        """
        self.where = f"{shape} {str(dtype).removeprefix('torch.')} {note} {mode}"
        channel = (1, shape[1], *[1] * (len(shape) - 2))
        x = self.normal(shape)
        if x.numel() > shape[1]:
            x = normalised(x, None, None, 0.0)
        x = x * self.uniform(channel, 0.5, 2) + self.uniform(channel, -3, 3)
        return x.to(dtype).requires_grad_()

    def step(self, layer: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
        """Return output and gradients of the layer for a cotangent."""
        return gradients(layer(x), dy.to(x.dtype), x, find(layer, "weight"), find(layer, "bias"))

    def expected(self, layer: nn.Module, x: Tensor, dy: Tensor, mode: str) -> dict[str, Tensor]:
        """Return what :meth:`step` should, computed in float64 before the layer is called."""
        x64, weight, bias = double(x), find(layer, "weight"), find(layer, "bias")
        weight = None if weight is None else double(weight)
        bias = None if bias is None else double(bias)
        y = self.oracle(layer, x64, weight, bias, mode=mode)
        return gradients(y, dy.to(x.dtype).double(), x64, weight, bias)

    def oracle(
        self, layer: nn.Module, x: Tensor, weight: Tensor | None, bias: Tensor | None, *, mode: str
    ) -> Tensor:
        """Return the definition's output with the layer's eps and, in eval, its statistics."""
        mean, var = (
            find(layer, n) if mode == "eval" else None for n in ("running_mean", "running_var")
        )
        mean, var = (None if t is None else t.detach().clone().double() for t in (mean, var))
        y = definition(x, weight, bias, mean, var, eps_of(layer))
        return y.relu() if self.relu else y

    def close(self, got: Tensor, want: Tensor, what: str, bound: float | None = None) -> None:
        """Fail unless equal within ``bound``, by default the tolerance of ``got``'s dtype.

        The error is relative to the largest expected magnitude, at least 1. NaN and infinities
        must be where they are expected.
        """
        if got.shape != want.shape:
            self.fail(f"{what} has the shape {tuple(got.shape)}, not {tuple(want.shape)}")
        error = difference(got, want)
        bound = tolerance(got.dtype) if bound is None else bound
        if not error <= bound:
            self.error = error
            self.fail(f"{what} is wrong by {error:.2g}, allowed {bound:.1g}")
        self.error = max(error, self.error or 0.0)

    def all_close(self, got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> None:
        """Compare tensors of the same names."""
        for name, tensor in want.items():
            self.close(got[name], tensor, name)

    def fail(self, message: str) -> None:
        """Say what is wrong with the input used last."""
        raise BrokenError(message)


def find(layer: nn.Module, name: str) -> Tensor | None:
    """Return the parameter or buffer of that name in the layer or what it holds, or None."""
    named = chain(layer.named_parameters(), layer.named_buffers())
    return next((tensor for path, tensor in named if path.rsplit(".", 1)[-1] == name), None)


def state(layer: nn.Module) -> dict[str, Tensor]:
    """Return copies of the running statistics and the counter that the layer has."""
    found = {n: find(layer, n) for n in ("running_mean", "running_var", "num_batches_tracked")}
    return {name: tensor.detach().clone() for name, tensor in found.items() if tensor is not None}


def eps_of(layer: nn.Module) -> float:
    """Return the eps of the layer, or of what it holds."""
    found = (getattr(module, "eps", None) for module in layer.modules())
    return next((eps for eps in found if isinstance(eps, float)), 1e-5)


def double(tensor: Tensor) -> Tensor:
    """Return a float64 leaf with the same values."""
    return tensor.detach().double().requires_grad_(tensor.requires_grad)


def gradients(
    y: Tensor, dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> dict[str, Tensor]:
    """Return y and the gradients of the leaves among x, γ and β."""
    named = {"dx": x, "dγ": weight, "dβ": bias}
    leaves = {name: leaf for name, leaf in named.items() if leaf is not None and leaf.requires_grad}
    found = torch.autograd.grad(y, list(leaves.values()), dy)
    return {"y": y.detach(), **dict(zip(leaves, found, strict=True))}


def difference(got: Tensor, want: Tensor) -> float:
    """Return the largest difference over the largest magnitude (at least 1), inf for other NaNs."""
    a, b = got.detach().double(), want.detach().double()
    if a.numel() == 0:
        return 0.0
    finite = a.isfinite() & b.isfinite()
    if not torch.equal(a[~finite].nan_to_num(nan=0.5), b[~finite].nan_to_num(nan=0.5)):
        return math.inf
    a, b = torch.where(finite, a, 0), torch.where(finite, b, 0)
    return float((a - b).abs().max() / b.abs().max().clamp(min=1))
