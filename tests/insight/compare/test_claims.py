"""The claims on invented trainings: a planted effect is found, none is invented."""

from __future__ import annotations

import math

import pytest

from compare_helpers import made_up
from gammabeta.insight.compare.measures import (
    gradient_variability,
    thresholds,
    typical_roughness,
)


def verdicts(comparison):
    return {claim.id: (claim.verdict, claim.reason) for claim in comparison.claims}


def test_planted_effects_are_found():
    found = verdicts(made_up(gain=0.1, speed=3.0, dropout=0.05, fewer=2))
    assert set(found) == {"faster", "accurate", "stable", "dropout"}
    assert {verdict for verdict, _ in found.values()} == {"supported"}


def test_equal_variants_give_no_support():
    found = verdicts(made_up())
    assert found["accurate"] == ("not supported", "below")
    assert found["faster"] == ("not supported", "below")
    assert found["stable"] == ("not supported", "below")
    assert found["dropout"] == ("undecided", "dropout-never-helped")


def test_a_worse_batch_norm_is_not_supported():
    assert verdicts(made_up(gain=-0.05, speed=0.5))["accurate"][0] == "not supported"


def test_one_seed_is_never_a_verdict():
    found = verdicts(made_up(seeds=1, gain=0.3, speed=5.0, dropout=0.2, fewer=3))
    assert {verdict for verdict, _ in found.values()} == {"undecided"}
    assert {reason for _, reason in found.values()} == {"one-seed"}


def test_noise_larger_than_the_effect_is_undecided():
    noisy = made_up(gain=0.02, noise=(0.05, -0.05, 0.03))
    assert verdicts(noisy)["accurate"] == ("undecided", "across")


def test_speed_is_the_ratio_of_epochs():
    claim = made_up(speed=2.0).claims[0]
    assert claim.measures[0].id == "epochs"
    assert 2 ** claim.measures[0].judgement.mean == pytest.approx(2.0, rel=0.1)


def test_learning_rates_are_counted_in_decades():
    stable = made_up(fewer=2).claims[2].measures[0]
    assert stable.judgement.differences == pytest.approx([1.02] * 3, abs=0.03)
    low, high = stable.judgement.interval
    assert high - low == pytest.approx(0.5), "widened by half of the grid's step at both ends"
    assert stable.judgement.verdict == "supported"


def test_missing_variants_are_named():
    comparison = made_up()
    lines = [dict(line) for line in comparison.lines]
    lines[0]["variants"] = ["bn", "groupnorm"]
    lines = [r for r in lines if r.get("variant", "bn") in {"bn", "groupnorm"}]
    found = verdicts(type(comparison).of_lines(lines))
    assert set(found.values()) == {("undecided", "missing-variants")}


def test_thresholds_are_reached_by_all_and_above_chance():
    low = {"points": [{"accuracy": 0.1}]}
    high = {"points": [{"accuracy": 0.9}, {"accuracy": 0.8}]}
    assert thresholds([high], 10) == [0.5, 0.7, 0.86]
    assert thresholds([high, low], 10) == []


def test_gradient_variability_is_free_of_scale_and_trend():
    norms = [1.0, 1.1, 0.9, 1.2, 0.8, 1.0]
    scaled = [50 * n for n in norms]
    one, other = (gradient_variability({"gradient_norm": n}) for n in (norms, scaled))
    assert one == pytest.approx(other)
    drift = [math.exp(0.3 * i) for i in range(9)]
    assert gradient_variability({"gradient_norm": drift}) == pytest.approx(0.3)


def test_a_walk_that_left_the_finite_numbers_is_left_out_of_both():
    def walk(beta):
        return {"loss": 1.0, "losses": [1.5], "distances": [0.2], "smoothness": [beta]}

    first = {"landscape": [walk(2.0), walk(8.0)]}
    second = {"landscape": [walk(None), walk(4.0)]}
    assert typical_roughness(first, second, "smoothness") == pytest.approx((8.0, 4.0))
    assert typical_roughness({"landscape": [walk(None)]}, second, "smoothness") is None
