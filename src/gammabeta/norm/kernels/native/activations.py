"""Activations and their derivatives on vectors, without a call into a scalar mathematics library.

At kinks and at NaN they answer as torch does on the CPU. The exponential is within 2 units in the
last place, the error function within 6: below the rounding of what they are multiplied with.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numba.extending import overload

from gammabeta.norm.kernels.native.simd import (
    at_least,
    choose,
    greater,
    greater_or_nan,
    multiply_add,
    power_of_two,
    round_even,
    splat,
)

_f = np.float32
_LOG2_E = _f(math.log2(math.e))
_LN2_HIGH, _LN2_LOW = _f(0.693359375), _f(-2.12194440e-4)  # their sum is ln 2; the first is short
_E0, _E1, _E2, _E3, _E4, _E5 = (
    _f(c)
    for c in (
        1.9875691500e-4,
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        0.5,
    )
)  # exp(r) = 1 + r + r²·P(r): Moshier, Cephes, expf.c
_LOW, _HIGH = _f(-87.0), _f(88.0)
_ZERO, _ONE, _THREE, _SIX, _HALF = _f(0), _f(1), _f(3), _f(6), _f(0.5)
_SIXTH, _THIRD = _f(1 / 6), _f(1 / 3)
_SQRT_HALF, _DENSITY = _f(math.sqrt(0.5)), _f(1 / math.sqrt(2 * math.pi))
_TANH_SCALE, _TANH_CUBE = _f(2 * math.sqrt(2 / math.pi)), _f(0.044715)


@njit
def exponential(x: Any) -> Any:
    """Return eˣ, for x held between -87 and 88."""
    x = choose(greater(x, splat(_HIGH, x)), splat(_HIGH, x), x)
    tame = choose(greater(x, splat(_LOW, x)), x, splat(_LOW, x))  # a NaN cannot be an exponent
    whole = round_even(tame * splat(_LOG2_E, x))
    x = choose(greater(splat(_LOW, x), x), splat(_LOW, x), x)
    rest = multiply_add(whole, splat(-_LN2_HIGH, x), x)
    rest = multiply_add(whole, splat(-_LN2_LOW, x), rest)
    p = splat(_E0, x)
    for c in (_E1, _E2, _E3, _E4, _E5):
        p = multiply_add(p, rest, splat(c, x))
    p = multiply_add(p, rest * rest, rest) + splat(_ONE, x)
    return p * power_of_two(whole)


@njit
def sigmoid(x: Any) -> Any:
    """Return 1 / (1 + e⁻ˣ)."""
    one = splat(_ONE, x)
    return one / (one + exponential(splat(_ZERO, x) - x))


_ERF_TOP = tuple(
    _f(c)
    for c in (
        -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
        -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
    )
)  # fmt: skip
_ERF_BOTTOM = tuple(
    _f(c)
    for c in (
        -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
        -1.42647390514189e-02,
    )
)  # fmt: skip
_FOUR = _f(4)


@njit
def erf(x: Any) -> Any:
    """Return the error function: the rational approximation of Eigen, which XLA uses too."""
    four = splat(_FOUR, x)
    x = choose(greater(x, four), four, x)
    x = choose(greater(splat(-_FOUR, x), x), splat(-_FOUR, x), x)
    square = x * x
    top, bottom = splat(_ERF_TOP[0], x), splat(_ERF_BOTTOM[0], x)
    for c in _ERF_TOP[1:]:
        top = multiply_add(top, square, splat(c, x))
    for c in _ERF_BOTTOM[1:]:
        bottom = multiply_add(bottom, square, splat(c, x))
    return x * top / bottom


@njit
def _normal_cdf(z: Any) -> Any:
    half = splat(_HALF, z)
    return multiply_add(erf(z * splat(_SQRT_HALF, z)), half, half)


@njit
def _gelu_slope(z: Any) -> Any:
    density = exponential(splat(-_HALF, z) * z * z) * splat(_DENSITY, z)
    return multiply_add(z, density, _normal_cdf(z))


@njit
def _tanh_gate(z: Any) -> Any:
    """Return σ(2u) = (1 + tanh u) / 2 with the u of the tanh form of GELU."""
    cube = multiply_add(splat(_TANH_CUBE, z) * z * z, z, z)
    return sigmoid(splat(_TANH_SCALE, z) * cube)


@njit
def _tanh_slope(z: Any) -> Any:
    gate, one = _tanh_gate(z), splat(_ONE, z)
    inner = splat(_TANH_SCALE, z) * multiply_add(splat(_f(3) * _TANH_CUBE, z) * z, z, one)
    return gate * multiply_add((one - gate) * z, inner, one)


@njit
def _silu_slope(z: Any) -> Any:
    gate, one = sigmoid(z), splat(_ONE, z)
    return gate * multiply_add(z, one - gate, one)


@njit
def _hardswish(z: Any) -> Any:
    gate = z + splat(_THREE, z)
    gate = choose(greater(splat(_ZERO, z), gate), splat(_ZERO, z), gate)
    gate = choose(greater(gate, splat(_SIX, z)), splat(_SIX, z), gate)
    return z * gate * splat(_SIXTH, z)


@njit
def _hardswish_slope(z: Any) -> Any:
    inside = multiply_add(z, splat(_THIRD, z), splat(_HALF, z))
    high = choose(at_least(z, splat(_THREE, z)), splat(_ONE, z), inside)
    return choose(at_least(splat(-_THREE, z), z), splat(_ZERO, z), high)


@njit
def _relu6(z: Any) -> Any:
    low = choose(greater(splat(_ZERO, z), z), splat(_ZERO, z), z)
    return choose(greater(low, splat(_SIX, z)), splat(_SIX, z), low)


# name: (value of (z, slope), gradient of (dy, z, slope)).
_TABLE: dict[str, tuple[Any, Any]] = {
    "identity": (lambda v, z, slope: z, lambda v, dy, z, slope: dy),
    "relu": (
        lambda v, z, slope: choose(greater_or_nan(z, splat(_ZERO, z)), z, splat(_ZERO, z)),
        lambda v, dy, z, slope: choose(greater_or_nan(z, splat(_ZERO, z)), dy, splat(_ZERO, z)),
    ),
    "relu6": (
        lambda v, z, slope: _relu6(z),
        lambda v, dy, z, slope: choose(
            at_least(splat(_ZERO, z), z),
            splat(_ZERO, z),
            choose(at_least(z, splat(_SIX, z)), splat(_ZERO, z), dy),
        ),
    ),
    "leaky_relu": (
        lambda v, z, slope: choose(greater(z, splat(_ZERO, z)), z, z * splat(slope, z)),
        lambda v, dy, z, slope: choose(greater(z, splat(_ZERO, z)), dy, dy * splat(slope, z)),
    ),
    "gelu": (lambda v, z, slope: z * _normal_cdf(z), lambda v, dy, z, slope: dy * _gelu_slope(z)),
    "gelu_tanh": (
        lambda v, z, slope: z * _tanh_gate(z),
        lambda v, dy, z, slope: dy * _tanh_slope(z),
    ),
    "silu": (lambda v, z, slope: z * sigmoid(z), lambda v, dy, z, slope: dy * _silu_slope(z)),
    "hardswish": (
        lambda v, z, slope: _hardswish(z),
        lambda v, dy, z, slope: choose(
            at_least(splat(-_THREE, z), z), splat(_ZERO, z), dy * _hardswish_slope(z)
        ),
    ),
}


def activate(v: Any, z: Any, slope: Any) -> Any:
    """Return the variant's activation of z. Compiled code only."""
    raise NotImplementedError


def gradient(v: Any, dy: Any, z: Any, slope: Any) -> Any:
    """Return dy times the derivative of the variant's activation at z. Compiled code only."""
    raise NotImplementedError


@overload(activate)
def _activate(v, z, slope):  # type: ignore[no-untyped-def]  # Numba compares signatures
    return _TABLE[v.variant.activation][0]


@overload(gradient)
def _gradient(v, dy, z, slope):  # type: ignore[no-untyped-def]
    return _TABLE[v.variant.activation][1]
