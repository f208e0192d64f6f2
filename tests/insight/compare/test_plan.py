"""The plan: it fits the budget, says what it gives up, and can be stopped anywhere."""

from __future__ import annotations

import itertools

import pytest

from compare_helpers import fixed_plan, held, made_up, tiny_settings
from gammabeta import GammabetaError
from gammabeta.insight.compare.job import FULL
from gammabeta.insight.compare.plan import (
    USED,
    batch_jobs,
    chosen_rates,
    final_jobs,
    finalist_jobs,
    make_plan,
    outline,
    ranking,
    settle,
    sweep_jobs,
)
from gammabeta.models import VARIANTS


def pilot(seconds, threads=1):
    return {
        "step_seconds": dict.fromkeys(VARIANTS, seconds),
        "evaluation_seconds": dict.fromkeys(VARIANTS, seconds / 1000),
        "threads": threads,
    }


@pytest.mark.parametrize("minutes", [1, 3, 30])
@pytest.mark.parametrize("step", [0.002, 0.01, 0.03])
def test_what_is_planned_fits_the_budget_or_says_so(minutes, step):
    settings = tiny_settings(seeds=3)
    plan = make_plan(settings, held(), {2: pilot(step)}, 60.0 * minutes)
    jobs = outline(settings, plan)
    needed = sum(plan.seconds(job, held(), settings.batch_size) for job in jobs) / plan.workers
    assert needed <= 60 * minutes * USED * 1.02 or "short" in plan.notes
    assert minutes < 30 or not plan.notes


def test_the_faster_way_to_use_the_cores_is_taken():
    settings = tiny_settings()
    two, one = pilot(0.015), pilot(0.01, threads=2)
    assert make_plan(settings, held(), {1: one, 2: two}, 600.0).workers == 2
    assert make_plan(settings, held(), {1: one, 2: pilot(0.03)}, 600.0).threads == 2


def test_the_sweeps_pace_decides_the_rest():
    settings = tiny_settings()
    plan = make_plan(settings, held(), {2: pilot(0.01)}, 120.0)
    expected = [plan.seconds(job, held(), 64) for job in sweep_jobs(settings, plan)]

    def records(times):
        return [
            {**vars(job), "wall_seconds": times * seconds, "outcome": "trained"}
            for job, seconds in zip(sweep_jobs(settings, plan), expected, strict=True)
        ]

    fast, slow = (settle(plan, settings, held(), records(t), 60.0) for t in (0.5, 2.0))
    assert fast.settled
    assert fast.pace == pytest.approx(0.5 * plan.pace)
    assert fast.full_steps > slow.full_steps
    disturbed = records(0.5)
    for record in disturbed[::3]:
        record["wall_seconds"] *= 20
    assert settle(plan, settings, held(), disturbed, 60.0) == fast


def test_every_prefix_leaves_variants_with_the_same_seeds_but_for_the_last():
    settings = tiny_settings(seeds=3)
    jobs = sweep_jobs(settings, fixed_plan(settings))
    seeds = [job.seed for job in jobs]
    assert seeds == sorted(seeds)
    groups = itertools.batched(jobs, len(VARIANTS)) if hasattr(itertools, "batched") else None
    rows = groups or (jobs[i : i + len(VARIANTS)] for i in range(0, len(jobs), len(VARIANTS)))
    assert all([job.variant for job in row] == list(VARIANTS) for row in rows)
    assert len({job.key for job in jobs}) == len(jobs)


def test_rates_are_chosen_by_validation_and_finals_use_them():
    comparison = made_up(fewer=2)
    settings, plan, records = comparison.settings, comparison.plan, comparison.records
    assert all(rates[0] == 0.01 for rates in ranking(settings, records).values())
    assert chosen_rates(settings, records) == dict.fromkeys(VARIANTS, 0.01)
    finals = final_jobs(settings, plan, records)
    assert {job.seed for job in finals} == {1, 2}
    assert {job.lr for job in finals} == {0.01}
    assert {job.stage for job in finalist_jobs(settings, plan, records)} == {FULL}


def test_a_variant_that_only_guesses_is_ranked_by_its_loss_too():
    comparison = made_up()
    records = [dict(r) for r in comparison.records if r["stage"] == "sweep"]
    for r in records:
        r["final_loss"] = None if r["lr"] == 0.001 else 2.3 - (r["lr"] == 0.3)
        r["outcome"] = "nonfinite" if r["lr"] == 0.001 else r["outcome"]
    ranked = ranking(comparison.settings, records)["none"]
    assert ranked[:2] == [0.01, 0.3]
    assert ranked[-1] == 0.001


def test_test_accuracy_has_no_part_in_a_choice():
    comparison = made_up()
    lines = [dict(line) for line in comparison.lines]
    for line in lines:
        if line.get("test"):
            line["test"] = {"last": 0.0, "best": 0.0}
    other = type(comparison).of_lines(lines)
    settings = comparison.settings
    assert chosen_rates(settings, other.records) == chosen_rates(settings, comparison.records)


def test_batch_sizes_share_images_and_scale_the_rate():
    settings = tiny_settings()
    jobs = batch_jobs(settings, fixed_plan(settings, batch_images=512), ["bn"], {"bn": 0.1})
    assert [job.batch_size for job in jobs] == [128, 64, 32, 16, 8, 4, 2]
    assert {job.batch_size * job.steps for job in jobs} == {512}
    assert {job.lr / job.batch_size for job in jobs} == {0.1 / 64}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"variants": ("bn", "layernorm")}, "variants are bn, layernorm, but must be two or more"),
        ({"variants": ("bn", "bn")}, "each once"),
        ({"seeds": 0}, "seeds is 0, but must be at least 1"),
        ({"budget": 0.0}, "budget is 0.0, but must be above 0"),
        ({"rates": (0.1, 0.01)}, "rates is .*, but must be two, rising"),
        ({"precision": "fp16"}, "precision is fp16"),
        ({"image_size": 12}, "image_size is 12"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(GammabetaError, match=message):
        tiny_settings(**wrong)
