"""What is done once for each channel, in float64, between two passes over the data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from gammabeta.norm.kernels.native.task import bytes_at, doubles, floats, read, words

_LEAST = 1e-30
"""A slope below which y does not tell x."""


@njit
def combine(v: Any, task: Any) -> None:
    """Turn the sums of all blocks into mean, variance and the coefficients of y.

    Running statistics, if given, are moved on the way, and the batch is counted.

    Means are added first and deviations about the total mean after (Chan, Golub & LeVeque 1983),
    so that nothing large cancels.
    """
    t = read(task)
    sums = floats(t.partial, t.blocks * 3 * t.width)
    wanted, moving = t.mean != 0, t.running_mean != 0
    mean, var = floats(t.mean, t.channels * wanted), floats(t.var, t.channels * wanted)
    running_mean = floats(t.running_mean, t.channels * moving)
    running_var = floats(t.running_var, t.channels * moving)
    saved = doubles(t.saved, 3 * t.channels)
    means = _means(t, sums)
    squares = _squares(t, sums, means)
    for c in range(t.channels):
        biased = max(squares[c] / t.count, 0.0)  # a NaN stays one
        unbiased = biased * (t.count / max(t.count - 1, 1))
        if wanted:
            mean[c], var[c] = means[c], unbiased
        if moving:
            running_mean[c] = running_mean[c] * (1 - t.momentum) + means[c] * t.momentum
            running_var[c] = running_var[c] * (1 - t.momentum) + unbiased * t.momentum
        saved[c], saved[c + t.channels] = means[c], 1 / math.sqrt(biased + t.eps)
    if t.batches != 0:
        words(t.batches, 1)[0] += 1
    _keep_offset(t, saved)
    _coefficients(t)


@njit
def _means(t: Any, sums: Any) -> Any:
    total = np.zeros(t.channels)
    for block in range(t.blocks):
        count, length = _extent(t, block)
        for start in range(0, length, t.channels):
            shift, rest = _part(t, sums, block, 0, start), _part(t, sums, block, 1, start)
            for c in range(t.channels):
                total[c] += count * np.float64(shift[c]) + np.float64(rest[c])
    return total / t.count


@njit
def _part(t: Any, sums: Any, block: Any, which: Any, start: Any) -> Any:
    """Return one of a block's sums for each channel, a view whose plain indices vectorise."""
    here = (block * 3 + which) * t.width + start
    return sums[here : here + t.channels]


@njit
def _squares(t: Any, sums: Any, means: Any) -> Any:
    """Return each channel's sum of squares about its mean."""
    total = np.zeros(t.channels)
    for block in range(t.blocks):
        count, length = _extent(t, block)
        for start in range(0, length, t.channels):
            shift, total_rest = _part(t, sums, block, 0, start), _part(t, sums, block, 1, start)
            squares = _part(t, sums, block, 2, start)
            share = 1.0 / count
            for c in range(t.channels):
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
    for c in range(t.channels):
        saved[c] = mean[c]
        saved[c + t.channels] = 1 / math.sqrt(np.float64(var[c]) + t.eps)
    _keep_offset(t, saved)
    _coefficients(t)


@njit
def _keep_offset(t: Any, saved: Any) -> None:
    """Keep β beside the statistics: it may be changed before backward asks for it."""
    bias = floats(t.bias, t.channels * (t.bias != 0))
    for c in range(t.channels):
        saved[c + 2 * t.channels] = np.float64(bias[c]) if t.bias != 0 else 0.0


@njit
def again(v: Any, task: Any) -> None:
    """Compute the coefficients of y again, for backward."""
    _coefficients(read(task))


@njit
def _coefficients(t: Any) -> None:
    """Write shift, scale and offset of each lane: y = (x - shift)·scale + offset.

    The shift is the mean as float32 has it, and the offset corrects what it lost, so that nothing
    large is added to what is small.
    """
    saved = doubles(t.saved, 3 * t.channels)
    weight = floats(t.weight, t.channels * (t.weight != 0))
    out = floats(t.coefficients, 5 * t.width)
    recover = bytes_at(t.recover, t.channels * (t.recover != 0))
    for c in range(t.channels):
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
        if t.recover != 0:
            usable = _LEAST < abs(gamma * scale) < math.inf
            recover[c] = usable and abs(beta) < t.recover_ratio * abs(gamma)


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
    sums = floats(t.partial, t.blocks * 3 * t.width)
    saved = doubles(t.saved, 2 * t.channels)
    out = floats(t.coefficients, 5 * t.width)
    dweight, dbias = floats(t.dweight, t.channels), floats(t.dbias, t.channels)
    totals, products = _products(t, sums)
    for c in range(t.channels):
        dz, dzx = totals[c], products[c]
        mean, inverse = saved[c], saved[c + t.channels]
        dzx = (dzx + _lost(mean) * dz) * inverse
        dweight[c], dbias[c] = dzx, dz
        scale = np.float64(out[c + t.width])
        tilt = -scale * inverse * dzx / t.count
        level = -scale * dz / t.count + _lost(mean) * tilt
        for lane in range(c, t.width, t.channels):
            out[lane + 3 * t.width], out[lane + 4 * t.width] = tilt, level


@njit
def _products(t: Any, sums: Any) -> Any:
    """Return each channel's Σ dz and Σ dz·(x - shift)."""
    totals, products = np.zeros(t.channels), np.zeros(t.channels)
    for block in range(t.blocks):
        _, length = _extent(t, block)
        for start in range(0, length, t.channels):
            dz, dzx = _part(t, sums, block, 0, start), _part(t, sums, block, 1, start)
            for c in range(t.channels):
                totals[c] += dz[c]
                products[c] += dzx[c]
    return totals, products
