"""Comparing a folded model with the unfolded one on an example, by a bound that is measured.

Rounding makes a model differ from its own float64 copy by some noise. Folded and unfolded model
each have theirs, and by less than that neither can be told from the other. So with n the larger
noise of the two on these inputs, u the unit roundoff of the output's dtype and L the number of
layers with parameters, the largest difference may be

    8 · (n + u · √(L + 1) · max|y|)

where the second term, the growth of L independent roundings, keeps the bound from vanishing where
the noise of a few numbers happens to be small. A float64 model has no wider copy: its noise is that
of its float32 copy, scaled by the two roundoffs. Where a copy cannot run, or random numbers are
drawn, n is not known, and the bound is 32 · u · (L + 1) · max|y|.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from gammabeta.errors import GammabetaError
from gammabeta.surgery.check import run
from gammabeta.surgery.folding.report import Verified
from gammabeta.surgery.folding.weights import unit

Outputs = list[Tensor]
_HOW = "on example_inputs"


def verify(unfolded: nn.Module, folded: nn.Module, inputs: Any, paths: Sequence[str]) -> Verified:
    """Compare two models on an example, in the modes that they have.

    Args:
        unfolded: A copy of the model, which is used up.
        folded: The folded model; afterwards it is as before.
        inputs: A tensor, or a tuple of all arguments.
        paths: Layers whose outputs should be alike, in order, to name the first that is not.

    Returns:
        The comparison of the output that comes nearest to its bound.

    Raises:
        GammabetaError: If one of them fails, or they differ by more than the bound.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> verify(copy.deepcopy(layer), layer, torch.ones(1, 3), []).error
        0.0
    """
    expected, drew = _run(unfolded, inputs, "the model fails on example_inputs")
    got, _ = _run(folded, inputs, "the folded model fails on example_inputs")
    if [y.shape for y in expected] != [y.shape for y in got]:
        raise GammabetaError("the folded model's outputs have other shapes than the model's")
    if not expected:
        raise GammabetaError("the model returns no floating-point tensor that could be compared")
    layers = sum(bool(m._parameters) for m in unfolded.modules())
    twins = None if drew else _Twins(unfolded, folded, inputs, expected, got)
    why = twins.why if twins else "random numbers are drawn"
    noise = twins.noise if twins and not why else [math.nan] * len(got)
    found = [
        _compared(a, b, n, layers, f"{_HOW}; a bound of the dtype's, since {why}" if why else _HOW)
        for a, b, n in zip(expected, got, noise, strict=True)
    ]
    worst = max(found, key=_share)
    if not worst.error <= worst.bound:
        where = twins.where(paths) if twins else ""
        raise GammabetaError(
            f"the folded model's output differs by {worst.error:.3g} on example_inputs, and the "
            f"bound is {worst.bound:.3g}{where}; the model was left as it was"
        )
    return worst


class _Twins:
    """Copies of both models in another precision.

    Attributes:
        noise: For each output, the larger rounding error of the two models.
        why: Why it could not be measured, or nothing.
    """

    def __init__(
        self, unfolded: nn.Module, folded: nn.Module, inputs: Any, expected: Outputs, got: Outputs
    ) -> None:
        own = expected[0].dtype
        other = torch.float32 if own == torch.float64 else torch.float64
        factor = unit(own) / unit(other) if own == torch.float64 else 1.0
        self.noise: list[float] = []
        self.why = ""
        self._limit = 1e3 * max(unit(own), unit(other))
        self._inputs = tree_map(partial(_cast, dtype=other), inputs)
        self._models = [m.to(other) for m in (unfolded, copy.deepcopy(folded))]
        try:
            mine, theirs = (run(m, self._inputs, evaluate=False)[0] for m in self._models)
            self.noise = [
                factor * max(_difference(a, c), _difference(b, d))
                for a, b, c, d in zip(expected, got, mine, theirs, strict=True)
            ]
        except Exception as error:  # noqa: BLE001 (any code of the user's runs here)
            self.why = f"its {other} copy fails: {str(error).partition(chr(10))[0]}"
        else:
            if not all(map(math.isfinite, self.noise)):
                self.why = f"its {other} copy gives other infinities"

    def where(self, paths: Sequence[str]) -> str:
        """Name in words the first layer whose output is not the same in both."""
        if self.why:
            return ""
        mine, theirs = (self._outputs(model, paths) for model in self._models)
        for path in paths:
            for a, b in zip(mine[path], theirs[path], strict=False):
                if _difference(a, b) > self._limit * _largest(a):
                    return f"; the first layer that differs is {path}"
        return ""

    def _outputs(self, model: nn.Module, paths: Sequence[str]) -> dict[str, Outputs]:
        """Return what the layers at some paths return, call by call."""
        seen: dict[str, Outputs] = {path: [] for path in paths}
        for path in paths:
            model.get_submodule(path).register_forward_hook(
                lambda _module, _args, y, path=path: seen[path].append(y.clone())
            )
        run(model, self._inputs, evaluate=False)
        return seen


def _compared(a: Tensor, b: Tensor, noise: float, layers: int, how: str) -> Verified:
    """Compare one output; a noise of NaN is one that is not known."""
    scale = unit(a.dtype) * _largest(a)
    known = 8 * (noise + math.sqrt(layers + 1) * scale)
    bound = 32 * (layers + 1) * scale if math.isnan(noise) else known
    return Verified(_difference(a, b), bound, how)


def _share(verified: Verified) -> float:
    """Return how much of its bound an error takes up."""
    if verified.bound:
        return verified.error / verified.bound
    return math.inf if verified.error else 0.0


def _run(model: nn.Module, inputs: Any, failing: str) -> tuple[Outputs, bool]:
    try:
        return run(model, inputs, evaluate=False)
    except GammabetaError:
        raise
    except Exception as error:
        raise GammabetaError(f"{failing}: {error}") from error


def _cast(value: Any, dtype: torch.dtype) -> Any:
    floats = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if floats else value


def _largest(y: Tensor) -> float:
    finite = y.double()[y.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference; infinite where NaN or an infinity is not met by its like."""
    a, b = a.double(), b.double()
    known = a.isfinite() & b.isfinite()
    if not torch.equal(a[~known].nan_to_num(0.5), b[~known].nan_to_num(0.5)):
        return math.inf
    return _largest(a[known] - b[known])
