"""Many batches of one layer: pooled moments, the older estimator, and standard errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gammabeta.moments import Moments
from gammabeta.population.estimate import MOST_BLOCKS, Estimate


def estimate(batches):
    seen = Estimate(batches[0].shape[1])
    for number, batch in enumerate(batches):
        seen.add(number, Moments.of(batch))
    return seen


def draws(sizes, seed=0, channels=2):
    rng = np.random.default_rng(seed)
    return [rng.normal(3, 2, (size, channels)) for size in sizes]


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=200), seed=st.integers(0, 9))
def test_pooled_moments_are_those_of_all_values_together(sizes, seed):
    batches = draws(sizes, seed)
    whole, pooled = np.concatenate(batches), estimate(batches).pooled
    assert pooled.count == len(whole)
    np.testing.assert_allclose(pooled.mean, whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(pooled.var, whole.var(0), rtol=1e-11, atol=1e-14)


def test_the_older_estimator_is_the_plain_mean_of_unbiased_variances():
    batches = draws([5, 3, 1])
    expected = (batches[0].var(0, ddof=1) + batches[1].var(0, ddof=1)) / 2
    np.testing.assert_allclose(estimate(batches).mean_of_variances, expected)
    assert np.isnan(estimate(draws([1])).mean_of_variances).all()


def test_memory_does_not_grow_with_the_number_of_batches():
    seen = estimate(draws([2] * 1000))
    assert seen.batches == 1000
    assert MOST_BLOCKS // 2 <= len(seen.blocks) <= MOST_BLOCKS


@pytest.mark.parametrize("batches", [20, 500])
def test_standard_errors_are_how_far_estimates_scatter(batches):
    found = [estimate(draws([16] * batches, seed, channels=1)) for seed in range(300)]
    means = np.array([e.pooled.mean[0] for e in found])
    variances = np.array([e.pooled.var[0] for e in found])
    stated = [e.errors() for e in found]
    assert np.median([s.mean[0] for s in stated]) == pytest.approx(means.std(), rel=0.12)
    assert np.median([s.var[0] for s in stated]) == pytest.approx(variances.std(), rel=0.15)


def test_values_that_resemble_each_other_within_a_batch_do_not_pass_for_many():
    rng = np.random.default_rng(0)
    batches = [np.full((1000, 1), rng.normal()) for _ in range(50)]
    error = estimate(batches).errors().mean[0]
    assert error == pytest.approx(1 / np.sqrt(50), rel=0.3)


def test_one_batch_tells_nothing_of_its_own_error():
    assert estimate(draws([100])).errors() is None


def test_calls_of_one_batch_belong_together():
    seen = Estimate(2)
    for number in (0, 0, 1, 1):
        seen.add(number, Moments.of(draws([4])[0]))
    assert (seen.batches, len(seen.blocks)) == (2, 2)


def test_processes_together_see_what_one_would():
    batches = draws([4, 7, 2, 9])
    parts = [estimate(batches[:1]), Estimate(2), estimate(batches[1:])]
    together, alone = Estimate.of_all(parts), estimate(batches)
    assert together.batches == 4
    np.testing.assert_allclose(together.pooled.m2, alone.pooled.m2, rtol=1e-13)
    np.testing.assert_allclose(together.mean_of_variances, alone.mean_of_variances)
    np.testing.assert_allclose(together.errors().mean, alone.errors().mean, rtol=1e-12)
