"""What happens to one vector of values, whatever loop it stands in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from gammabeta.norm.kernels.native.activations import activate, gradient
from gammabeta.norm.kernels.native.memory import load, load_codes, store, store_codes
from gammabeta.norm.kernels.native.simd import (
    choose,
    greater_or_nan,
    is_code,
    multiply_add,
    splat,
    splat_code,
)
from gammabeta.norm.kernels.native.variant import (
    has_mask,
    has_residual,
    is_constant,
    reads_residual,
)

_ZERO, _ONE = np.float32(0), np.float32(1)
_PASSED, _BLOCKED = np.uint8(1), np.uint8(0)


@njit
def finite_or_zero(value: Any) -> Any:
    """Return the value, or zero where it is infinite or NaN."""
    zero = splat(_ZERO, value)
    return choose(greater_or_nan(value - value, zero), zero, value)


@njit
def passes(v: Any, z: Any) -> Any:
    """Tell where a piecewise linear activation, flat or sloped, is at its upper branch."""
    zero = splat(_ZERO, z)
    return greater_or_nan(gradient(v, splat(_ONE, z), z, _ZERO), zero)


@njit
def upstream(
    v: Any, x: Any, residual: Any, dy: Any, codes: Any, i: Any, coefficients: Any, slope: Any
) -> Any:
    """Return the gradient at BN's output, and x less the shift.

    The input of the activation is computed again from x, to the same bits; where a residual was
    added, a mask of one byte a value tells all that a piecewise linear activation needs.
    """
    shift, scale, offset = coefficients
    d = load(x, i, shift) - shift
    if has_mask(v):
        passed = is_code(load_codes(codes, i, shift), splat_code(_PASSED, shift))
        z = choose(passed, splat(_ONE, shift), splat(-_ONE, shift))
    else:
        z = multiply_add(d, scale, offset)
        if reads_residual(v):
            z = z + load(residual, i, shift)
    return gradient(v, load(dy, i, shift), z, slope), d


@njit
def downstream(v: Any, dz: Any, d: Any, scale: Any, tilt: Any, level: Any) -> Any:
    """Return dx: ``scale``·dz, and in training the paths through variance and mean as well."""
    if is_constant(v):
        return dz * scale
    return multiply_add(dz, scale, multiply_add(d, tilt, level))


@njit
def normalise_at(
    v: Any, x: Any, residual: Any, y: Any, codes: Any, i: Any, coefficients: Any, slope: Any
) -> None:
    """Normalise, add the residual, activate and write the values at i, with what backward needs."""
    shift, scale, offset = coefficients
    z = multiply_add(load(x, i, shift) - shift, scale, offset)
    if has_residual(v):
        z = z + load(residual, i, shift)
    if has_mask(v):
        one, zero = splat_code(_PASSED, z), splat_code(_BLOCKED, z)
        store_codes(codes, i, choose(passes(v, z), one, zero))
    store(y, i, activate(v, z, slope))
