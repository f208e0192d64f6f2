"""The moments of each channel, from the kernels and without them, against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gammabeta.errors import GammabetaError
from gammabeta.moments import Moments
from gammabeta.norm.measure import channel_moments
from norm_helpers import randn

SHAPES = [(8, 4), (2, 1), (1, 3), (5, 3, 7), (4, 3, 5, 7), (33, 70, 6, 5), (2, 3, 2, 3, 2)]
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels-last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "strided": lambda x: x.repeat_interleave(2, dim=0)[::2],
    "reversed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
}


def assert_measured(x, rtol):
    got, want = channel_moments(x), Moments.of(x)
    assert got.count == want.count
    scale = np.sqrt(want.var) + 1e-30
    np.testing.assert_allclose(got.mean / scale, want.mean / scale, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(got.var, want.var, rtol=rtol, atol=1e-30)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_dtype_and_layout_is_measured(shape, dtype, layout):
    x = LAYOUTS[layout](randn(*shape) * 3 + 5).to(dtype)
    assert_measured(x, 1e-12 if dtype in {torch.float64, torch.float16} else 2e-6)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_a_large_mean_keeps_its_variance(layout):
    x = LAYOUTS[layout](randn(16, 5, 12, 12, dtype=torch.float64) * 1e-2 + 1e4).float()
    assert_measured(x, 1e-3)
    assert_measured(LAYOUTS[layout](randn(16, 5, 12, 12) + 1e4), 1e-5)


def test_values_whose_squares_overflow_float32_are_measured_again():
    assert_measured(randn(8, 3, 4, 4) * 1e30, 1e-12)


def test_a_constant_channel_has_no_variance():
    found = channel_moments(torch.full((6, 2, 3, 3), 0.1))
    np.testing.assert_array_equal(found.m2, [0, 0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_channel_that_is_not_finite_says_so_and_spares_the_others(value):
    x = randn(8, 3, 5, 5)
    x[2, 1, 3, 4] = value
    found = channel_moments(x)
    assert (np.isfinite(found.mean) & np.isfinite(found.m2)).tolist() == [True, False, True]


def test_nothing_is_measured_of_nothing():
    assert channel_moments(torch.zeros(0, 3, 4, 4)).count == 0
    assert channel_moments(torch.zeros(2, 3, 0)).count == 0


def test_the_bits_do_not_depend_on_the_number_of_threads():
    x, threads = randn(64, 24, 16, 16), torch.get_num_threads()
    found = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(channel_moments(x).to_vector())
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_a_vector_is_refused():
    with pytest.raises(GammabetaError, match=r"not \(3,\)"):
        channel_moments(torch.zeros(3))
