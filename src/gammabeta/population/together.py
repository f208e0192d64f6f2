"""One pass in which every layer is normalised by the statistics of the batch at hand.

That is how the layers ran in training. The first batch norm of every path gets exact statistics;
the input of a later one carries the noise of the batches before it, the more the smaller they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from gammabeta.population.feed import Feed
from gammabeta.population.layers import Station

Visit = Callable[[Station, Tensor], None]
"""Called with a layer that is about to be run, and its input."""
OnBatch = Callable[[int, int], None]
"""Called with how much is done and how much there is; 0 if that is not known."""


def measure_together(stations: Sequence[Station], feed: Feed, on_batch: OnBatch) -> None:
    """Send every batch through the model once, and add what the layers saw to their estimates."""
    number = 0

    def visit(station: Station, x: Tensor) -> None:
        moments = station.measure(x, number)
        station.seen.add(number, moments)
        station.normalise_by_batch(moments, number)

    with visiting(stations, visit):
        for number, batch in enumerate(feed):
            feed.call(batch)
            on_batch(number + 1, len(feed))


@contextmanager
def visiting(stations: Sequence[Station], visit: Visit) -> Iterator[None]:
    """Have ``visit`` called before each call of the layers, after the user's own hooks."""
    with ExitStack() as stack:
        for station in stations:
            hook = partial(_hook, visit, station)
            handle = station.caller.register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _hook(
    visit: Visit, station: Station, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    visit(station, args[0] if args else next(iter(kwargs.values())))
