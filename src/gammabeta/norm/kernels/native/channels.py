"""What is done once for each channel, in float64, between two passes over the data.

Channels are taken in parts, by which threads share the work where there are very many.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from gammabeta.norm.kernels.native.task import doubles, floats, read, take, words

PART = 1 << 12
"""Channels that are taken together."""


@njit
def combine(v: Any, task: Any) -> None:
    """Turn the sums of all blocks into mean, variance and the coefficients of y.

    Running statistics, if given, are moved on the way, and the batch is counted.

    Means are added first and deviations about the total mean after (Chan, Golub & LeVeque 1983),
    so that nothing large cancels.
    """
    t = read(task)
    part = take(task)
    while part * PART < t.channels:
        first, last = part * PART, min((part + 1) * PART, t.channels)
        _combine(t, first, last)
        if part == 0 and t.batches != 0:
            words(t.batches, 1)[0] += 1
        _keep_offset(t, first, last)
        _coefficients(t, first, last)
        part = take(task)


@njit
def _combine(t: Any, first: Any, last: Any) -> None:
    sums = floats(t.partial, t.blocks * 3 * t.width)
    wanted, moving = t.mean != 0, t.running_mean != 0
    mean, var = floats(t.mean, t.channels * wanted), floats(t.var, t.channels * wanted)
    running_mean = floats(t.running_mean, t.channels * moving)
    running_var = floats(t.running_var, t.channels * moving)
    saved = doubles(t.saved, 3 * t.channels)
    means = _means(t, sums, first, last)
    squares = _squares(t, sums, means, first, last)
    for c in range(first, last):
        average = means[c - first]
        biased = max(squares[c - first] / t.count, 0.0)  # a NaN stays one
        unbiased = biased * (t.count / max(t.count - 1, 1))
        if wanted:
            mean[c], var[c] = average, unbiased
        if moving:
            running_mean[c] = running_mean[c] * (1 - t.momentum) + average * t.momentum
            running_var[c] = running_var[c] * (1 - t.momentum) + unbiased * t.momentum
        saved[c], saved[c + t.channels] = average, 1 / math.sqrt(biased + t.eps)


@njit
def _means(t: Any, sums: Any, first: Any, last: Any) -> Any:
    total = np.zeros(last - first)
    for block in range(t.blocks):
        count, length = _extent(t, block)
        for start in range(0, length, t.channels):
            here = start + first, last - first
            shift, rest = _part(t, sums, block, 0, here), _part(t, sums, block, 1, here)
            for c in range(last - first):
                total[c] += count * np.float64(shift[c]) + np.float64(rest[c])
    return total / t.count


@njit
def _part(t: Any, sums: Any, block: Any, which: Any, lanes: Any) -> Any:
    """Return one of a block's sums for some lanes, a view whose plain indices vectorise.

    ``lanes`` are the first one and how many.
    """
    here = (block * 3 + which) * t.width + lanes[0]
    return sums[here : here + lanes[1]]


@njit
def _squares(t: Any, sums: Any, means: Any, first: Any, last: Any) -> Any:
    """Return each channel's sum of squares about its mean."""
    total = np.zeros(last - first)
    for block in range(t.blocks):
        count, length = _extent(t, block)
        for start in range(0, length, t.channels):
            here = start + first, last - first
            shift, total_rest = _part(t, sums, block, 0, here), _part(t, sums, block, 1, here)
            squares = _part(t, sums, block, 2, here)
            share = 1.0 / count
            for c in range(last - first):
                rest = np.float64(total_rest[c]) * share
                apart = np.float64(shift[c]) + rest - means[c]
                inside = np.float64(squares[c]) - count * rest * rest
                total[c] += inside + count * apart * apart
    return total


@njit
def _extent(t: Any, block: Any) -> Any:
    """Return the values that a lane of the block has, and how many lanes it has."""
    first = block * t.block_rows
    if first >= t.rows:
        return 1, t.size - t.rows * t.width
    return (min(first + t.block_rows, t.rows) - first) * t.plane, t.width


@njit
def given(v: Any, task: Any) -> None:
    """Compute the coefficients of y from statistics that are given."""
    t = read(task)
    mean, var = floats(t.mean, t.channels), floats(t.var, t.channels)
    saved = doubles(t.saved, 3 * t.channels)
    part = take(task)
    while part * PART < t.channels:
        first, last = part * PART, min((part + 1) * PART, t.channels)
        for c in range(first, last):
            saved[c] = mean[c]
            saved[c + t.channels] = 1 / math.sqrt(np.float64(var[c]) + t.eps)
        _keep_offset(t, first, last)
        _coefficients(t, first, last)
        part = take(task)


@njit
def _keep_offset(t: Any, first: Any, last: Any) -> None:
    """Keep β beside the statistics: it may be changed before backward asks for it."""
    bias = floats(t.bias, t.channels * (t.bias != 0))
    saved = doubles(t.saved, 3 * t.channels)
    for c in range(first, last):
        saved[c + 2 * t.channels] = np.float64(bias[c]) if t.bias != 0 else 0.0


@njit
def again(v: Any, task: Any) -> None:
    """Compute the coefficients of y again, for backward."""
    t = read(task)
    part = take(task)
    while part * PART < t.channels:
        _coefficients(t, part * PART, min((part + 1) * PART, t.channels))
        part = take(task)


@njit
def _coefficients(t: Any, first: Any, last: Any) -> None:
    """Write shift, scale and offset of the channels' lanes: y = (x - shift)·scale + offset.

    The shift is the mean as float32 has it, and the offset corrects what it lost, so that nothing
    large is added to what is small.
    """
    saved = doubles(t.saved, 3 * t.channels)
    weight = floats(t.weight, t.channels * (t.weight != 0))
    out = floats(t.coefficients, 5 * t.width)
    for c in range(first, last):
        mean, scale = saved[c], saved[c + t.channels]
        gamma = np.float64(weight[c]) if t.weight != 0 else 1.0
        beta = saved[c + 2 * t.channels]
        shift = np.float32(mean)
        lost = _lost(mean) * (gamma * scale)
        offset = beta + lost if math.isfinite(lost) else beta
        for lane in range(c, t.width, t.channels):
            out[lane] = shift
            out[lane + t.width] = gamma * scale
            out[lane + 2 * t.width] = offset


@njit
def _lost(mean: Any) -> Any:
    """Return the shift less the mean; nothing is lost of an infinite one."""
    return np.float64(np.float32(mean)) - mean if math.isfinite(mean) else 0.0


@njit
def slopes(v: Any, task: Any) -> None:
    r"""Turn the sums of all blocks into dγ, dβ and the coefficients of dx.

    .. math:: dx = γ σ^{-1} (dz - \overline{dz} - \hat x \, \overline{dz \hat x})

    written as dz·scale + (x - shift)·tilt + level (Ioffe & Szegedy 2015, section 3, solved for dx).
    """
    t = read(task)
    part = take(task)
    while part * PART < t.channels:
        _slopes(t, part * PART, min((part + 1) * PART, t.channels))
        part = take(task)


@njit
def _slopes(t: Any, first: Any, last: Any) -> None:
    sums = floats(t.partial, t.blocks * 3 * t.width)
    saved = doubles(t.saved, 3 * t.channels)
    out = floats(t.coefficients, 5 * t.width)
    dweight, dbias = floats(t.dweight, t.channels), floats(t.dbias, t.channels)
    totals, products = _products(t, sums, first, last)
    for c in range(first, last):
        dz, dzx = totals[c - first], products[c - first]
        mean, inverse = saved[c], saved[c + t.channels]
        dzx = (dzx + _lost(mean) * dz) * inverse
        dweight[c], dbias[c] = dzx, dz
        scale = np.float64(out[c + t.width])
        tilt = -scale * inverse * dzx / t.count
        level = -scale * dz / t.count + _lost(mean) * tilt
        for lane in range(c, t.width, t.channels):
            out[lane + 3 * t.width], out[lane + 4 * t.width] = tilt, level


@njit
def _products(t: Any, sums: Any, first: Any, last: Any) -> Any:
    """Return each channel's Σ dz and Σ dz·(x - shift)."""
    totals, products = np.zeros(last - first), np.zeros(last - first)
    for block in range(t.blocks):
        _, length = _extent(t, block)
        for start in range(0, length, t.channels):
            here = start + first, last - first
            dz, dzx = _part(t, sums, block, 0, here), _part(t, sums, block, 1, here)
            for c in range(last - first):
                totals[c] += dz[c]
                products[c] += dzx[c]
    return totals, products
