"""Timing several subjects against each other, fairly.

A machine's speed drifts from second to second, so rivals take turns: each round runs every subject
once, in a new order, and two subjects are compared by the median of their ratios within each round.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

Call = Callable[[], object]
LEAST_SECONDS = 0.002
"""A sample shorter than this is dominated by the clock and the scheduler: calls are repeated."""
MIN_ROUNDS, MAX_ROUNDS = 3, 50
NOISY_PERCENT = 10.0
"""torch.utils.benchmark warns from this share of the interquartile range in the median on."""


@dataclass(frozen=True)
class Samples:
    """Seconds a call took, one entry a round.

    Example:
        >>> samples = Samples((1.0, 3.0, 2.0, 9.0, 2.0))
        >>> samples.median, samples.spread_percent
        (2.0, 50.0)
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the samples, in seconds."""
        return statistics.median(self.seconds)

    @property
    def spread_percent(self) -> float:
        """Interquartile range as a percentage of the median; 0 for a single sample."""
        if len(self.seconds) < 2:
            return 0.0
        quarter, _, three = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return 100 * (three - quarter) / self.median

    def times(self, other: Samples) -> float:
        """Return how many times ``other``'s time this one takes: the median over the rounds.

        Example:
            >>> Samples((2.0, 30.0, 4.0)).times(Samples((1.0, 10.0, 2.0)))
            2.0
        """
        pairs = zip(self.seconds, other.seconds, strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)


def interleave(
    calls: Mapping[str, Call],
    *,
    rounds: int | None = None,
    seconds: float = 5.0,
    progress: Callable[[float], None] = lambda _: None,
) -> dict[str, Samples]:
    """Time calls that have been warmed up, round by round.

    Args:
        calls: What to time, by name.
        rounds: Rounds to run; by default as many as fit into ``seconds``, from 3 to 50.
        seconds: Time for all rounds together, unless ``rounds`` is given.
        progress: Told after each round the share done, from 0 to 1.

    Returns:
        The samples of each call, all of the same length.

    Example:
        >>> timed = interleave({"short": lambda: sum(range(10)), "long": lambda: sum(range(9999))},
        ...                    rounds=3)
        >>> timed["long"].times(timed["short"]) > 2
        True
    """
    repeats = {name: repeats_of(call) for name, call in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    done = 0
    with _no_garbage_collection():
        while done < (rounds or MAX_ROUNDS):
            for name in order(list(calls), done):
                taken[name].append(seconds_of(calls[name], repeats[name]))
            done += 1
            spent = (time.perf_counter() - began) / seconds if seconds > 0 else 1.0
            progress(min(1.0, done / rounds if rounds else max(spent, done / MAX_ROUNDS)))
            if rounds is None and done >= MIN_ROUNDS and spent * (done + 1) / done > 1:
                break
    return {name: Samples(tuple(values)) for name, values in taken.items()}


def order(names: Sequence[str], turn: int) -> list[str]:
    """Return the order of one round: over the rounds everyone comes first and last as often.

    Example:
        >>> [order("abc", turn) for turn in range(3)]
        [['a', 'b', 'c'], ['c', 'b', 'a'], ['b', 'c', 'a']]
    """
    start = turn // 2 % len(names)
    turned = [*names[start:], *names[:start]]
    return turned[::-1] if turn % 2 else turned


def seconds_of(call: Call, repeats: int) -> float:
    """Return the seconds of one call, as the mean over some in a row."""
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) / repeats


def repeats_of(call: Call) -> int:
    """Return how many calls in a row make a sample that the clock can resolve."""
    repeats = 1
    while (once := seconds_of(call, repeats)) * repeats < LEAST_SECONDS:
        repeats = max(2 * repeats, min(10 * repeats, round(LEAST_SECONDS / max(once, 1e-9))))
    return repeats


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect now, and not in the middle of a sample, as ``timeit`` does."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
