"""Loops that pool as well, over channels-last (N, C, H, W) data.

The maximum is taken before the ReLU, with which it commutes. What backward needs of it is a byte
for each output: the place in its window that won, counted as torch breaks ties, or ``DEAD`` where
the ReLU stopped it. A block is some rows of the output, with the rows of the input below them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from gammabeta.norm.kernels.native.activations import activate
from gammabeta.norm.kernels.native.memory import load, load_codes, store, store_codes
from gammabeta.norm.kernels.native.simd import (
    choose,
    is_code,
    multiply_add,
    replaces,
    splat,
    splat_code,
)
from gammabeta.norm.kernels.native.task import bytes_at, elements, floats, read, take
from gammabeta.norm.kernels.native.values import downstream, passes
from gammabeta.norm.kernels.native.variant import (
    is_constant,
    pool_window,
    vector_width,
    wide,
)

DEAD = np.uint8(255)
_ZERO, _ONE, _LOWEST = np.float32(0), np.float32(1), np.float32(-np.inf)


@njit
def _affine(coefficients: Any, channels: Any, c: Any, like: Any) -> Any:
    return (
        load(coefficients, c, like),
        load(coefficients, c + channels, like),
        load(coefficients, c + 2 * channels, like),
    )


@njit
def forward(v: Any, task: Any) -> None:
    """Normalise, pool, activate and write, the last rows first."""
    t = read(task)
    outputs = t.batch * t.out_height * t.out_width * t.channels
    x, y = elements(v, t.x, t.size), elements(v, t.y, outputs)
    codes, coefficients = bytes_at(t.codes, outputs), floats(t.coefficients, 5 * t.channels)
    whole = t.channels // vector_width(v) * vector_width(v)
    data = x, y, codes, coefficients, t.channels
    taken = take(task)
    while taken < t.blocks:
        first = (t.blocks - 1 - taken) * t.block_rows
        for row in range(first, min(first + t.block_rows, t.rows)):
            place = row, row // t.out_height, row % t.out_height
            shape = t.height, t.image_width, t.out_width
            for c in range(0, whole, vector_width(v)):
                _pool_row(v, data, place, shape, c, wide(v))
            for c in range(whole, t.channels):
                _pool_row(v, data, place, shape, c, _ZERO)
        taken = take(task)


@njit
def _pool_row(v: Any, data: Any, place: Any, shape: Any, c: Any, like: Any) -> None:
    x, y, codes, coefficients, channels = data
    row, n, oh = place
    height, width, out_width = shape
    affine = _affine(coefficients, channels, c, like)
    k = pool_window(v)
    top, bottom = _window(oh, k, height)
    image = n * height
    for ow in range(out_width):
        left, right = _window(ow, k, width)
        best = splat(_LOWEST, like)
        won = splat_code(_code(top, left, oh, ow, k), like)
        for h in range(top, bottom):
            for w in range(left, right):
                i = ((image + h) * width + w) * channels + c
                z = multiply_add(load(x, i, like) - affine[0], affine[1], affine[2])
                more = replaces(z, best)
                best = choose(more, z, best)
                won = choose(more, splat_code(_code(h, w, oh, ow, k), like), won)
        out = (row * out_width + ow) * channels + c
        store(y, out, activate(v, best, _ZERO))
        store_codes(codes, out, choose(passes(v, best), won, splat_code(DEAD, like)))


@njit
def _window(out: Any, k: Any, size: Any) -> Any:
    """Return the first place under a window, and the one after its last."""
    if k == 2:
        return 2 * out, 2 * out + 2
    return max(2 * out - 1, 0), min(2 * out + 2, size)


@njit
def _code(h: Any, w: Any, oh: Any, ow: Any, k: Any) -> Any:
    """Return the place of (h, w) in the window of (oh, ow), in row-major order."""
    return np.uint8((h - 2 * oh + k - 2) * k + w - 2 * ow + k - 2)


@njit
def reduce(v: Any, task: Any) -> None:
    """Write for each block and channel Σ dz and Σ dz·(x - shift), x being each window's winner.

    The output would tell it with a quarter of the reading, but it is no longer ours: whoever got it
    may write into it, also in ways that no counter shows.
    """
    t = read(task)
    outputs = t.batch * t.out_height * t.out_width * t.channels
    x = elements(v, t.x, t.size)
    dy, codes = elements(v, t.dy, outputs), bytes_at(t.codes, outputs)
    coefficients, sums = (
        floats(t.coefficients, 5 * t.channels),
        floats(t.partial, t.blocks * 3 * t.channels),
    )
    whole = t.channels // vector_width(v) * vector_width(v)
    shape = t.channels, t.height, t.image_width, t.out_height, t.out_width
    data = x, dy, codes, coefficients, sums
    block = take(task)
    while block < t.blocks:
        first = block * t.block_rows
        rows = block, first, min(first + t.block_rows, t.rows)
        for c in range(0, whole, vector_width(v)):
            _add_block(v, data, shape, rows, c, wide(v))
        for c in range(whole, t.channels):
            _add_block(v, data, shape, rows, c, _ZERO)
        block = take(task)


@njit
def _add_block(v: Any, data: Any, shape: Any, rows: Any, c: Any, like: Any) -> None:
    x, dy, codes, coefficients, sums = data
    channels, out_width = shape[0], shape[4]
    block, first, last = rows
    affine = _affine(coefficients, channels, c, like)
    dead, zero = splat_code(DEAD, like), splat(_ZERO, like)
    total, products = like, like
    for q in range(first * out_width, last * out_width):
        i = q * channels + c
        won = load_codes(codes, i, like)
        dz = choose(is_code(won, dead), zero, load(dy, i, like))
        total = total + dz
        products = _add_winner(v, x, shape, q, c, dz, won, affine[0], products)
    here = block * 3 * channels + c
    store(sums, here, total)
    store(sums, here + channels, products)


@njit
def _add_winner(
    v: Any, x: Any, shape: Any, q: Any, c: Any, dz: Any, won: Any, shift: Any, products: Any
) -> Any:
    """Return the sum with dz·(x - shift) of the winners of output q added."""
    channels, height, width, out_height, out_width = shape
    row, ow = q // out_width, q % out_width
    n, oh, k = row // out_height, row % out_height, pool_window(v)
    top, bottom = _window(oh, k, height)
    left, right = _window(ow, k, width)
    for h in range(top, bottom):
        for w in range(left, right):
            mine = is_code(won, splat_code(_code(h, w, oh, ow, k), dz))
            d = load(x, ((n * height + h) * width + w) * channels + c, dz) - shift
            products = choose(mine, multiply_add(dz, d, products), products)
    return products


@njit
def backward(v: Any, task: Any) -> None:
    """Write dx, the last rows first."""
    t = read(task)
    outputs = t.batch * t.out_height * t.out_width * t.channels
    x, dx = elements(v, t.x, t.size), elements(v, t.dx, t.size)
    dy, codes = elements(v, t.dy, outputs), bytes_at(t.codes, outputs)
    coefficients = floats(t.coefficients, 5 * t.channels)
    whole = t.channels // vector_width(v) * vector_width(v)
    shape = t.channels, t.height, t.image_width, t.out_height, t.out_width
    data = x, dx, dy, codes, coefficients
    taken = take(task)
    while taken < t.blocks:
        first = (t.blocks - 1 - taken) * t.block_rows
        for row in range(first, min(first + t.block_rows, t.rows)):
            for c in range(0, whole, vector_width(v)):
                _spread_rows(v, data, shape, row, c, wide(v))
            for c in range(whole, t.channels):
                _spread_rows(v, data, shape, row, c, _ZERO)
        taken = take(task)


@njit
def _spread_rows(v: Any, data: Any, shape: Any, row: Any, c: Any, like: Any) -> None:
    """Write the two rows of dx that belong to a row of outputs, and the odd one after the last."""
    coefficients = data[4]
    channels, height, width, out_height, _ = shape
    n, oh = row // out_height, row % out_height
    slopes = (
        _affine(coefficients, channels, c, like),
        load(coefficients, c + 3 * channels, like),
        load(coefficients, c + 4 * channels, like),
    )
    stop = height if oh == out_height - 1 else 2 * oh + 2
    first = 2 * oh
    if pool_window(v) == 2:
        out_width = shape[4]
        for ow in range(out_width):
            _spread_window(v, data, shape, (row, n, oh, ow), c, slopes)
        for h in range(first, first + 2):
            for w in range(2 * out_width, width):
                _spread(v, data, shape, n, h, w, c, slopes)
        first += 2
    for h in range(first, stop):
        for w in range(width):
            _spread(v, data, shape, n, h, w, c, slopes)


@njit
def _spread_window(v: Any, data: Any, shape: Any, place: Any, c: Any, slopes: Any) -> None:
    """Write the four pixels of a 2x2 window, which no other window shares."""
    x, dx, dy, codes, _ = data
    channels, height, width, _, out_width = shape
    row, n, oh, ow = place
    affine, tilt, level = slopes
    q = (row * out_width + ow) * channels + c
    won = load_codes(codes, q, tilt)
    gain = load(dy, q, tilt) * affine[1]
    for k in range(4):
        i = ((n * height + 2 * oh + k // 2) * width + 2 * ow + k % 2) * channels + c
        base = splat(_ZERO, tilt) * affine[1]  # not zero where the scale is NaN
        if not is_constant(v):
            base = multiply_add(load(x, i, tilt) - affine[0], tilt, level)
        mine = is_code(won, splat_code(np.uint8(k), tilt))
        store(dx, i, choose(mine, base + gain, base))


@njit
def _spread(v: Any, data: Any, shape: Any, n: Any, h: Any, w: Any, c: Any, slopes: Any) -> None:
    """Gather the gradient of one pixel from the windows that it was the maximum of."""
    x, dx, dy, codes, _ = data
    channels, height, width, out_height, out_width = shape
    affine, tilt, level = slopes
    k = pool_window(v)
    dz = splat(_ZERO, tilt)
    for oh in range(h // 2, min((h + k - 2) // 2 + 1, out_height)):
        for ow in range(w // 2, min((w + k - 2) // 2 + 1, out_width)):
            q = ((n * out_height + oh) * out_width + ow) * channels + c
            mine = is_code(load_codes(codes, q, tilt), splat_code(_code(h, w, oh, ow, k), tilt))
            dz = choose(mine, dz + load(dy, q, tilt), dz)
    i = ((n * height + h) * width + w) * channels + c
    store(dx, i, downstream(v, dz, load(x, i, tilt) - affine[0], affine[1], tilt, level))
