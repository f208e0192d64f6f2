"""Rivals take turns, ratios are taken within rounds, and time is shared as asked."""

from __future__ import annotations

import gc
import itertools

import pytest

from gammabeta.bench import measure
from gammabeta.bench.measure import MAX_ROUNDS, MIN_ROUNDS, Samples, interleave, order


class Clock:
    """A clock that only the subjects move, so that every duration is known."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.calls = []
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.now)

    def subject(self, name, *seconds):
        """A call that takes each of these times in turn, over and over."""
        durations = itertools.cycle(seconds)

        def call():
            self.calls.append(name)
            self.now += next(durations)

        return call


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_a_ratio_is_the_median_of_the_rounds_ratios():
    drifting, rival = Samples((1.0, 8.0, 3.0)), Samples((1.0, 4.0, 1.0))
    assert drifting.times(rival) == 2.0
    assert drifting.median / rival.median == 3.0  # what it would be otherwise


def test_ratios_of_samples_of_different_length_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        Samples((1.0, 2.0)).times(Samples((1.0,)))


@pytest.mark.parametrize(
    ("seconds", "percent"),
    [((1.0,), 0.0), ((2.0, 2.0, 2.0), 0.0), ((1.0, 2.0, 3.0, 4.0, 5.0), 100 * 2 / 3)],
)
def test_the_spread_is_the_interquartile_range_over_the_median(seconds, percent):
    assert Samples(seconds).spread_percent == pytest.approx(percent)


def test_samples_are_the_seconds_of_each_call(clock):
    calls = {"a": clock.subject("a", 0.01), "b": clock.subject("b", 0.03)}
    timed = interleave(calls, rounds=4)
    assert timed["a"].seconds == pytest.approx([0.01] * 4)
    assert timed["b"].times(timed["a"]) == pytest.approx(3.0)


def test_every_round_runs_every_subject_once_in_a_new_order(clock):
    calls = {name: clock.subject(name, 1.0) for name in "abc"}
    interleave(calls, rounds=4)
    rounds = [clock.calls[i : i + 3] for i in range(0, len(clock.calls), 3)][1:]  # [0]: counted
    assert [sorted(names) for names in rounds] == [["a", "b", "c"]] * 4
    assert len({tuple(names) for names in rounds}) == 4


@pytest.mark.parametrize("count", [2, 3, 5])
def test_everyone_is_first_and_last_as_often_over_a_full_turn(count):
    turns = [order(range(count), turn) for turn in range(2 * count)]
    for place in (0, -1):
        assert sorted(turn[place] for turn in turns) == sorted([*range(count)] * 2)


def test_a_call_too_short_for_the_clock_is_repeated_and_averaged(clock):
    timed = interleave({"short": clock.subject("short", 1e-5)}, rounds=1)
    assert timed["short"].median == pytest.approx(1e-5)
    assert len(clock.calls) * 1e-5 > measure.LEAST_SECONDS


def test_a_long_call_is_not_repeated(clock):
    interleave({"long": clock.subject("long", 1.0)}, rounds=3)
    assert len(clock.calls) == 1 + 3


@pytest.mark.parametrize(
    ("seconds", "rounds"), [(0.0, MIN_ROUNDS), (-1.0, MIN_ROUNDS), (10.0, 10), (1e9, MAX_ROUNDS)]
)
def test_without_rounds_the_time_decides(clock, seconds, rounds):
    timed = interleave({"one": clock.subject("one", 1.0)}, seconds=seconds)
    assert len(timed["one"].seconds) == rounds


@pytest.mark.parametrize("rounds", [None, 5])
def test_progress_rises_to_the_end(clock, rounds):
    shares = []
    interleave({"one": clock.subject("one", 1.0)}, rounds=rounds, seconds=5, progress=shares.append)
    assert shares == sorted(shares)
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_garbage_is_not_collected_meanwhile_but_again_afterwards():
    seen = []
    interleave({"look": lambda: seen.append(gc.isenabled())}, rounds=1)
    assert seen[-1] is False
    assert gc.isenabled()


def test_an_error_ends_it_and_gives_garbage_collection_back():
    calls = iter([None] * 5)
    with pytest.raises(StopIteration):
        interleave({"fails": lambda: (measure.time.sleep(0.01), next(calls))}, rounds=9)
    assert gc.isenabled()
