"""The norm tests' assertion fails for subjects that are wrong on purpose."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from norm_helpers import assert_matches, assert_same, data, reference


def correct(x, weight, bias):
    return F.batch_norm(x, None, None, weight, bias, True)


def detached_statistics(x, weight, bias):
    var, mean = torch.var_mean(x.detach(), 0, correction=0)
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def unbiased_variance(x, weight, bias):
    var, mean = torch.var_mean(x, 0)
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def no_weight_gradient(x, weight, bias):
    return correct(x, weight * 0 + weight.detach(), bias)


def no_bias_gradient(x, weight, bias):
    return correct(x, weight, bias * 0 + bias.detach())


def test_a_correct_subject_passes():
    assert_matches(correct, reference, data((8, 4)))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (detached_statistics, "dx"),
        (unbiased_variance, "y"),
        (no_weight_gradient, "dweight"),
        (no_bias_gradient, "dbias"),
    ],
)
def test_a_wrong_subject_fails_and_the_tensor_is_named(wrong, named):
    with pytest.raises(AssertionError, match=rf"^{named}:"):
        assert_matches(wrong, reference, data((8, 4)))


def test_another_dtype_fails():
    with pytest.raises(AssertionError, match="float64"):
        assert_matches(lambda **t: correct(**t).double(), reference, data((8, 4)))


@pytest.mark.parametrize("change", [1e-7, float("nan")])
def test_assert_same_sees_a_single_bit(change):
    one = {"a": torch.ones(2)}
    with pytest.raises(AssertionError, match=r"^a:"):
        assert_same(one, {"a": torch.tensor([1.0, 1.0 + change])})


def test_assert_same_compares_names():
    with pytest.raises(AssertionError):
        assert_same({"a": torch.ones(1)}, {"b": torch.ones(1)})
