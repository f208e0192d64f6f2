"""The oracle itself, held against numbers worked out by hand, finite differences and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gammabeta import equations as eq

SHAPES = [(8, 4), (2, 1), (5, 3, 7), (4, 3, 5, 7), (2, 3, 2, 3, 2)]
EPS = 1e-3
shapes = st.lists(st.integers(1, 4), min_size=2, max_size=5).filter(
    lambda shape: np.prod(shape) // shape[1] >= 2
)


def draw(shape, seed=0):
    """Return x, dy, gamma, beta, running mean and running variance, none of them special."""
    rng = np.random.default_rng(seed)
    x, dy = 3 * rng.standard_normal(shape) + 1, rng.standard_normal(shape)
    gamma, beta, mean = rng.standard_normal((3, shape[1]))
    return x, dy, gamma, beta, mean, rng.uniform(0.5, 2, shape[1])


def slope(f, at, cotangent, step=1e-5):
    """Return ∂(cotangent · f)/∂at by central differences."""
    found = np.empty(at.shape)
    for i in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[i] += step
        down[i] -= step
        found[i] = np.sum(cotangent * (f(up) - f(down))) / (2 * step)
    return found


def assert_gradients(f, gradients, inputs, dy):
    """Compare the gradients of f(*inputs) with finite differences, one input at a time."""
    for i, gradient in enumerate(gradients):
        numeric = slope(lambda a, i=i: f(*inputs[:i], a, *inputs[i + 1 :]), inputs[i], dy)
        np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-7)


def torch_gradients(f, inputs, dy):
    """Return f's value and gradients as torch computes them in float64."""
    leaves = [torch.tensor(a, requires_grad=True) for a in inputs]
    y = f(*leaves)
    grads = torch.autograd.grad(y, leaves, torch.tensor(dy))
    return [t.detach().numpy() for t in (y, *grads)]


def assert_all_close(got, want):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_forward_of_a_small_example_by_hand():
    # mean 5, deviations -3 -1 1 3, variance 20 / 4 = 5; with eps 4, sigma is 3.
    x = np.array([[2.0], [4.0], [6.0], [8.0]])
    mean, var = eq.batch_statistics(x)
    assert (mean, var) == (5, 5)
    np.testing.assert_allclose(
        eq.batch_norm(x, gamma=6, beta=10, eps=4).ravel(), [4, 8, 12, 16], rtol=1e-15
    )


def test_backward_of_a_small_example_by_hand():
    # As above: xhat = -1, -1/3, 1/3, 1. dbeta = 1 + 3, dgamma = 1 * -1 + 3 * 1.
    x, dy = np.array([[2.0], [4.0], [6.0], [8.0]]), np.array([[1.0], [0.0], [0.0], [3.0]])
    dx, dgamma, dbeta = eq.batch_norm_backward(dy, x, gamma=6, eps=4)
    assert dbeta == 4
    np.testing.assert_allclose(dgamma, [2])
    # dx = 6 / (3 * 4) * (4 dy - 4 - 2 xhat)
    np.testing.assert_allclose(dx.ravel(), [1, -5 / 3, -7 / 3, 3])


def test_the_three_paths_of_a_small_example_by_hand():
    x, dy = np.array([[2.0], [4.0], [6.0], [8.0]]), np.array([[1.0], [0.0], [0.0], [3.0]])
    paths = eq.backward_paths(dy, x, gamma=6, eps=4)
    np.testing.assert_allclose(paths.direct.ravel(), [2, 0, 0, 6])
    np.testing.assert_allclose(paths.through_mean.ravel(), [-2, -2, -2, -2])
    np.testing.assert_allclose(paths.through_variance.ravel(), [1, 1 / 3, -1 / 3, -1])


def test_running_statistics_of_a_small_example_by_hand():
    # The unbiased variance of 4 values with biased variance 3 is 4; a quarter of it enters.
    mean, var = eq.update_running([0.0], [1.0], [8.0], [3.0], count=4, momentum=0.25)
    assert (mean, var) == (2, 1.75)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training_agrees_with_torch_forward_and_backward(shape):
    x, dy, gamma, beta, *_ = draw(shape)
    want = torch_gradients(
        lambda x, g, b: F.batch_norm(x, None, None, g, b, training=True, eps=EPS),
        (x, gamma, beta),
        dy,
    )
    got = eq.batch_norm(x, gamma, beta, EPS), *eq.batch_norm_backward(dy, x, gamma, EPS)
    assert_all_close(got, want)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_eval_agrees_with_torch_forward_and_backward(shape):
    x, dy, gamma, beta, mean, var = draw(shape)
    constant = torch.tensor(mean), torch.tensor(var)
    want = torch_gradients(
        lambda x, g, b: F.batch_norm(x, *constant, g, b, eps=EPS), (x, gamma, beta), dy
    )
    got = (
        eq.batch_norm_eval(x, mean, var, gamma, beta, EPS),
        *eq.batch_norm_eval_backward(dy, x, mean, var, gamma, EPS),
    )
    assert_all_close(got, want)


@pytest.mark.parametrize("momentum", [0.1, 0.7, 1.0, 0.0, None], ids=str)
def test_running_statistics_follow_torch_over_several_batches(momentum):
    layer = torch.nn.BatchNorm1d(3, momentum=momentum, dtype=torch.float64)
    running = np.zeros(3), np.ones(3)
    for batch in range(1, 5):
        x = draw((4 + batch, 3, 2), seed=batch)[0]
        layer(torch.tensor(x))
        count = x.size // 3
        running = eq.update_running(*running, *eq.batch_statistics(x), count, momentum, batch)
    assert_all_close(running, (layer.running_mean.numpy(), layer.running_var.numpy()))


@pytest.mark.parametrize("count", [0, 1])
def test_the_unbiased_variance_of_too_few_values_is_refused(count):
    with pytest.raises(ValueError, match=f"2 values per channel or more, not {count}"):
        eq.update_running(0, 1, 0, 0, count)


@given(shapes, st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_backward_agrees_with_finite_differences(shape, seed):
    x, dy, gamma, beta, *_ = draw(shape, seed)
    gradients = eq.batch_norm_backward(dy, x, gamma, eps=0.5)
    assert_gradients(lambda *a: eq.batch_norm(*a, eps=0.5), gradients, (x, gamma, beta), dy)


def test_eval_backward_agrees_with_finite_differences():
    x, dy, gamma, beta, mean, var = draw((3, 2, 2))
    gradients = eq.batch_norm_eval_backward(dy, x, mean, var, gamma, EPS)
    forward = lambda x, g, b: eq.batch_norm_eval(x, mean, var, g, b, EPS)  # noqa: E731
    assert_gradients(forward, gradients, (x, gamma, beta), dy)


@given(shapes, st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_the_three_paths_add_up_to_dx(shape, seed):
    x, dy, gamma, *_ = draw(shape, seed)
    dx = eq.batch_norm_backward(dy, x, gamma, EPS)[0]
    np.testing.assert_allclose(sum(eq.backward_paths(dy, x, gamma, EPS)), dx, atol=1e-9)


@given(shapes, st.floats(-100, 100), st.floats(0.5, 50))
@settings(max_examples=30, deadline=None)
def test_shift_and_scale_of_the_input_cancel(shape, shift, scale):
    x = draw(shape)[0]
    moved = eq.batch_norm(scale * x + shift, eps=scale**2 * EPS)
    np.testing.assert_allclose(moved, eq.batch_norm(x, eps=EPS), atol=1e-9)


def test_a_mean_of_1e8_leaves_the_variance_intact():
    x = draw((1000, 2))[0]
    _, var = eq.batch_statistics(x + 1e8)
    np.testing.assert_allclose(var, eq.batch_statistics(x)[1], rtol=1e-6)


def test_nan_stays_in_its_channel():
    x, dy, *_ = draw((4, 2, 3))
    x[0, 1, 0] = np.nan
    for values in (eq.batch_norm(x), eq.batch_norm_backward(dy, x)[0]):
        assert np.isnan(values[:, 1]).all()
        assert np.isfinite(values[:, 0]).all()


def test_inputs_are_left_unchanged():
    given_ = draw((4, 2, 3))
    kept = [a.copy() for a in given_]
    x, dy, gamma, beta, mean, var = given_
    eq.batch_norm(x, gamma, beta)
    eq.batch_norm_backward(dy, x, gamma)
    eq.update_running(mean, var, *eq.batch_statistics(x), 12)
    for now, before in zip(given_, kept, strict=True):
        np.testing.assert_array_equal(now, before)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3, 3)], ids=["linear", "convolution"])
def test_a_folded_layer_computes_what_layer_and_norm_computed(shape):
    _, _, gamma, beta, mean, var = draw((2, 4))
    rng = np.random.default_rng(1)
    weight, bias, x = rng.standard_normal(shape), rng.standard_normal(4), rng.standard_normal(shape)
    apply = lambda w, b: np.tensordot(x, w, (range(1, x.ndim),) * 2) + b  # noqa: E731
    folded = apply(*eq.fold_linear(weight, bias, mean, var, gamma, beta, EPS))
    want = eq.batch_norm_eval(apply(weight, bias), mean, var, gamma, beta, EPS)
    np.testing.assert_allclose(folded, want, rtol=1e-12)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3), (5, 4, 3, 2)], ids=str)
def test_a_norm_folded_into_the_next_layer_computes_what_norm_and_layer_computed(shape):
    _, _, gamma, beta, mean, var = draw((2, 4))
    rng = np.random.default_rng(2)
    weight, bias = rng.standard_normal(shape), rng.standard_normal(5)
    x = rng.standard_normal((3, *shape[1:]))
    apply = lambda x, w, b: np.tensordot(x, w, (range(1, x.ndim),) * 2) + b  # noqa: E731
    folded = apply(x, *eq.fold_into_next(weight, bias, mean, var, gamma, beta, EPS))
    want = apply(eq.batch_norm_eval(x, mean, var, gamma, beta, EPS), weight, bias)
    np.testing.assert_allclose(folded, want, rtol=1e-12)


@pytest.mark.parametrize(
    ("n", "size", "values", "lengths"),
    [
        (8, 4, 1, [4, 4]),
        (10, 4, 1, [4, 4, 2]),
        (9, 4, 1, [4, 5]),
        (9, 4, 2, [4, 4, 1]),
        (3, 4, 1, [3]),
        (1, 4, 1, [1]),
        (0, 4, 1, [0]),
    ],
    ids=["even", "a rest", "a rest of one value", "a rest of one sample", "small", "one", "none"],
)
def test_ghost_parts(n, size, values, lengths):
    parts = eq.ghost_parts(n, size, values)
    assert [part.stop - part.start for part in parts] == lengths


@given(st.integers(0, 50), st.integers(2, 9), st.integers(1, 3))
def test_ghost_parts_cover_every_sample_once_in_order(n, size, values):
    parts = eq.ghost_parts(n, size, values)
    assert [i for part in parts for i in range(n)[part]] == list(range(n))


def test_ghost_batches_are_normalised_apart():
    x, _, gamma, beta, *_ = draw((9, 3, 1))
    y = eq.ghost_batch_norm(x, 4, gamma, beta, EPS)
    np.testing.assert_array_equal(y[:4], eq.batch_norm(x[:4], gamma, beta, EPS))
    np.testing.assert_array_equal(y[4:], eq.batch_norm(x[4:], gamma, beta, EPS))


def test_ghost_backward_agrees_with_finite_differences():
    x, dy, gamma, beta, *_ = draw((7, 2, 2))
    gradients = eq.ghost_batch_norm_backward(dy, x, 3, gamma, EPS)
    forward = lambda x, g, b: eq.ghost_batch_norm(x, 3, g, b, EPS)  # noqa: E731
    assert_gradients(forward, gradients, (x, gamma, beta), dy)


@pytest.mark.parametrize("parts", [1, 2, 7])
@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0])
def test_ghost_updates_keep_as_much_of_the_old_value_as_one(momentum, parts):
    kept = (1 - eq.ghost_momentum(momentum, parts)) ** parts
    assert kept == pytest.approx(1 - momentum, abs=1e-15)


def test_unclipped_renorm_trains_with_the_running_statistics():
    x, _, gamma, beta, mean, var = draw((6, 3, 2))
    correction = eq.renorm_correction(x, mean, var, EPS, r_max=np.inf, d_max=np.inf)
    np.testing.assert_allclose(
        eq.batch_renorm(x, correction, gamma, beta, EPS),
        eq.batch_norm_eval(x, mean, var, gamma, beta, EPS),
        atol=1e-12,
    )


def test_fully_clipped_renorm_is_batch_norm():
    x, _, gamma, beta, mean, var = draw((6, 3, 2))
    correction = eq.renorm_correction(x, mean, var, EPS, r_max=1, d_max=0)
    np.testing.assert_array_equal(
        eq.batch_renorm(x, correction, gamma, beta, EPS), eq.batch_norm(x, gamma, beta, EPS)
    )


def test_renorm_correction_by_hand():
    # Batch: mean 5, variance 5, so sigma_B = 3 with eps 4. Running: sigma = 2, then 6.
    x = [[2.0], [4.0], [6.0], [8.0]]
    assert eq.renorm_correction(x, 3, 0, 4, r_max=2, d_max=2) == (1.5, 1)
    assert eq.renorm_correction(x, 3, 0, 4, r_max=1.25, d_max=0.5) == (1.25, 0.5)
    assert eq.renorm_correction(x, 7, 32, 4, r_max=1.25, d_max=0.25) == (0.8, -0.25)


def test_renorm_backward_holds_the_correction_constant():
    x, dy, gamma, beta, mean, var = draw((6, 3, 2))
    correction = eq.renorm_correction(x, mean, var, EPS, r_max=1.2, d_max=0.3)
    gradients = eq.batch_renorm_backward(dy, x, correction, gamma, EPS)
    forward = lambda x, g, b: eq.batch_renorm(x, correction, g, b, EPS)  # noqa: E731
    assert_gradients(forward, gradients, (x, gamma, beta), dy)


def test_the_gradient_check_catches_a_wrong_gradient():
    x, dy, gamma, beta, *_ = draw((4, 2))
    wrong = [eq.backward_paths(dy, x, gamma, EPS).direct]  # statistics taken as constant
    with pytest.raises(AssertionError):
        assert_gradients(lambda *a: eq.batch_norm(*a, EPS), wrong, (x, gamma, beta), dy)
