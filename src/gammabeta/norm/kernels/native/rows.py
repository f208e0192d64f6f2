"""Loops over data whose channels lie together: (N, C) and channels-last.

The data are seen as rows of ``width`` values, a multiple of the channels that is also one of the
vector's length where possible; each lane of a row then belongs to one channel. Rows are taken in
blocks, wide ones cut into tiles of some lanes, and within a block eight at a time, so that a lane's
coefficients and sums are loaded once for eight. What remains after the last whole row is a block of
its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from gammabeta.norm.kernels.native.memory import load, store
from gammabeta.norm.kernels.native.simd import multiply_add, splat
from gammabeta.norm.kernels.native.task import bytes_at, elements, floats, read, take
from gammabeta.norm.kernels.native.values import downstream, finite_or_zero, normalise_at, upstream
from gammabeta.norm.kernels.native.variant import (
    has_mask,
    has_residual,
    vector_width,
    wide,
)

_GROUP = 8
_ZERO, _ONE = np.float32(0), np.float32(1)


@njit
def span(v: Any, t: Any, unit: int) -> Any:
    """Return the rows and the lanes of a tile of a block: first, and one after the last, of each.

    Between them stands the lane after the last whole vector.
    """
    first, left = unit // t.tiles * t.block_rows, unit % t.tiles * t.tile
    last, length = min(first + t.block_rows, t.rows), t.width
    if first >= t.rows:
        first, last, length = t.rows, t.rows + 1, t.size - t.rows * t.width
    right = max(min(left + t.tile, length), left)
    whole = left + (right - left) // vector_width(v) * vector_width(v)
    return first, last, left, whole, right


@njit
def statistics(v: Any, task: Any) -> None:
    """Write for each block and lane a shift, and the sum and sum of squares about it."""
    t = read(task)
    x = elements(v, t.x, t.size)
    sums = floats(t.partial, t.blocks * 3 * t.width)
    unit = take(task)
    while unit < t.units:
        first, last, left, whole, right = span(v, t, unit)
        block = unit // t.tiles
        for row in range(first, last, _GROUP):
            stop = min(row + _GROUP, last)
            for c in range(left, whole, vector_width(v)):
                _add_squares(x, sums, t.width, block, row, stop, row == first, c, wide(v))
            for c in range(whole, right):
                _add_squares(x, sums, t.width, block, row, stop, row == first, c, _ZERO)
        unit = take(task)


@njit
def _add_squares(
    x: Any, sums: Any, width: Any, block: Any, row: Any, stop: Any, fresh: Any, c: Any, like: Any
) -> None:
    here = block * 3 * width + c
    if fresh:
        shift, total, squares = finite_or_zero(_mean(x, width, row, stop, c, like)), like, like
        store(sums, here, shift)
    else:
        shift = load(sums, here, like)
        total = load(sums, here + width, like)
        squares = load(sums, here + 2 * width, like)
    for r in range(row, stop):
        d = load(x, r * width + c, like) - shift
        total = total + d
        squares = multiply_add(d, d, squares)
    store(sums, here + width, total)
    store(sums, here + 2 * width, squares)


@njit
def _mean(x: Any, width: Any, row: Any, stop: Any, c: Any, like: Any) -> Any:
    """Return the mean of a few rows."""
    total = like
    for r in range(row, stop):
        total = total + load(x, r * width + c, like)
    return total * splat(_ONE / np.float32(stop - row), like)


@njit
def forward(v: Any, task: Any) -> None:
    """Normalise, add the residual, activate and write; blocks are taken from the last on.

    What the pass before read last may still be in the cache.
    """
    t = read(task)
    x, y = elements(v, t.x, t.size), elements(v, t.y, t.size)
    residual = elements(v, t.residual, t.size * has_residual(v))
    codes = bytes_at(t.codes, t.size * has_mask(v))
    coefficients = floats(t.coefficients, 5 * t.width)
    slope, width = np.float32(t.slope), t.width
    data = x, residual, y, codes, coefficients, slope, width
    taken = take(task)
    while taken < t.units:
        first, last, left, whole, right = span(v, t, t.units - 1 - taken)
        for row in range(first, last, _GROUP):
            stop = min(row + _GROUP, last)
            for c in range(left, whole, vector_width(v)):
                _normalise(v, data, row, stop, c, wide(v))
            for c in range(whole, right):
                _normalise(v, data, row, stop, c, _ZERO)
        taken = take(task)


@njit
def _normalise(v: Any, data: Any, row: Any, stop: Any, c: Any, like: Any) -> None:
    x, residual, y, codes, coefficients, slope, width = data
    affine = _affine(coefficients, width, c, like)
    for r in range(row, stop):
        normalise_at(v, x, residual, y, codes, r * width + c, affine, slope)


@njit
def reduce(v: Any, task: Any) -> None:
    """Write for each block and lane Σ dz and Σ dz·(x - shift), dz being that of BN's output."""
    t = read(task)
    x, dy = elements(v, t.x, t.size), elements(v, t.dy, t.size)
    residual = elements(v, t.residual, t.size * has_residual(v))
    codes = bytes_at(t.codes, t.size * has_mask(v))
    coefficients = floats(t.coefficients, 5 * t.width)
    sums = floats(t.partial, t.blocks * 3 * t.width)
    slope, width = np.float32(t.slope), t.width
    unit = take(task)
    while unit < t.units:
        first, last, left, whole, right = span(v, t, unit)
        block = unit // t.tiles
        data = x, residual, dy, codes, coefficients, sums, slope, width
        for row in range(first, last, _GROUP):
            stop = min(row + _GROUP, last)
            for c in range(left, whole, vector_width(v)):
                _add_products(v, data, block, row, stop, row == first, c, wide(v))
            for c in range(whole, right):
                _add_products(v, data, block, row, stop, row == first, c, _ZERO)
        unit = take(task)


@njit
def _add_products(
    v: Any, data: Any, block: Any, row: Any, stop: Any, fresh: Any, c: Any, like: Any
) -> None:
    x, residual, dy, codes, coefficients, sums, slope, width = data
    affine = _affine(coefficients, width, c, like)
    here = block * 3 * width + c
    if fresh:
        total, products = like, like
    else:
        total, products = load(sums, here, like), load(sums, here + width, like)
    for r in range(row, stop):
        dz, d = upstream(v, x, residual, dy, codes, r * width + c, affine, slope)
        total = total + dz
        products = multiply_add(dz, d, products)
    store(sums, here, total)
    store(sums, here + width, products)


@njit
def _affine(coefficients: Any, width: Any, c: Any, like: Any) -> Any:
    """Return shift, scale and offset of the lanes from c on."""
    return (
        load(coefficients, c, like),
        load(coefficients, c + width, like),
        load(coefficients, c + 2 * width, like),
    )


@njit
def backward(v: Any, task: Any) -> None:
    """Write dx, and the residual's gradient."""
    t = read(task)
    x, dy, dx = elements(v, t.x, t.size), elements(v, t.dy, t.size), elements(v, t.dx, t.size)
    residual = elements(v, t.residual, t.size * has_residual(v))
    dresidual = elements(v, t.dresidual, t.size * has_residual(v))
    codes = bytes_at(t.codes, t.size * has_mask(v))
    coefficients = floats(t.coefficients, 5 * t.width)
    slope, width = np.float32(t.slope), t.width
    data = x, residual, dy, codes, dx, dresidual, coefficients, slope, width
    taken = take(task)
    while taken < t.units:
        first, last, left, whole, right = span(v, t, t.units - 1 - taken)
        for row in range(first, last, _GROUP):
            stop = min(row + _GROUP, last)
            for c in range(left, whole, vector_width(v)):
                _spread(v, data, row, stop, c, wide(v))
            for c in range(whole, right):
                _spread(v, data, row, stop, c, _ZERO)
        taken = take(task)


@njit
def _spread(v: Any, data: Any, row: Any, stop: Any, c: Any, like: Any) -> None:
    x, residual, dy, codes, dx, dresidual, coefficients, slope, width = data
    affine = _affine(coefficients, width, c, like)
    tilt = load(coefficients, c + 3 * width, like)
    level = load(coefficients, c + 4 * width, like)
    for r in range(row, stop):
        i = r * width + c
        dz, d = upstream(v, x, residual, dy, codes, i, affine, slope)
        store(dx, i, downstream(v, dz, d, affine[1], tilt, level))
        if has_residual(v):
            store(dresidual, i, dz)
