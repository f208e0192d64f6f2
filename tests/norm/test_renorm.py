"""Batch renormalisation: batch norm at first, then the paper's formula within its limits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gammabeta
from gammabeta import BatchRenorm1d, GammabetaError
from norm_helpers import TOLERANCES, assert_matches, assert_same, data, fill, per_channel, randn

SHAPES = {1: (6, 3), 2: (4, 3, 5, 7), 3: (3, 3, 2, 3, 2)}
DIMS = pytest.mark.parametrize("d", SHAPES)
NOW = {"warmup": 0, "r_steps": 1, "d_steps": 1}


def layer(d=1, count=0, dtype=torch.float32, **options):
    """A layer with its own running statistics that has seen so many batches."""
    made = fill(getattr(gammabeta, f"BatchRenorm{d}d")(3, dtype=dtype, **options))
    made.num_batches_tracked.fill_(count)
    return made


def paper(x, weight, bias, *, stats, r_max, d_max, eps=1e-5):
    """Algorithm 1 of Ioffe 2017, with r and d as constants."""
    var, mean = torch.var_mean(x, [0, *range(2, x.dim())], correction=0)
    batch, sigma = (var + eps).sqrt(), (stats[1].to(x.dtype) + eps).sqrt()
    r = (batch / sigma).clamp(1 / r_max, r_max).detach()
    d = ((mean - stats[0].to(x.dtype)) / sigma).clamp(-d_max, d_max).detach()
    normed = (x - per_channel(mean, x)) / per_channel(batch, x) * per_channel(r, x)
    return (normed + per_channel(d, x)) * per_channel(weight, x) + per_channel(bias, x)


@pytest.mark.parametrize("limits", [(3.0, 5.0), (1.1, 0.2), (1.0, 0.0)], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@DIMS
def test_after_the_warm_up_it_is_the_papers_formula(d, dtype, limits):
    made = layer(d, 10, dtype, r_max=limits[0], d_max=limits[1], **NOW)
    stats = (made.running_mean.clone(), made.running_var.clone())

    def subject(x, weight, bias):
        return torch.func.functional_call(made, {"weight": weight, "bias": bias}, (x,))

    def expected(x, weight, bias):
        return paper(x, weight, bias, stats=stats, r_max=limits[0], d_max=limits[1])

    assert_matches(subject, expected, data(SHAPES[d], dtype))


@DIMS
def test_during_the_warm_up_it_is_batch_norm(d):
    made, plain = layer(d, momentum=0.1), fill(getattr(nn, f"BatchNorm{d}d")(3))
    for seed in range(3):
        x = data(SHAPES[d], seed=seed)["x"]
        torch.testing.assert_close(made(x), plain(x))
    torch.testing.assert_close(dict(made.state_dict()), dict(plain.state_dict()))


@DIMS
def test_in_evaluation_it_is_batch_norm_and_keeps_its_state(d):
    made, plain = layer(d, 10, **NOW).eval(), fill(getattr(nn, f"BatchNorm{d}d")(3)).eval()
    before = {n: t.clone() for n, t in made.state_dict().items()}
    x = data(SHAPES[d])["x"]
    torch.testing.assert_close(made(x), plain(x))
    assert_same(dict(made.state_dict()), before)


@pytest.mark.parametrize(
    ("count", "r_max", "d_max"),
    [(0, 1, 0), (100, 1, 0), (200, 1.4, 2.5), (300, 1.8, 5), (600, 3, 5), (9999, 3, 5)],
)
def test_the_limits_follow_the_schedule_at_its_corners(count, r_max, d_max):
    made = layer(count=count, warmup=100, r_steps=600, d_steps=300)
    torch.testing.assert_close([float(v) for v in made.limits()], [float(r_max), float(d_max)])


def test_the_defaults_are_the_papers():
    made = BatchRenorm1d(3)
    assert (made.momentum, made.warmup, made.r_steps, made.d_steps) == (0.01, 5000, 40000, 25000)
    assert (made.r_max, made.d_max) == (3, 5)


def test_a_limit_changes_the_batch_after_the_warm_up():
    made = layer(count=0, warmup=1, r_steps=2, d_steps=2)
    plain = [made(randn(6, 3)) for _ in range(2)]
    torch.testing.assert_close(plain[0], plain[1])
    assert not torch.allclose(made(randn(6, 3)), plain[0], atol=1e-2)


@pytest.mark.parametrize("affine", [{"affine": False}, {"bias": False}], ids=str)
def test_without_parameters_they_count_as_one_and_zero(affine):
    made = layer(count=10, **affine, **NOW)
    weight = torch.ones(3) if made.weight is None else made.weight
    stats = (made.running_mean.clone(), made.running_var.clone())
    x = randn(6, 3)
    expected = paper(x, weight, torch.zeros(3), stats=stats, r_max=3.0, d_max=5.0)
    torch.testing.assert_close(made(x), expected)


def test_half_precision_data_keep_float32_statistics():
    made = layer(count=10, **NOW)
    y = made(randn(6, 3, dtype=torch.bfloat16))
    assert (y.dtype, made.running_mean.dtype) == (torch.bfloat16, torch.float32)


def test_state_dicts_go_both_ways_with_batch_norm():
    made, plain = layer(count=7), nn.BatchNorm1d(3)
    plain.load_state_dict(made.state_dict(), strict=True)
    fill(plain, seed=30)
    made.load_state_dict(plain.state_dict(), strict=True)
    assert_same(dict(made.state_dict()), dict(plain.state_dict()))
    assert made.num_batches_tracked == 7


def test_converting_to_sync_batch_norm_leaves_it_alone():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(BatchRenorm1d(3)))
    assert type(model[0]) is BatchRenorm1d


def test_a_batch_without_samples_is_not_counted():
    made = layer(count=3, **NOW)
    assert made(torch.zeros(0, 3)).shape == (0, 3)
    assert made.num_batches_tracked == 3


@pytest.mark.parametrize("bad", [{"r_max": 0.5}, {"d_max": -1.0}], ids=str)
def test_impossible_limits_are_refused(bad):
    with pytest.raises(ValueError, match=r"expected r_max >= 1, d_max >= 0"):
        BatchRenorm1d(3, **bad)


def test_one_value_is_an_error_that_names_the_class():
    with pytest.raises(GammabetaError, match="in BatchRenorm1d"):
        BatchRenorm1d(3)(randn(1, 3))


@DIMS
def test_a_wrong_number_of_axes_is_refused(d):
    with pytest.raises(ValueError, match=rf"expected .*{d + 2}D input \(got 6D input\)"):
        layer(d)(randn(2, 3, 1, 1, 1, 1))


def test_the_repr_names_the_limits():
    assert "r_max=2.0, d_max=1.0" in repr(BatchRenorm1d(3, r_max=2.0, d_max=1.0))
