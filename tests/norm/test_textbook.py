"""What the layers compute is what :mod:`gammabeta.equations` says, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gammabeta import BatchRenorm2d, batch_norm, equations_act
from gammabeta import equations as eq
from gammabeta.norm.activation import ACTIVATIONS

SHAPE, EPS = (6, 3, 5, 7), 1e-5


def draw(shape=SHAPE):
    """Return x, γ, β, a residual and running statistics."""
    rng = np.random.default_rng(7)
    channel = [rng.normal(1, 0.4, shape[1]) for _ in range(3)]
    x, residual = rng.normal(2, 3, shape), rng.normal(size=shape)
    return x, channel[0], channel[1], residual, (channel[2], rng.uniform(0.5, 2, shape[1]))


def leaves(*arrays):
    return [torch.tensor(array, requires_grad=True) for array in arrays]


def cotangent(shape):
    return np.random.default_rng(8).normal(size=shape)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("pool", [None, 2, 3], ids="pool {}".format)
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_output_and_every_gradient_are_the_textbooks(activation, pool, training):
    x, gamma, beta, residual, running = draw()
    what = {"activation": activation, "residual": residual, "pool": pool}
    what["statistics"] = None if training else running
    want = equations_act.batch_norm_act(x, gamma, beta, EPS, **what)
    dy = cotangent(want.shape)
    wanted = equations_act.batch_norm_act_backward(dy, x, gamma, beta, EPS, **what)
    given = leaves(x, gamma, beta, residual)
    stats = [torch.tensor(value) for value in running]
    y = batch_norm(
        given[0],
        *stats,
        *given[1:3],
        training,
        eps=EPS,
        residual=given[3],
        activation=activation,
        pool=pool,
    )
    torch.testing.assert_close(y.detach(), torch.tensor(want))
    got = torch.autograd.grad(y, given, torch.tensor(dy))
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, torch.tensor(theirs))


@pytest.mark.parametrize("size", [2, 4, 5])
def test_ghost_batches_and_their_momentum_are_the_textbooks(size):
    x, gamma, beta, _, running = draw((7, 3))
    stats = [torch.tensor(value) for value in running]
    given = leaves(x, gamma, beta)
    y = batch_norm(given[0], *stats, *given[1:], True, 0.3, EPS, virtual_batch_size=size)
    torch.testing.assert_close(
        y.detach(), torch.tensor(eq.ghost_batch_norm(x, size, gamma, beta, EPS))
    )
    dy = cotangent(x.shape)
    wanted = eq.ghost_batch_norm_backward(dy, x, size, gamma, EPS)
    for ours, theirs in zip(torch.autograd.grad(y, given, torch.tensor(dy)), wanted, strict=True):
        torch.testing.assert_close(ours, torch.tensor(theirs))
    parts = eq.ghost_parts(len(x), size)
    mean, var = running
    for part in parts:
        measured = eq.batch_statistics(x[part])
        count = len(x[part])
        weight = eq.ghost_momentum(0.3, len(parts))
        mean, var = eq.update_running(mean, var, *measured, count, weight)
    torch.testing.assert_close(stats, [torch.tensor(mean), torch.tensor(var)])


def test_batch_renormalisation_is_the_textbooks():
    x, gamma, beta, _, running = draw()
    layer = BatchRenorm2d(3, dtype=torch.float64, r_max=1.2, d_max=0.3, warmup=0, r_steps=1)
    layer.d_steps = 1
    layer.load_state_dict(
        {
            "weight": torch.tensor(gamma),
            "bias": torch.tensor(beta),
            "running_mean": torch.tensor(running[0]),
            "running_var": torch.tensor(running[1]),
            "num_batches_tracked": torch.tensor(9),
        }
    )
    correction = eq.renorm_correction(x, *running, EPS, r_max=1.2, d_max=0.3)
    (given,) = leaves(x)
    y = layer(given)
    torch.testing.assert_close(
        y.detach(), torch.tensor(eq.batch_renorm(x, correction, gamma, beta, EPS))
    )
    dy = cotangent(x.shape)
    wanted = eq.batch_renorm_backward(dy, x, correction, gamma, EPS)
    got = torch.autograd.grad(y, [given, layer.weight, layer.bias], torch.tensor(dy))
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, torch.tensor(theirs))
