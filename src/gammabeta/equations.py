"""The mathematics of batch normalization, written to be read beside a textbook.

Plain NumPy in float64, no torch, no speed: every faster implementation is tested against this file.

Notation: ``x`` is (N, C, *) with any number of trailing axes. Whatever is "per channel" is a vector
(C,), or a number for all channels; its statistics run over every axis but the second, that is over
m = N·(trailing sizes) values. ε is ``eps``, σ = √(var + ε), x̂ = (x − mean) / σ, and ``dy`` stands
for ∂L/∂y. Arguments of any real dtype are converted to float64. NaN and infinities propagate, and
NumPy may warn of them.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.float64]


def _f64(values: ArrayLike) -> Array:
    return np.asarray(values, dtype=np.float64)


def _spread(vector: ArrayLike, like: Array) -> Array:
    """Shape a (C,) vector, or a number, so that it multiplies (N, C, *)."""
    values = np.broadcast_to(_f64(vector), like.shape[1:2])
    return values.reshape(-1, *[1] * (like.ndim - 2))


def _channel_sum(x: Array) -> Array:
    return _f64(x.sum(axis=(0, *range(2, x.ndim))))


def batch_statistics(x: ArrayLike) -> tuple[Array, Array]:
    """Return mean = Σx / m and the biased var = Σ(x − mean)² / m, each (C,).

    Ioffe & Szegedy 2015, algorithm 1; two passes, so that a large mean does not drown the variance.
    """
    x = _f64(x)
    count = x.size // x.shape[1]
    mean = _channel_sum(x) / count
    return mean, _channel_sum((x - _spread(mean, x)) ** 2) / count


def normalize(x: ArrayLike, mean: ArrayLike, var: ArrayLike, eps: float) -> Array:
    """Return x̂ = (x − mean) / √(var + ε)."""
    x = _f64(x)
    return (x - _spread(mean, x)) / np.sqrt(_spread(var, x) + eps)


def scale_shift(xhat: ArrayLike, gamma: ArrayLike, beta: ArrayLike) -> Array:
    """Return y = γ·x̂ + β."""
    xhat = _f64(xhat)
    return _spread(gamma, xhat) * xhat + _spread(beta, xhat)


def batch_norm(
    x: ArrayLike, gamma: ArrayLike = 1.0, beta: ArrayLike = 0.0, eps: float = 1e-5
) -> Array:
    """Normalise by the statistics of the batch: y = γ·(x − mean) / √(var + ε) + β.

    Example:
        >>> batch_norm([[1.0], [2.0], [3.0], [4.0]], gamma=2.0, beta=1.0, eps=0.0).ravel().round(3)
        array([-1.683,  0.106,  1.894,  3.683])
    """
    return scale_shift(normalize(x, *batch_statistics(x), eps), gamma, beta)


def batch_norm_eval(
    x: ArrayLike,
    running_mean: ArrayLike,
    running_var: ArrayLike,
    gamma: ArrayLike = 1.0,
    beta: ArrayLike = 0.0,
    eps: float = 1e-5,
) -> Array:
    """Normalise by constant statistics: an affine map of each value, blind to its neighbours."""
    return scale_shift(normalize(x, running_mean, running_var, eps), gamma, beta)


def update_running(
    running_mean: ArrayLike,
    running_var: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    count: int,
    momentum: float | None = 0.1,
    num_batches: int = 1,
) -> tuple[Array, Array]:
    """Return the running statistics after one batch: (1 − a)·running + a·new, as torch does.

    Args:
        running_mean: (C,), before the batch.
        running_var: (C,), before the batch.
        mean: (C,), of the batch.
        var: (C,), of the batch, biased; its unbiased form var·m / (m − 1) enters the average.
        count: m, the values per channel.
        momentum: The weight a of the new batch; None for the cumulative average a = 1/num_batches.
        num_batches: Batches seen, this one included. Read only if ``momentum`` is None.

    Raises:
        ValueError: If ``count`` is below 2, where the unbiased variance does not exist.
    """
    if count < 2:
        raise ValueError(f"an unbiased variance needs 2 values per channel or more, not {count}")
    weight = 1 / num_batches if momentum is None else momentum
    unbiased = _f64(var) * count / (count - 1)
    return (
        (1 - weight) * _f64(running_mean) + weight * _f64(mean),
        (1 - weight) * _f64(running_var) + weight * unbiased,
    )


def fold_linear(
    weight: ArrayLike,
    bias: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike = 1.0,
    beta: ArrayLike = 0.0,
    eps: float = 1e-5,
) -> tuple[Array, Array]:
    """Merge an eval-mode batch norm into the linear map or convolution before it.

    With s = γ / √(var + ε): W' = s·W and b' = β + s·(b − mean). W is (C, …), b is (C,) or a number.
    Jacob et al. 2018, arXiv:1712.05877, section 3.2.
    """
    weight = _f64(weight)
    scale = np.broadcast_to(_f64(gamma) / np.sqrt(_f64(var) + eps), weight.shape[:1])
    folded = scale.reshape(-1, *[1] * (weight.ndim - 1)) * weight
    return folded, _f64(beta) + scale * (_f64(bias) - _f64(mean))


def fold_into_next(
    weight: ArrayLike,
    bias: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike = 1.0,
    beta: ArrayLike = 0.0,
    eps: float = 1e-5,
) -> tuple[Array, Array]:
    """Merge an eval-mode batch norm into the linear map, or unpadded convolution, after it.

    With s = γ / √(var + ε) and t = β − s·mean: W'[o, c, …] = W[o, c, …]·s[c] and
    b'[o] = b[o] + Σ W[o, c, …]·t[c], over all but o. W is (C_out, C, …), b is (C_out,) or a number.
    Where a convolution pads with zeros it is not exact: batch norm would make t of them.
    """
    weight = _f64(weight)
    scale = np.broadcast_to(_f64(gamma) / np.sqrt(_f64(var) + eps), weight.shape[1:2])
    shift = _f64(beta) - scale * _f64(mean)
    added = (weight * _spread(shift, weight)).sum(axis=tuple(range(1, weight.ndim)))
    return weight * _spread(scale, weight), _f64(bias) + added


class Paths(NamedTuple):
    """The three ways by which x reaches y; ``sum(paths)`` is dx."""

    direct: Array
    through_mean: Array
    through_variance: Array


def backward_paths(dy: ArrayLike, x: ArrayLike, gamma: ArrayLike = 1.0, eps: float = 1e-5) -> Paths:
    """Split dx by path, each part (N, C, *); Ioffe & Szegedy 2015, section 3, rewritten with x̂.

    With dx̂ = γ·dy: direct dx̂/σ, through the mean −Σdx̂ / (mσ), through the variance
    −x̂·Σ(dx̂·x̂) / (mσ). The variance's own dependence on the mean is −2Σ(x − mean)/m = 0.
    """
    dy, x = _f64(dy), _f64(x)
    count = x.size // x.shape[1]
    mean, var = batch_statistics(x)
    xhat = normalize(x, mean, var, eps)
    sigma = np.sqrt(_spread(var, x) + eps)
    dxhat = _spread(gamma, x) * dy
    return Paths(
        dxhat / sigma,
        np.broadcast_to(-_spread(_channel_sum(dxhat), x) / (count * sigma), x.shape),
        -xhat * _spread(_channel_sum(dxhat * xhat), x) / (count * sigma),
    )


def batch_norm_backward(
    dy: ArrayLike, x: ArrayLike, gamma: ArrayLike = 1.0, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """Return dx (N, C, *), dγ (C,), dβ (C,) of training mode.

    dβ = Σdy, dγ = Σ(dy·x̂), dx = γ / (mσ) · (m·dy − dβ − x̂·dγ).
    """
    dy, x = _f64(dy), _f64(x)
    count = x.size // x.shape[1]
    mean, var = batch_statistics(x)
    xhat = normalize(x, mean, var, eps)
    dbeta, dgamma = _channel_sum(dy), _channel_sum(dy * xhat)
    dx = count * dy - _spread(dbeta, x) - xhat * _spread(dgamma, x)
    return dx * _spread(gamma, x) / (count * np.sqrt(_spread(var, x) + eps)), dgamma, dbeta


def batch_norm_eval_backward(
    dy: ArrayLike,
    x: ArrayLike,
    running_mean: ArrayLike,
    running_var: ArrayLike,
    gamma: ArrayLike = 1.0,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array]:
    """Return dx = γ·dy/σ, dγ = Σ(dy·x̂), dβ = Σdy of eval mode: only the direct path is left."""
    dy, x = _f64(dy), _f64(x)
    xhat = normalize(x, running_mean, running_var, eps)
    dx = dy * _spread(gamma, x) / np.sqrt(_spread(running_var, x) + eps)
    return dx, _channel_sum(dy * xhat), _channel_sum(dy)


def ghost_parts(n: int, virtual_batch_size: int, values_per_sample: int = 1) -> list[slice]:
    """Cut n samples into parts of ``virtual_batch_size``, each normalised by itself.

    Hoffer et al. 2017, arXiv:1705.08741, algorithm 1. What is left over is a smaller part of its
    own; where it would hold fewer than two values per channel it joins the part before it.

    Example:
        >>> ghost_parts(9, 4)
        [slice(0, 4, None), slice(4, 9, None)]
        >>> ghost_parts(9, 4, values_per_sample=2)
        [slice(0, 4, None), slice(4, 8, None), slice(8, 9, None)]
    """
    edges = [*range(0, max(n, 1), virtual_batch_size), n]
    if len(edges) > 2 and (n - edges[-2]) * values_per_sample < 2:
        del edges[-2]
    return [slice(a, b) for a, b in pairwise(edges)]


def ghost_momentum(momentum: float, parts: int) -> float:
    """Return the momentum 1 − (1 − a)^(1/k) with which k updates forget as much as one of a."""
    return float(1 - (1 - momentum) ** (1 / parts))


def ghost_batch_norm(
    x: ArrayLike,
    virtual_batch_size: int,
    gamma: ArrayLike = 1.0,
    beta: ArrayLike = 0.0,
    eps: float = 1e-5,
) -> Array:
    """Apply ``batch_norm`` to each of the ``ghost_parts`` of x."""
    x = _f64(x)
    parts = ghost_parts(len(x), virtual_batch_size, math.prod(x.shape[2:]))
    return np.concatenate([batch_norm(x[part], gamma, beta, eps) for part in parts])


def ghost_batch_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    virtual_batch_size: int,
    gamma: ArrayLike = 1.0,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array]:
    """Return dx, part by part, and dγ and dβ, summed over the parts."""
    dy, x = _f64(dy), _f64(x)
    parts = ghost_parts(len(x), virtual_batch_size, math.prod(x.shape[2:]))
    done = [batch_norm_backward(dy[part], x[part], gamma, eps) for part in parts]
    dx, dgamma, dbeta = zip(*done, strict=True)
    return np.concatenate(dx), np.sum(dgamma, axis=0), np.sum(dbeta, axis=0)


def renorm_correction(
    x: ArrayLike,
    running_mean: ArrayLike,
    running_var: ArrayLike,
    eps: float = 1e-5,
    r_max: float = 3.0,
    d_max: float = 5.0,
) -> tuple[Array, Array]:
    """Return r = clip(σ_B/σ, 1/r_max, r_max) and d = clip((mean_B − mean)/σ, −d_max, d_max), (C,).

    Ioffe 2017, arXiv:1702.03275, algorithm 1. The paper keeps a running σ; here, as in the buffers
    of torch, it is σ = √(running_var + ε).
    """
    mean, var = batch_statistics(x)
    sigma = np.sqrt(_f64(running_var) + eps)
    r = np.clip(np.sqrt(var + eps) / sigma, 1 / r_max, r_max)
    return r, np.clip((mean - _f64(running_mean)) / sigma, -d_max, d_max)


def batch_renorm(
    x: ArrayLike,
    correction: tuple[ArrayLike, ArrayLike],
    gamma: ArrayLike = 1.0,
    beta: ArrayLike = 0.0,
    eps: float = 1e-5,
) -> Array:
    """Return y = γ·(x̂·r + d) + β, with (r, d) from ``renorm_correction``.

    Unclipped, r and d turn the batch's statistics into the running ones: training equals eval.
    """
    r, d = correction
    return scale_shift(batch_norm(x, r, d, eps), gamma, beta)


def batch_renorm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    correction: tuple[ArrayLike, ArrayLike],
    gamma: ArrayLike = 1.0,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array]:
    """Return dx, dγ = Σdy·(x̂·r + d), dβ = Σdy; no gradient runs through r and d (section 3)."""
    r, d = (_f64(part) for part in correction)
    dx, dr, dbeta = batch_norm_backward(dy, x, _f64(gamma) * r, eps)
    return dx, r * dr + d * dbeta, dbeta
