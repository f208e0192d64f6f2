"""Pooling in the compiled CPU kernels: the oracle, ties, and slopes that tell nothing of x."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from kernel_helpers import BF16, DTYPES, F32, LAYOUTS, MODES, TOLERANCES, fused, inputs_of, laid
from norm_helpers import (
    ACTIVATIONS,
    POOLS,
    assert_matches,
    assert_same,
    randn,
    reference,
    running,
    with_gradients,
)


@pytest.mark.parametrize(
    ("dtype", "case", "pool"),
    [(F32, "relu", 2), (F32, "relu", 3), (F32, "none", 2), (BF16, "relu", 2)],
    ids=str,
)
@pytest.mark.parametrize("size", [(6, 5), (1, 1), (2, 3), (3, 2), (9, 1)], ids=str)
@MODES
def test_pooling_matches_the_oracle(dtype, case, pool, size, training):
    size = size if pool == 3 else tuple(max(s, 2) for s in size)  # torch refuses an empty output
    options, act = ACTIVATIONS[case]
    stats = None if training else running(19)
    assert_matches(
        fused("rows", stats=stats, pool=pool, **options),
        lambda **t: reference(**t, act=act, pool=pool, stats=stats),
        inputs_of((4, 19, *size), dtype),
        **{F32: TOLERANCES[F32], BF16: {"rtol": 2**-7, "atol": 2**-7}}[dtype],
    )


@pytest.mark.parametrize(("case", "layout"), [("silu", "planes"), ("relu6", "rows")])
def test_pooling_after_what_it_does_not_commute_with(case, layout):
    options, act = ACTIVATIONS[case]
    assert_matches(
        fused(layout, pool=3, **options),
        lambda **t: reference(**t, act=act, pool=3),
        inputs_of((4, 20, 6, 5), F32, residual=True),
        **TOLERANCES[F32],
    )


@pytest.mark.parametrize("channels", [1, 3, 16, 24, 32, 64, 65, 96, 4095, 4096])
@pytest.mark.parametrize("pool", [None, *POOLS])
@LAYOUTS
def test_any_number_of_channels(channels, pool, layout):
    if pool == 3 and channels % 32 == 0:
        channels -= 1  # wider vectors are compiled for the other window only
    count = 2 if channels > 100 else 17
    for shape in [(count, channels, 3, 4), (2, channels, 4, 5)]:
        assert_matches(
            fused(layout, pool=pool, activation="relu"),
            lambda **t: reference(**t, act=F.relu, pool=pool),
            inputs_of(shape, F32),
            rtol=1e-4,
            atol=1e-5,
        )


@DTYPES
@pytest.mark.parametrize("ratio", [0.5, 30.0, 1e3])
def test_a_bias_that_drowns_what_is_normalised_does_not_drown_the_gradient(dtype, ratio):
    """x̂ is taken from x, and not from an output that rounds it away."""
    inputs = inputs_of((16, 20, 8, 8), dtype)
    inputs["weight"], inputs["bias"] = torch.ones(20), torch.full((20,), ratio)
    assert_matches(
        fused("rows", activation="relu", pool=2),
        lambda **t: reference(**t, act=F.relu, pool=2),
        inputs,
        **({"rtol": 1e-4, "atol": 3e-5} if dtype == F32 else {"rtol": 2**-6, "atol": 2**-6}),
    )


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("weight", [0.0, 1e-40, -1e-35, 1e30])
@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_a_slope_that_does_not_tell_x_still_has_its_gradient(activation, weight, bias):
    """As after zero-initialising γ, the usual start of a residual branch."""
    inputs = inputs_of((6, 20, 6, 6), F32)
    inputs["weight"], inputs["bias"] = torch.full((20,), weight), torch.full((20,), bias)
    got = with_gradients(fused("rows", activation=activation, pool=2), inputs)
    assert all(t.isfinite().all() for t in got.values())
    act = F.relu if activation else lambda z: z
    if weight == 0:
        doubles = {name: t.double() for name, t in inputs.items()}
        want = with_gradients(lambda **t: reference(**t, act=act, pool=2), doubles)
        torch.testing.assert_close(got["dweight"].double(), want["dweight"], rtol=1e-4, atol=1e-4)


TIES = {"positive": [8.0, 4.0, 2.0], "negative": [-8.0, -4.0, -2.0], "zero": [0.0, 0.0, 8.0]}


@pytest.mark.parametrize(
    ("case", "pool", "layout"),
    [("none", 2, "rows"), *itertools.product(["relu"], POOLS, ["rows", "planes"])],
)
@pytest.mark.parametrize("size", [(4, 6), (7, 5), (3, 3)], ids=str)
@pytest.mark.parametrize("weight", TIES.values(), ids=TIES)
def test_ties_are_broken_as_torch_does(case, pool, size, weight, layout):
    """Small integers in, statistics that change nothing: every sum is exact, so are the ties."""
    options, act = ACTIVATIONS[case]
    x = (randn(3, 3, *size) * 1.5).round()
    inputs = {"x": x, "weight": torch.tensor(weight), "bias": torch.tensor([1.0, -2.0, 0.0])}
    stats = torch.tensor([1.0, 0.0, -2.0]), torch.full((3,), 0.75)
    eps = {"eps": 0.25}  # var + eps is one

    def unfused(x, weight, bias):
        y = F.batch_norm(laid(x, layout), *stats, weight, bias, **eps)
        return F.max_pool2d(act(y), *POOLS[pool])

    got = with_gradients(fused(layout, stats=stats, pool=pool, **options, **eps), inputs)
    want = with_gradients(unfused, inputs)
    assert_same({n: got[n] for n in ("y", "dx")}, {n: want[n] for n in ("y", "dx")})
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
