"""The rule from differences to a verdict: known values, false alarms, planted effects."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gammabeta.insight.compare import statistics
from gammabeta.insight.compare.statistics import (
    REFUTED,
    STUDENT,
    SUPPORTED,
    UNDECIDED,
    bootstrap_interval,
    judge,
    sign_flip_p,
    student_interval,
)


def test_students_quantiles_are_scipys():
    np.testing.assert_allclose(STUDENT, stats.t.ppf(0.975, np.arange(1, 31)), rtol=1e-4)


@pytest.mark.parametrize("count", [2, 3, 5, 31, 40, 200])
def test_students_interval_is_scipys(count):
    d = np.random.default_rng(count).normal(0.3, 1.0, count)
    want = stats.t.interval(0.95, count - 1, d.mean(), stats.sem(d))
    np.testing.assert_allclose(student_interval(d), want, rtol=2e-3, atol=1e-3)


def test_the_bootstrap_is_seeded_and_near_scipys():
    d = np.random.default_rng(0).exponential(1.0, 30)
    assert bootstrap_interval(d) == bootstrap_interval(d)
    want = stats.bootstrap(
        (d,), np.mean, method="percentile", n_resamples=20_000, random_state=1, batch=1000
    ).confidence_interval
    np.testing.assert_allclose(bootstrap_interval(d), want, atol=0.03)


def test_the_sign_flip_test_is_scipys():
    d = np.random.default_rng(3).normal(0.5, 1.0, 9)
    want = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(d) == pytest.approx(want.pvalue)


def test_many_signs_are_drawn_instead_of_counted():
    d = np.random.default_rng(3).normal(0.4, 1.0, 30)
    want = stats.ttest_1samp(d, 0.0).pvalue
    assert sign_flip_p(d) == pytest.approx(want, abs=0.02)


@pytest.mark.parametrize("count", [3, 5, 8])
@pytest.mark.parametrize("shape", ["normal", "lopsided"])
def test_false_alarms_are_rarer_than_one_in_forty(count, shape, monkeypatch):
    """True mean exactly the smallest effect that counts: the hardest null."""
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    rng = np.random.default_rng(count)
    d = rng.normal(size=(1500, count))
    if shape == "lopsided":
        d = rng.exponential(size=(1500, count)) - 1.0
    verdicts = [judge(row + 0.5, smallest=0.5).verdict for row in d]
    assert verdicts.count(SUPPORTED) / len(verdicts) < 0.035
    if shape == "normal":
        assert verdicts.count(REFUTED) / len(verdicts) < 0.035


@pytest.mark.parametrize("count", [3, 5, 8])
def test_a_planted_effect_is_found(count):
    d = np.random.default_rng(count).normal(5.0, 0.3, size=(50, count))
    found = [judge(row, smallest=0.5) for row in d]
    assert {one.verdict for one in found} == {SUPPORTED}
    assert all(one.effect_size > 3 for one in found)


@pytest.mark.parametrize(
    ("differences", "verdict", "reason"),
    [
        ([], UNDECIDED, "no-data"),
        ([100.0], UNDECIDED, "one-seed"),
        ([2.0, 2.0, 2.0], SUPPORTED, "above"),
        ([0.1, 0.2, 0.15], REFUTED, "below"),
        ([-5.0, -5.1, -4.9], REFUTED, "below"),
        ([2.0, 4.0, -1.0], UNDECIDED, "across"),
    ],
)
def test_each_verdict_has_its_reason(differences, verdict, reason):
    found = judge(differences, smallest=0.5)
    assert (found.verdict, found.reason) == (verdict, reason)


def test_no_seed_may_disagree():
    """Ten differences whose interval is clear, though sign flips could do as much."""
    d = [1.0, 1.1, 0.9, 1.0, 1.05]
    assert judge(d, smallest=0.5).reason == "above"
    assert statistics._verdict(0.6, 2.0, 0.5, agree=False) == (UNDECIDED, "signs")


def test_the_interval_is_the_wider_one_and_grows_by_the_resolution():
    d = [1.0, 1.2, 0.9]
    plain, coarse = judge(d, 0.5), judge(d, 0.5, resolution=0.4)
    assert plain.interval == (
        min(plain.student[0], plain.bootstrap[0]),
        max(plain.student[1], plain.bootstrap[1]),
    )
    assert coarse.interval == pytest.approx((plain.interval[0] - 0.2, plain.interval[1] + 0.2))
