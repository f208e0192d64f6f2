"""Loops over contiguous (N, C, *) data, in which the values of a channel lie together in planes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from gammabeta.norm.kernels.native.memory import load, store
from gammabeta.norm.kernels.native.simd import multiply_add, splat, total
from gammabeta.norm.kernels.native.task import bytes_at, elements, floats, read, take
from gammabeta.norm.kernels.native.values import downstream, finite_or_zero, normalise_at, upstream
from gammabeta.norm.kernels.native.variant import (
    has_mask,
    has_residual,
    vector_width,
    wide,
)

_ZERO, _ONE = np.float32(0), np.float32(1)
_PROBED = 8
_SEGMENT = 1 << 14
"""Values that are summed in float32."""


@njit
def statistics(v: Any, task: Any) -> None:
    """Write for each block of samples and channel a shift, and sum and sum of squares about it."""
    t = read(task)
    x = elements(v, t.x, t.size)
    sums = floats(t.partial, t.blocks * 3 * t.channels)
    taken, group = take(task), _group(t)
    while taken * group < t.blocks * t.channels:
        for unit in range(taken * group, min((taken + 1) * group, t.blocks * t.channels)):
            _measure(v, t, x, sums, unit // t.channels, unit % t.channels)
        taken = take(task)


@njit
def _group(t: Any) -> Any:
    """Return how many channels of a block are taken together: small ones are not worth a turn."""
    return max(t.unit_planes // t.block_rows, 1)


@njit
def _measure(v: Any, t: Any, x: Any, sums: Any, block: Any, c: Any) -> None:
    first, last = block * t.block_rows, min((block + 1) * t.block_rows, t.rows)
    shift = finite_or_zero(_mean(x, (first * t.channels + c) * t.plane, min(_PROBED, t.plane)))
    a, b = 0.0, 0.0
    for n in range(first, last):
        start = (n * t.channels + c) * t.plane
        for i in range(start, start + t.plane, _SEGMENT):
            more = _squares(v, x, i, min(_SEGMENT, start + t.plane - i), shift)
            a, b = a + more[0], b + more[1]
    here = block * 3 * t.channels + c
    sums[here], sums[here + t.channels], sums[here + 2 * t.channels] = shift, a, b


@njit
def _mean(x: Any, start: Any, count: Any) -> Any:
    sum_ = _ZERO
    for i in range(start, start + count):
        sum_ += load(x, i, _ZERO)
    return sum_ / np.float32(count)


@njit
def _squares(v: Any, x: Any, start: Any, size: Any, shift: Any) -> Any:
    """Return Σ (x - shift) and Σ (x - shift)² over part of a plane."""
    whole = start + size // vector_width(v) * vector_width(v)
    a, b, shifts = wide(v), wide(v), splat(shift, wide(v))
    for i in range(start, whole, vector_width(v)):
        d = load(x, i, shifts) - shifts
        a, b = a + d, multiply_add(d, d, b)
    rest, squares = _ZERO, _ZERO
    for i in range(whole, start + size):
        d = load(x, i, shift) - shift
        rest, squares = rest + d, multiply_add(d, d, squares)
    return total(a) + rest, total(b) + squares


@njit
def _affine(coefficients: Any, channels: Any, c: Any, like: Any) -> Any:
    """Return a channel's shift, scale and offset in every lane."""
    return (
        splat(coefficients[c], like),
        splat(coefficients[c + channels], like),
        splat(coefficients[c + 2 * channels], like),
    )


@njit
def forward(v: Any, task: Any) -> None:
    """Normalise, add the residual, activate and write, the last planes first."""
    t = read(task)
    x, y = elements(v, t.x, t.size), elements(v, t.y, t.size)
    residual = elements(v, t.residual, t.size * has_residual(v))
    codes = bytes_at(t.codes, t.size * has_mask(v))
    coefficients = floats(t.coefficients, 5 * t.channels)
    slope, planes = np.float32(t.slope), t.batch * t.channels
    taken = take(task)
    while taken < t.units:
        first = (t.units - 1 - taken) * t.unit_planes
        for plane in range(first, min(first + t.unit_planes, planes)):
            c, start, stop = plane % t.channels, plane * t.plane, (plane + 1) * t.plane
            whole = start + t.plane // vector_width(v) * vector_width(v)
            affine = _affine(coefficients, t.channels, c, wide(v))
            for i in range(start, whole, vector_width(v)):
                normalise_at(v, x, residual, y, codes, i, affine, slope)
            one = _affine(coefficients, t.channels, c, _ZERO)
            for i in range(whole, stop):
                normalise_at(v, x, residual, y, codes, i, one, slope)
        taken = take(task)


@njit
def reduce(v: Any, task: Any) -> None:
    """Write for each block of samples and channel Σ dz and Σ dz·(x - shift)."""
    t = read(task)
    x, dy = elements(v, t.x, t.size), elements(v, t.dy, t.size)
    residual = elements(v, t.residual, t.size * has_residual(v))
    codes = bytes_at(t.codes, t.size * has_mask(v))
    coefficients = floats(t.coefficients, 5 * t.channels)
    sums = floats(t.partial, t.blocks * 3 * t.channels)
    data = x, residual, dy, codes, np.float32(t.slope)
    taken, group = take(task), _group(t)
    while taken * group < t.blocks * t.channels:
        for unit in range(taken * group, min((taken + 1) * group, t.blocks * t.channels)):
            _add_products(v, t, data, coefficients, sums, unit // t.channels, unit % t.channels)
        taken = take(task)


@njit
def _add_products(
    v: Any, t: Any, data: Any, coefficients: Any, sums: Any, block: Any, c: Any
) -> None:
    wides = _affine(coefficients, t.channels, c, wide(v))
    one = _affine(coefficients, t.channels, c, _ZERO)
    a, b = _ZERO, _ZERO
    for n in range(block * t.block_rows, min((block + 1) * t.block_rows, t.rows)):
        more = _products(v, data, (n * t.channels + c) * t.plane, t.plane, wides, one)
        a, b = a + more[0], b + more[1]
    here = block * 3 * t.channels + c
    sums[here], sums[here + t.channels] = a, b


@njit
def _products(v: Any, data: Any, start: Any, size: Any, wides: Any, one: Any) -> Any:
    """Return Σ dz and Σ dz·(x - shift) over one plane."""
    x, residual, dy, codes, slope = data
    whole = start + size // vector_width(v) * vector_width(v)
    a, b = wide(v), wide(v)
    for i in range(start, whole, vector_width(v)):
        dz, d = upstream(v, x, residual, dy, codes, i, wides, slope)
        a, b = a + dz, multiply_add(dz, d, b)
    rest, products = _ZERO, _ZERO
    for i in range(whole, start + size):
        dz1, d1 = upstream(v, x, residual, dy, codes, i, one, slope)
        rest, products = rest + dz1, multiply_add(dz1, d1, products)
    return total(a) + rest, total(b) + products


@njit
def backward(v: Any, task: Any) -> None:
    """Write dx, and the residual's gradient."""
    t = read(task)
    x, dy, dx = elements(v, t.x, t.size), elements(v, t.dy, t.size), elements(v, t.dx, t.size)
    residual = elements(v, t.residual, t.size * has_residual(v))
    dresidual = elements(v, t.dresidual, t.size * has_residual(v))
    codes = bytes_at(t.codes, t.size * has_mask(v))
    coefficients = floats(t.coefficients, 5 * t.channels)
    planes = t.batch * t.channels
    data = x, residual, dy, codes, dx, dresidual, np.float32(t.slope)
    taken = take(task)
    while taken < t.units:
        first = (t.units - 1 - taken) * t.unit_planes
        for plane in range(first, min(first + t.unit_planes, planes)):
            c, start, stop = plane % t.channels, plane * t.plane, (plane + 1) * t.plane
            whole = start + t.plane // vector_width(v) * vector_width(v)
            wides = _slopes(coefficients, t.channels, c, wide(v))
            for i in range(start, whole, vector_width(v)):
                _spread(v, data, i, wides)
            one = _slopes(coefficients, t.channels, c, _ZERO)
            for i in range(whole, stop):
                _spread(v, data, i, one)
        taken = take(task)


@njit
def _slopes(coefficients: Any, channels: Any, c: Any, like: Any) -> Any:
    """Return what ``_affine`` does, and the two coefficients of dx."""
    return (
        _affine(coefficients, channels, c, like),
        splat(coefficients[c + 3 * channels], like),
        splat(coefficients[c + 4 * channels], like),
    )


@njit
def _spread(v: Any, data: Any, i: Any, slopes: Any) -> None:
    x, residual, dy, codes, dx, dresidual, slope = data
    affine, tilt, level = slopes
    dz, d = upstream(v, x, residual, dy, codes, i, affine, slope)
    store(dx, i, downstream(v, dz, d, affine[1], tilt, level))
    if has_residual(v):
        store(dresidual, i, dz)
