"""One pass that fixes the layers front to back, each fed as eval mode will feed it.

A batch norm's statistics are known when all batches have reached it, and only then may any of them
go on. So every batch's forward runs in a coroutine of its own (a greenlet, since the code between
two layers is the user's), which waits at the layer with all that it holds until the layer is fixed.
Each operator runs once for each batch, as in a plain forward, whatever the number of layers; where
memory does not suffice for all that waits, some batches are run again from their start instead.

A layer that one forward calls several times cannot be fixed between its own calls. It is normalised
by each batch's own statistics, and pooled at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from math import inf
from time import perf_counter
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from gammabeta.errors import GammabetaError
from gammabeta.moments import Array
from gammabeta.population.estimate import Estimate
from gammabeta.population.feed import Feed
from gammabeta.population.layers import Station
from gammabeta.population.parking import Parked, Parking
from gammabeta.population.processes import Processes
from gammabeta.population.together import OnBatch, visiting

Statistics = Callable[[Station, Estimate], tuple[Array, Array]]
"""Turns what a layer saw into its mean and variance."""


def measure_in_sequence(
    stations: Sequence[Station],
    feed: Feed,
    processes: Processes,
    statistics: Statistics,
    parking: Parking,
    on_batch: OnBatch,
) -> None:
    """Fix the layers one after the other; those called several times a forward are only measured.

    Args:
        stations: The layers.
        feed: The batches; all of them are under way at once.
        processes: Those that measure together.
        statistics: Tells what a layer is fixed at.
        parking: Keeps what the waiting batches hold.
        on_batch: Told of every stretch between two layers that a batch has gone.

    Raises:
        GammabetaError: If a batch reaches a layer after it was fixed: its way depends on the data.
    """
    batches = iter(feed)
    first = list(_next(batches))
    order = _in_order(stations, [_scout(stations, feed, b) for b in first], processes)
    line = _Line(order, feed, processes, statistics, parking, on_batch)
    with line.attached():
        line.run(chain(first, batches))


def _next(batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        yield batch
        return


def _scout(stations: Sequence[Station], feed: Feed, batch: Any) -> list[tuple[str, int]]:
    """Return the layers in the order in which a forward first calls them, and how often it does."""
    calls: dict[str, int] = {}

    def visit(station: Station, x: Tensor) -> None:
        calls[station.path] = calls.get(station.path, 0) + 1
        moments = station.measure(x, 0)
        if moments.count:
            station.normalise_by(moments.mean, moments.var)

    def run(given: Any) -> None:
        calls.clear()
        feed.call(tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, given))

    with visiting(stations, visit):
        try:
            run(feed.few(batch))
        except Exception:  # noqa: BLE001 (some models take no batch of two)
            run(batch)
    return list(calls.items())


def _in_order(
    stations: Sequence[Station], scouted: list[list[tuple[str, int]]], processes: Processes
) -> list[Station]:
    """Order the layers as the first process that has a batch met them, and note shared ones."""
    by_path = {station.path: station for station in stations}
    met: dict[str, None] = {}
    for calls in chain.from_iterable(processes.gather(scouted)):
        for path, count in calls:
            met[path] = None
            by_path[path].calls = max(by_path[path].calls, count)
    return [by_path[path] for path in [*met, *(p for p in by_path if p not in met)]]


class _Batch(greenlet):  # type: ignore[misc]
    """A batch on its way through the model.

    Args:
        number: From 0.
        feed: Calls the model.
        given: What the loader gave; it stays as it is unless the model writes into its input.
        measured: The layers that have measured this batch already, in an earlier run.
    """

    def __init__(self, number: int, feed: Feed, given: Any, measured: Iterable[int] = ()) -> None:
        super().__init__(lambda: feed.call(given))
        self.number, self.feed, self.given = number, feed, given
        self.met = list(measured)
        self.measured = frozenset(measured)
        self.seconds = 0.0  # that running it again up to here would take
        inputs = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
        self.parked = Parked(keep=inputs)
        self._versions = [(x, x._version) for x in inputs if not x.is_inference()]
        self.repeatable = len(self._versions) == len(inputs)

    def advance(self) -> None:
        """Run until the next layer that is not fixed, or to the end."""
        began = perf_counter()
        with _modes_of_this_thread():
            self.switch()
        self.seconds += perf_counter() - began

    def end(self) -> None:
        """Drop all that it holds."""
        with _modes_of_this_thread():
            self.throw()

    def cost(self) -> float:
        """Return the seconds that running it again would take; infinite if it must not be."""
        unchanged = all(x._version == version for x, version in self._versions)
        return self.seconds if self.repeatable and unchanged else inf

    def again(self) -> _Batch:
        """End this one, and return another that has yet to start."""
        self.end()
        return _Batch(self.number, self.feed, self.given, self.met)


class _Line:
    """The batches, and the layers they wait at."""

    def __init__(
        self,
        order: list[Station],
        feed: Feed,
        processes: Processes,
        statistics: Statistics,
        parking: Parking,
        on_batch: OnBatch,
    ) -> None:
        self.order, self.feed, self.processes = order, feed, processes
        self.statistics, self.parking, self.on_batch = statistics, parking, on_batch
        self.position = {station.path: i for i, station in enumerate(order)}
        self.waiting: dict[int, list[_Batch]] = {}
        self.stretches = 0

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Have the layers stop the batches, and note what these hold; end those still under way."""
        callers = {id(station.caller) for station in self.order}
        with visiting(self.order, self._stop), ExitStack() as stack:
            for module in self.feed.model.modules():
                if id(module) not in callers and not _inside(module, self.order):
                    for handle in _noting(module):
                        stack.callback(handle.remove)
            try:
                yield
            finally:
                for batch in chain.from_iterable(self.waiting.values()):
                    batch.end()
                self.parking.close()

    def run(self, batches: Iterator[Any]) -> None:
        """Let all batches go to their first layer, and then on from layer to layer."""
        for number, given in enumerate(batches):
            self._advance(_Batch(number, self.feed, given))
        while (position := self._fix_next()) is not None:
            ready = self.waiting.setdefault(position, [])
            while ready:
                self._advance(ready.pop(0))
            del self.waiting[position]

    def _advance(self, batch: _Batch) -> None:
        """Let a batch run until it waits again or is done."""
        self.parking.leave(batch.parked)
        batch.advance()
        if not batch.dead:
            kept = self.parking.enter(batch.parked, batch.cost())
            self.waiting.setdefault(batch.met[-1], []).append(batch if kept else batch.again())
        self.stretches += 1
        batches = max(self.feed.batches, len(self.feed))
        self.on_batch(self.stretches, batches * (len(self.order) + 1))

    def _fix_next(self) -> int | None:
        """Fix the foremost layer that any batch of any process waits at; None if all are done."""
        mine = min(self.waiting, default=None)
        seen = None if mine is None else self.order[mine].seen
        brought = self.processes.gather((mine, seen))
        position = min((at for at, _ in brought if at is not None), default=None)
        if position is None:
            return None
        station = self.order[position]
        parts = [part for at, part in brought if at == position and part is not None]
        station.seen = Estimate.of_all(parts) if self.processes.size > 1 else station.seen
        station.fix(*self.statistics(station, station.seen))
        return position

    def _stop(self, station: Station, x: Tensor) -> None:
        """Measure what a batch brings to a layer; it waits there until the layer is fixed."""
        batch: _Batch = getcurrent()
        position = self.position[station.path]
        if position in batch.measured:
            return
        if station.fixed:
            raise GammabetaError(
                f"batch {batch.number}: {station.path or 'the batch norm'} is called after its "
                "statistics were fixed, for the model's way depends on the data; use "
                "sequential=False"
            )
        moments = station.measure(x, batch.number)
        station.seen.add(batch.number, moments)
        if station.calls > 1:
            station.normalise_by_batch(moments, batch.number)
            batch.repeatable = False  # it would be measured twice
            return
        batch.parked.note([x])
        batch.met.append(position)
        with _modes_of_this_thread():
            batch.parent.switch()


def _inside(module: nn.Module, stations: Sequence[Station]) -> bool:
    """Tell whether a module is a layer within its caller: a hook there would unfuse it."""
    return any(module is station.layer for station in stations)


def _noting(module: nn.Module) -> Iterator[Any]:
    """Note the tensors that go in and out: what a waiting batch may hold."""

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _note((args, kwargs))

    yield module.register_forward_pre_hook(before, with_kwargs=True)
    yield module.register_forward_hook(lambda _module, _args, output: _note(output))


def _note(tree: Any) -> None:
    batch = getcurrent()
    if isinstance(batch, _Batch):
        batch.parked.note(leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


@contextmanager
def _modes_of_this_thread() -> Iterator[None]:
    """Put back what torch keeps for the thread: batches that take turns must not share it."""
    grad = torch.is_grad_enabled()
    autocast = [
        (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        for device in ("cpu", "cuda")
    ]
    try:
        yield
    finally:
        torch.set_grad_enabled(grad)
        for device, enabled, dtype in autocast:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
