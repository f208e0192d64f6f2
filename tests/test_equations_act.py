"""The fused chain's oracle: activations and pooling as torch has them, kinks, ties and NaN too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gammabeta import equations as eq
from gammabeta import equations_act as act

CASES = {
    "identity": ({"name": None}, lambda z: z * 1),
    "relu": ({"name": "relu"}, F.relu),
    "relu6": ({"name": "relu6"}, F.relu6),
    "leaky_relu": ({"name": "leaky_relu", "negative_slope": 0.2}, lambda z: F.leaky_relu(z, 0.2)),
    "gelu": ({"name": "gelu"}, F.gelu),
    "gelu_tanh": (
        {"name": "gelu", "approximate": "tanh"},
        lambda z: F.gelu(z, approximate="tanh"),
    ),
    "silu": ({"name": "silu"}, F.silu),
    "hardswish": ({"name": "hardswish"}, F.hardswish),
}
POINTS = np.array([-800, -9, -3, -2.5, -1, -1e-3, -0.0, 0, 1e-3, 0.5, 2, 3, 5, 6, 7, 800, np.nan])
POOLS = {2: (2, 2, 0), 3: (3, 2, 1)}
nan, inf = np.nan, np.inf


@pytest.mark.parametrize("case", CASES)
def test_activations_agree_with_torch_at_kinks_and_nan_too(case):
    options, theirs = CASES[case]
    np.testing.assert_allclose(
        act.activate(POINTS, **options), theirs(torch.tensor(POINTS)), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize("case", CASES)
def test_derivatives_agree_with_torch_at_kinks_and_nan_too(case):
    options, theirs = CASES[case]
    z = torch.tensor(POINTS, requires_grad=True)
    theirs(z).backward(torch.ones_like(z))  # no sum over values: each derivative stands alone
    np.testing.assert_allclose(
        act.activation_gradient(POINTS, **options), z.grad, rtol=1e-12, atol=1e-15
    )


def test_every_activation_is_tested():
    assert set(CASES) == set(act.ACTIVATIONS)


def torch_pool(x, pool):
    """Return torch's maxima, places and, for a random cotangent, that and the gradient."""
    leaf = torch.tensor(x, requires_grad=True)
    y, places = F.max_pool2d(leaf, *POOLS[pool], return_indices=True)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=y.dtype)
    (dx,) = torch.autograd.grad(y, leaf, dy)
    return y.detach().numpy(), places.numpy(), dy.numpy(), dx.numpy()


def assert_pools_as_torch(x, pool):
    y, places, dy, dx = torch_pool(x, pool)
    got, where = act.max_pool(x, pool)
    np.testing.assert_array_equal(got, y)
    np.testing.assert_array_equal(where, places)
    np.testing.assert_allclose(act.max_pool_backward(dy, where, x.shape), dx, rtol=1e-12)


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 7), st.integers(2, 7)),
    st.sampled_from([2, 3]),
    st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_pooling_agrees_with_torch_on_ties_and_odd_sizes(shape, pool, seed):
    few_values = np.random.default_rng(seed).integers(0, 3, shape).astype(float)
    assert_pools_as_torch(few_values, pool)


@given(st.sampled_from([2, 3]), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_pooling_agrees_with_torch_on_nan_and_infinities(pool, seed):
    values = np.random.default_rng(seed).choice([nan, -inf, inf, 0.0, 1.0], (2, 2, 5, 6))
    assert_pools_as_torch(values, pool)


def test_padding_never_wins_even_over_minus_infinity():
    y, places = act.max_pool(np.full((1, 1, 4, 4), -inf), 3)
    assert (y == -inf).all()
    np.testing.assert_array_equal(places[0, 0], [[0, 1], [4, 5]])


def test_pooling_by_hand():
    x = np.array([[[[1.0, 5, 2, 2], [5, 0, 2, 2]]]])
    y, places = act.max_pool(x, 2)
    np.testing.assert_array_equal(y.ravel(), [5, 2])
    np.testing.assert_array_equal(places.ravel(), [1, 2])
    dx = act.max_pool_backward([[[[10.0, 20.0]]]], places, x.shape)
    np.testing.assert_array_equal(dx[0, 0], [[0, 10, 20, 0], [0, 0, 0, 0]])


def torch_chain(options, theirs, inputs, dy_seed, statistics, pool):
    x, gamma, beta, residual = leaves = [torch.tensor(a, requires_grad=True) for a in inputs]
    running = (None, None) if statistics is None else map(torch.tensor, statistics)
    z = F.batch_norm(x, *running, gamma, beta, training=statistics is None, eps=1e-3)
    y = theirs(z + residual)
    y = y if pool is None else F.max_pool2d(y, *POOLS[pool])
    generator = torch.Generator().manual_seed(dy_seed)
    dy = torch.randn(y.shape, generator=generator, dtype=y.dtype)
    return dy.numpy(), [t.detach().numpy() for t in (y, *torch.autograd.grad(y, leaves, dy))]


@pytest.mark.parametrize("statistics", [None, ([0.5, -1, 0], [1.5, 2, 0.5])], ids=["train", "eval"])
@pytest.mark.parametrize("pool", [None, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_the_whole_chain_agrees_with_torch_forward_and_backward(case, pool, statistics):
    options, theirs = CASES[case]
    rng = np.random.default_rng(2)
    x, residual = rng.standard_normal((2, 4, 3, 6, 7))
    gamma, beta = rng.standard_normal((2, 3))
    if statistics is not None:
        statistics = tuple(np.array(s, dtype=float) for s in statistics)
    dy, want = torch_chain(options, theirs, (x, gamma, beta, residual), 3, statistics, pool)
    named = {("activation" if k == "name" else k): v for k, v in options.items()}
    named |= {"residual": residual, "pool": pool, "statistics": statistics}
    y = act.batch_norm_act(x, gamma, beta, 1e-3, **named)
    gradients = act.batch_norm_act_backward(dy, x, gamma, beta, 1e-3, **named)
    for name, a, b in zip(["y", "dx", "dγ", "dβ", "dr"], (y, *gradients), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11, err_msg=name)


def test_without_extras_the_chain_is_batch_norm():
    x = np.random.default_rng(0).standard_normal((4, 3, 2))
    np.testing.assert_array_equal(act.batch_norm_act(x, 2.0, 1.0), eq.batch_norm(x, 2.0, 1.0))


@pytest.mark.parametrize("pool", [2, 3])
def test_relu_and_max_pooling_commute(pool):
    x = np.random.default_rng(0).standard_normal((4, 3, 6, 6))
    pooled_last = act.batch_norm_act(x, activation="relu", pool=pool)
    np.testing.assert_array_equal(
        act.activate(act.batch_norm_act(x, pool=pool), "relu"), pooled_last
    )
