"""What may follow a batch norm in one fused pass, written to be read: the oracle of every fusion.

y = pool(act(BN(x) + residual)), in NumPy float64, with the notation of :mod:`gammabeta.equations`.
Activations at their kinks, ties in pooling and NaN are answered as torch answers them on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gammabeta.equations import (
    Array,
    batch_norm_backward,
    batch_norm_eval,
    batch_norm_eval_backward,
    batch_statistics,
)

Function: TypeAlias = Callable[[Array, float], Array]
Statistics: TypeAlias = tuple[ArrayLike, ArrayLike]
Places: TypeAlias = NDArray[np.int64]

POOLS = {2: (2, 2, 0), 3: (3, 2, 1)}  # kernel, stride, padding


def _f64(values: ArrayLike) -> Array:
    return np.asarray(values, dtype=np.float64)


_erfc = np.vectorize(math.erfc, otypes=[np.float64])
_TANH_SCALE, _TANH_CUBE = math.sqrt(2 / math.pi), 0.044715


def _sigmoid(z: Array) -> Array:
    small = np.exp(-np.abs(z))
    return _f64(np.where(z >= 0, 1, small) / (1 + small))


def _normal_cdf(z: Array) -> Array:
    return _f64(_erfc(-z / math.sqrt(2))) / 2


def _tanh_inner(z: Array) -> Array:
    return np.tanh(_TANH_SCALE * (z + _TANH_CUBE * z**3))


def _gelu_grad(z: Array) -> Array:
    return _normal_cdf(z) + z * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh_grad(z: Array) -> Array:
    t = _tanh_inner(z)
    return (1 + t) / 2 + z / 2 * (1 - t * t) * _TANH_SCALE * (1 + 3 * _TANH_CUBE * z * z)


def _silu_grad(z: Array) -> Array:
    return _sigmoid(z) * (1 + z * (1 - _sigmoid(z)))


def _hardswish_grad(z: Array) -> Array:
    return np.where(z <= -3, 0, np.where(z < 3, z / 3 + 0.5, 1))


# (function, derivative), each of (z, negative_slope).
ACTIVATIONS: dict[str, tuple[Function, Function]] = {
    "identity": (lambda z, _: z, lambda z, _: np.ones_like(z)),
    "relu": (lambda z, _: np.maximum(z, 0), lambda z, _: np.where(z <= 0, 0.0, 1.0)),
    "relu6": (
        lambda z, _: np.clip(z, 0, 6),
        lambda z, _: np.where((z <= 0) | (z >= 6), 0.0, 1.0),
    ),
    "leaky_relu": (
        lambda z, slope: np.where(z > 0, z, slope * z),
        lambda z, slope: np.where(z > 0, 1.0, slope),
    ),
    "gelu": (lambda z, _: z * _normal_cdf(z), lambda z, _: _gelu_grad(z)),
    "gelu_tanh": (lambda z, _: z / 2 * (1 + _tanh_inner(z)), lambda z, _: _gelu_tanh_grad(z)),
    "silu": (lambda z, _: z * _sigmoid(z), lambda z, _: _silu_grad(z)),
    "hardswish": (lambda z, _: z * np.clip(z + 3, 0, 6) / 6, lambda z, _: _hardswish_grad(z)),
}


def _activation(name: str | None, approximate: str) -> tuple[Function, Function]:
    tanh = name == "gelu" and approximate == "tanh"
    return ACTIVATIONS["gelu_tanh" if tanh else name or "identity"]


def activate(
    z: ArrayLike, name: str | None, negative_slope: float = 0.01, approximate: str = "none"
) -> Array:
    """Apply the activation of that name in ``ACTIVATIONS``; None is the identity.

    ``negative_slope`` is leaky_relu's alone, ``approximate`` ("none", "tanh") gelu's, as in torch.
    """
    return _activation(name, approximate)[0](_f64(z), negative_slope)


def activation_gradient(
    z: ArrayLike, name: str | None, negative_slope: float = 0.01, approximate: str = "none"
) -> Array:
    """Return the derivative of ``activate`` at z; at a kink and at NaN, the value torch takes."""
    return _activation(name, approximate)[1](_f64(z), negative_slope)


def _windows(plane: Array, pool: int, fill: float) -> Array:
    """Return (..., H', W', k²): the values under each window, with ``fill`` as padding."""
    kernel, stride, padding = POOLS[pool]
    border = [(0, 0)] * (plane.ndim - 2) + [(padding, padding)] * 2
    padded = np.pad(plane, border, constant_values=fill)
    views = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(-2, -1))
    views = views[..., ::stride, ::stride, :, :]
    return views.reshape(*views.shape[:-2], kernel * kernel)


def max_pool(x: ArrayLike, pool: int = 2) -> tuple[Array, Places]:
    """Take the maximum over windows of the last two axes: pool 2 is 2x2/2, 3 is 3x3/2 padded by 1.

    As torch does: padding counts as −∞ and never wins, incomplete windows are dropped, the first of
    equal values wins in row-major order, and NaN wins over all (the last, if there are several).

    Returns:
        The maxima (…, H', W') and the place of each in its flattened H·W plane.
    """
    x = _f64(x)
    values = _windows(x, pool, -np.inf)
    plane = x.shape[-2:]
    place = _windows(np.arange(float(math.prod(plane))).reshape(plane), pool, -1)
    best = values.max(axis=-1)
    is_nan = np.isnan(best)
    wins = np.where(is_nan[..., None], np.isnan(values), values == best[..., None]) & (place >= 0)
    last = wins.shape[-1] - 1 - wins[..., ::-1].argmax(axis=-1)
    choice = np.where(is_nan, last, wins.argmax(axis=-1))[..., None]
    chosen = np.take_along_axis(np.broadcast_to(place, values.shape), choice, axis=-1)
    return best, chosen[..., 0].astype(np.int64)


def max_pool_backward(dy: ArrayLike, places: Places, shape: tuple[int, ...]) -> Array:
    """Return dx of ``shape``: each dy is added where its maximum came from."""
    dy = _f64(dy)
    dx = np.zeros((math.prod(shape[:-2]), math.prod(shape[-2:])))
    flat = places.reshape(len(dx), math.prod(dy.shape[-2:]))
    np.add.at(dx, (np.arange(len(dx))[:, None], flat), dy.reshape(flat.shape))
    return dx.reshape(shape)


def batch_norm_act(
    x: ArrayLike,
    gamma: ArrayLike = 1.0,
    beta: ArrayLike = 0.0,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    approximate: str = "none",
    residual: ArrayLike | None = None,
    pool: int | None = None,
    statistics: Statistics | None = None,
) -> Array:
    """Return pool(act(BN(x) + residual)); ``residual`` has the shape of x.

    ``statistics`` of None are those of the batch; a pair (mean, var) is constant, as in eval mode.
    """
    z = _before_activation(x, gamma, beta, eps, residual, statistics)
    y = activate(z, activation, negative_slope, approximate)
    return y if pool is None else max_pool(y, pool)[0]


def batch_norm_act_backward(
    dy: ArrayLike,
    x: ArrayLike,
    gamma: ArrayLike = 1.0,
    beta: ArrayLike = 0.0,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    approximate: str = "none",
    residual: ArrayLike | None = None,
    pool: int | None = None,
    statistics: Statistics | None = None,
) -> tuple[Array, Array, Array, Array]:
    """Return dx, dγ, dβ and dresidual of ``batch_norm_act``, each link's derivative in turn.

    ``dresidual`` is the gradient at BN's output; it is returned without a residual as well.
    """
    z = _before_activation(x, gamma, beta, eps, residual, statistics)
    dy = _f64(dy)
    if pool is not None:
        places = max_pool(activate(z, activation, negative_slope, approximate), pool)[1]
        dy = max_pool_backward(dy, places, z.shape)
    dz = dy * activation_gradient(z, activation, negative_slope, approximate)
    if statistics is None:
        return *batch_norm_backward(dz, x, gamma, eps), dz
    return *batch_norm_eval_backward(dz, x, *statistics, gamma, eps), dz


def _before_activation(
    x: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    eps: float,
    residual: ArrayLike | None,
    statistics: Statistics | None,
) -> Array:
    """Return z = BN(x) + residual."""
    mean, var = batch_statistics(x) if statistics is None else statistics
    z = batch_norm_eval(x, mean, var, gamma, beta, eps)
    return z if residual is None else z + _f64(residual)
