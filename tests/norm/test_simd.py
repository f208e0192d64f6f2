"""The vector functions of the CPU kernels, against float64 and torch, over dense ranges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numba import njit
from torch.nn import functional as F

from gammabeta import equations_act
from gammabeta.norm.kernels.native import activations, simd
from gammabeta.norm.kernels.native.memory import load, store
from gammabeta.norm.kernels.native.variant import Variant, wide

NAMES = ("relu", "relu6", "leaky_relu", "hardswish", "gelu", "gelu_tanh", "silu")
WIDTH, SLOPE = 16, np.float32(0.01)
_ZERO = np.float32(0)


def variant(activation="identity"):
    return Variant("rows.forward", "float32", activation, width=WIDTH)


def on_vectors(function, x, dtype=np.float32):
    """Apply a compiled function to whole vectors."""
    v, width = variant(), WIDTH

    @njit
    def loop(x, y):
        for i in range(0, x.size, width):
            store(y, i, function(load(x, i, wide(v))))

    y = np.empty(x.size, dtype)
    loop(x, y)
    return y


def on_values(function, x):
    """Apply it to one value at a time, as at the end of a row."""

    @njit
    def loop(x, y):
        for i in range(x.size):
            store(y, i, function(load(x, i, _ZERO)))

    y = np.empty_like(x)
    loop(x, y)
    return y


def grid(low, high):
    """Dense over a range, and over the small values in it."""
    tiny = np.float32(2.0) ** np.arange(-100, 0, 0.25)
    near = np.concatenate([-tiny, tiny])
    values = np.concatenate([np.linspace(low, high, 1 << 18), near[(near > low) & (near < high)]])
    return np.resize(values, -(-values.size // WIDTH) * WIDTH).astype(np.float32)


def ulps(got, want):
    """The largest error in units of the last place of the float32 nearest to what is wanted."""
    return float(
        np.max(np.abs(got.astype(np.float64) - want) / np.spacing(np.abs(np.float32(want))))
    )


FUNCTIONS = {
    "exponential": (activations.exponential, (-87, 88), np.exp, 2),
    "erf": (activations.erf, (-4, 4), np.vectorize(math.erf), 6),
    "sigmoid": (activations.sigmoid, (-85, 85), lambda x: 1 / (1 + np.exp(-x)), 4),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_within_a_few_units_in_the_last_place(name):
    function, limits, exact, most = FUNCTIONS[name]
    x = grid(*limits)
    got = on_vectors(function, x)
    assert ulps(got, exact(x.astype(np.float64))) <= most
    np.testing.assert_array_equal(on_values(function, x[-8192:]), got[-8192:])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_beyond_its_range_it_stays_at_the_limits_and_keeps_nan(name):
    function, _, exact, _ = FUNCTIONS[name]
    x = np.resize(np.array([-1e30, -200, 200, 1e30, math.nan, 1], np.float32), WIDTH)
    got = on_vectors(function, x)
    assert np.isnan(got[4])
    assert not np.isnan(np.delete(got, np.flatnonzero(np.isnan(x)))).any()
    if name != "exponential":  # which is held at the largest power that float32 has
        np.testing.assert_allclose(
            got[:4], exact(np.clip(x[:4], -700, 700).astype(float)), atol=1e-7
        )


def both(name, z):
    """The activation and its derivative, times one, at z."""
    v, width, one = variant(name), WIDTH, np.float32(1)

    @njit
    def loop(z, y, dz):
        for i in range(0, z.size, width):
            here = load(z, i, wide(v))
            store(y, i, activations.activate(v, here, SLOPE))
            store(dz, i, activations.gradient(v, simd.splat(one, here), here, SLOPE))

    y, dz = np.empty_like(z), np.empty_like(z)
    loop(z, y, dz)
    return y, dz


def equations(name, z):
    short, approximate = name.removesuffix("_tanh"), "tanh" if "tanh" in name else "none"
    return (
        equations_act.activate(z, short, SLOPE, approximate),
        equations_act.activation_gradient(z, short, SLOPE, approximate),
    )


@pytest.mark.parametrize("name", NAMES)
def test_activations_are_exact_to_the_rounding_of_float32(name):
    """In units of the rounding of z, where that is larger than what is wanted: z·Φ(z) cancels."""
    z = grid(-12, 12)
    y, dz = both(name, z)
    want_y, want_dz = equations(name, z)
    rounding = 2.0**-24 * np.maximum(np.abs(z), 1)
    assert np.max(np.abs(y - want_y) / rounding) <= 4
    assert np.max(np.abs(dz - want_dz) / rounding) <= 8
    small = np.abs(z) < 0.5
    assert np.max(np.abs(y - want_y)[small] / np.maximum(np.abs(want_y[small]), 1e-30)) < 1e-6


def torchs(name, z):
    z = torch.from_numpy(z).requires_grad_()
    if name.startswith("gelu"):
        y = F.gelu(z, approximate="tanh" if "tanh" in name else "none")
    else:
        y = F.leaky_relu(z, 0.01) if name == "leaky_relu" else getattr(F, name)(z)
    (dz,) = torch.autograd.grad(y, z, torch.ones_like(y))
    return y.detach().numpy(), dz.numpy()


@pytest.mark.parametrize("name", ["relu", "relu6", "leaky_relu", "hardswish"])
def test_kinks_are_answered_as_torch_does(name):
    kinks = np.array([-6, -3, -0.0, 0, 3, 6, 1e30, -1e30, math.inf, -math.inf], np.float32)
    z = np.resize(kinks, WIDTH)
    near = np.concatenate([np.nextafter(z, np.float32(-9e9)), z, np.nextafter(z, np.float32(9e9))])
    for got, want in zip(both(name, near), torchs(name, near), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("name", NAMES)
def test_an_activation_of_nan_is_nan(name):
    y, _ = both(name, np.full(WIDTH, math.nan, np.float32))
    assert np.isnan(y).all()


def unchanged(x):
    return x


def test_every_bfloat16_widens_exactly():
    codes = np.arange(1 << 16, dtype=np.uint16)
    want = torch.from_numpy(codes).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(on_vectors(njit(unchanged), codes), want)


def test_float32_narrows_to_bfloat16_as_in_torch():
    """Every upper half, with lower halves below, at and above the tie."""
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    bits = ((np.arange(1 << 16, dtype=np.uint32) << 16)[:, None] | lower).ravel()
    x = bits.view(np.float32)
    got = torch.from_numpy(on_vectors(njit(unchanged), x, np.uint16)).view(torch.bfloat16).float()
    want = torch.from_numpy(x).to(torch.bfloat16).float()
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.nan_to_num(0.5, math.inf), want.nan_to_num(0.5, math.inf))


def test_all_lanes_are_summed():
    x = np.arange(8 * WIDTH, dtype=np.float32)
    v, width = variant(), WIDTH

    @njit
    def loop(x, y):
        for i in range(0, x.size, width):
            y[i // width] = simd.total(load(x, i, wide(v)))

    y = np.empty(8, np.float32)
    loop(x, y)
    np.testing.assert_array_equal(y, x.reshape(8, WIDTH).sum(1))
