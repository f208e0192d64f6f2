"""One channel with all its numbers: the formula at work, forward and backward.

Everything here is computed by :mod:`gammabeta.equations` in float64 from what the layer really
received, and compared with what the layer itself computed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gammabeta import equations as eq
from gammabeta.equations_act import activate
from gammabeta.insight.explanation.measure import Array, Measured
from gammabeta.insight.explanation.numbers import brief, exact

SHOWN = 8
"""Values shown of a channel."""
BINS = 32


def channel(found: Measured, place: int) -> dict[str, Any]:
    """Return the numbers of one picked channel.

    Args:
        found: The layer, its backward pass done.
        place: Of the channel among those picked.
    """
    return _Channel(found, place).describe()


class _Channel:
    """A channel's values as a batch of one channel: x, x̂, y, z are (n, 1, *)."""

    def __init__(self, found: Measured, place: int) -> None:
        assert found.picked is not None  # noqa: S101 (chosen when it was measured)
        self.found, self.seen = found, found.seen
        self.index = found.picked[place]
        self.x: Array = found.seen.x[:, place : place + 1]
        self.real_y, self.residual, self.dy, self.real_dx = (
            None if kept is None else kept[:, place : place + 1]
            for kept in (found.seen.y, found.seen.residual, found.seen.dy, found.seen.dx)
        )
        self.eps = float(found.seen.layer.eps)
        self.mean, self.var = (s[self.index : self.index + 1] for s in self._statistics())
        self.gamma, self.beta = (p[self.index] for p in found.affine)
        self.xhat = eq.normalize(self.x, self.mean, self.var, self.eps)
        self.y = eq.scale_shift(self.xhat, self.gamma, self.beta)
        self.z = self._activated()
        order = np.argsort(self.x, axis=None, kind="stable")
        ranks = (2 * np.arange(SHOWN) + 1) * order.size // (2 * SHOWN)
        self.shown = order[ranks] if order.size >= SHOWN else np.arange(order.size)

    def describe(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "count": int(self.x.size),
            "mean": float(self.mean[0]),
            "var": float(self.var[0]),
            "std": math.sqrt(float(self.var[0]) + self.eps),
            "eps": self.eps,
            "gamma": float(self.gamma),
            "beta": float(self.beta),
            "statistics": "batch" if self.seen.batch else "running",
            "running": self._running(),
            "values": self._values(),
            "histograms": {
                name: _histogram(values)
                for name, values in zip(("x", "xhat", "y", "z"), self._steps(), strict=True)
            },
            "check": _agreement(self.real_y, self.y),
            "backward": None if self.dy is None else self._backward(self.dy),
        }

    def _statistics(self) -> tuple[Array, Array]:
        """Return E[x] and Var[x] (C,) as equations.py computes them, or those that were given."""
        if not self.seen.batch:
            return self.found.statistics
        mean, var = np.zeros((2, len(self.found.moments.mean)))
        mean[self.index], var[self.index] = (float(s[0]) for s in eq.batch_statistics(self.x))
        return mean, var

    def _activated(self) -> Array | None:
        known = self.found.following
        if (
            known.epilogue is None
            or known.activation is None
            or (known.adds and self.residual is None)
        ):
            return None
        e = known.epilogue
        z = self.y if self.residual is None else self.y + self.residual
        return activate(z, e.activation, e.negative_slope, e.approximate)

    def _steps(self) -> list[Array | None]:
        return [self.x, self.xhat, self.y, self.z]

    def _eight(self, values: Array | None) -> list[float] | None:
        return None if values is None else exact(values.ravel()[self.shown])

    def _values(self) -> dict[str, Any]:
        n, _, *rest = self.x.shape
        where = np.stack(np.unravel_index(self.shown, (n, *rest)), axis=1)
        return {
            "where": where.tolist(),
            "x": self._eight(self.x),
            "centred": self._eight(self.x - self.mean[0]),
            "xhat": self._eight(self.xhat),
            "y": self._eight(self.y),
            "z": self._eight(self.z),
            "residual": self._eight(self.residual),
            "layer_y": self._eight(self.real_y),
        }

    def _running(self) -> dict[str, Any] | None:
        """Return the running statistics' update; one batch in several parts is several updates."""
        seen = self.seen
        if seen.before is None or seen.after is None or self.x.shape[0] < self.found.samples:
            return None
        mean, var = (float(s[self.index]) for s in seen.before)
        after = [float(s[self.index]) for s in seen.after]
        m = self.x.size
        return {
            "mean_before": mean,
            "var_before": var,
            "mean_after": after[0],
            "var_after": after[1],
            "momentum": seen.momentum,
            "unbiased_var": float(self.var[0]) * m / (m - 1) if seen.batch else None,
        }

    def _backward(self, dy: Array) -> dict[str, Any]:
        if self.seen.batch:
            paths = list(eq.backward_paths(dy, self.x, self.gamma, self.eps))
        else:
            dx, _, _ = eq.batch_norm_eval_backward(
                dy, self.x, self.mean, self.var, self.gamma, self.eps
            )
            paths = [dx, np.zeros_like(dx), np.zeros_like(dx)]
        dx = paths[0] + paths[1] + paths[2]
        shown = self.xhat.ravel()[self.shown]
        names = ("dy", "direct", "mean", "variance", "dx", "layer_dx")
        parts = [dy, *paths, dx, self.real_dx]
        return {
            **{n: self._eight(p) for n, p in zip(names, parts, strict=True)},
            "gamma_over_std": float(self.gamma / math.sqrt(self.var[0] + self.eps)),
            "mean_dy": float(dy.mean()),
            "mean_dy_xhat": float((dy * self.xhat).mean()),
            "sum_dx": float(dx.sum()),
            "dot_dx_xhat": float((dx * self.xhat).sum()),
            "jacobian": brief(self._jacobian(shown, self.x.size, float(self.var[0]))),
            "small": brief(self._small()),
            "check": _agreement(self.real_dx, dx),
        }

    def _jacobian(self, xhat: Array, count: int, var: float) -> Array:
        """Return ∂y_i/∂x_j = γ/σ·(δij − 1/m − x̂i·x̂j/m) of these values, of ``count`` in all."""
        kept = np.eye(len(xhat))
        if self.seen.batch:
            kept = kept - 1 / count - np.outer(xhat, xhat) / count
        jacobian: Array = self.gamma / math.sqrt(var + self.eps) * kept
        return jacobian

    def _small(self) -> Array:
        """Return the Jacobian of the values shown, taken as a batch of their own."""
        alone = self.x.ravel()[self.shown][:, None]
        mean, var = (self.mean, self.var) if not self.seen.batch else eq.batch_statistics(alone)
        xhat = eq.normalize(alone, mean, var, self.eps).ravel()
        return self._jacobian(xhat, len(xhat), float(var[0]))


def _histogram(values: Array | None) -> dict[str, Any] | None:
    if values is None or not np.isfinite(values).all():
        return None
    counts, edges = np.histogram(values, BINS)
    return {"edges": brief(edges), "counts": counts.tolist()}


def _agreement(real: Array | None, computed: Array) -> dict[str, Any] | None:
    """Return the largest difference, and to how many digits of the largest value they agree."""
    if real is None:
        return None
    error = float(np.abs(real - computed).max(initial=0))
    scale = float(np.abs(computed).max(initial=0))
    if not math.isfinite(error) or not math.isfinite(scale):
        return {"max_error": None, "digits": 0}
    digits = 15 if error == 0 else math.floor(-math.log10(error / max(scale, 1e-300)))
    return {"max_error": error, "digits": min(15, max(0, digits))}
