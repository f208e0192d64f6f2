"""Giving batch norms the statistics of the data, exactly, and changing nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gammabeta.errors import GammabetaError
from gammabeta.moments import Array
from gammabeta.population.estimate import Estimate
from gammabeta.population.feed import Feed, Forward
from gammabeta.population.layers import Station, survey
from gammabeta.population.parking import Parking
from gammabeta.population.processes import Processes
from gammabeta.population.report import Change, Recalibration
from gammabeta.population.sequential import measure_in_sequence
from gammabeta.population.together import OnBatch, measure_together
from gammabeta.probe import not_compiled, refuse, untouched
from gammabeta.surgery.report import Entry

VARIANCES = ("pooled", "mean-of-batches")


def recalibrate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    forward: Forward | None = None,
    sequential: bool = True,
    variance: str = "pooled",
    batches: int | None = None,
    samples: int | None = None,
    memory: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Recalibration:
    r"""Set every batch norm's running statistics to those of the data under the present weights.

    After training, running statistics lag behind the weights; after averaging weights (SWA, EMA)
    or changing the data they belong to another network. Here they become the mean and the unbiased
    variance over all values of all batches together, by the law of total variance: batches of any
    size count as much as they hold. Sums are merged in float64 and rounded once.

    With ``sequential`` the layers are fixed front to back, each fed as eval mode will feed it, so
    that batch size, order and split change nothing but rounding. Each operator runs once a batch;
    between two layers the batches wait with what they hold. Without it each layer is normalised by
    the batch at hand, as in training: exact at the first layer of every path.

    Nothing else changes: parameters, modes, momentum, counters, hooks, random state, frozen layers
    and layers that no batch reached. Buffers are written in place, all of them or none. In a
    process group every process calls this with its share, even an empty one, and all end with the
    same statistics.

    Args:
        model: Any module. It is run in eval mode, without gradients.
        loader: Batches: tensors, tuples whose first element is the input, or dictionaries of the
            forward's arguments. Best the training data, in full batches or not.
        forward: For any other batches: ``lambda model, batch: model(...)``.
        sequential: Whether each layer is fed as eval mode will feed it.
        variance: "pooled", or "mean-of-batches", the plain mean of the batches' unbiased variances,
            which misses what batches differ by.
        batches: Stop after this many; the report states how sure the result is.
        samples: Stop with the batch that reaches this many.
        memory: Bytes of waiting activations kept in memory; the rest goes to temporary files. By
            default a quarter of what is available.
        progress: Called with a word, the steps done and their number.

    Returns:
        Per layer the old and new statistics, and their distance in standard errors.

    Raises:
        GammabetaError: If there is no batch, no batch norm to recalibrate, NaN or infinity on the
            way (it names layer and batch), or another process failed. The model is then as before.

    References:
        Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 2; Wu & Johnson 2021, "Rethinking 'Batch'
        in BatchNorm", arXiv:2105.07576, section 3; Chan, Golub & LeVeque 1983.

    Example:
        >>> data = torch.randn(64, 3) * 2 + 5
        >>> model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
        >>> report = recalibrate(model, data.split(10))
        >>> bool(torch.allclose(model[0].running_var, data.var(0)))
        True
        >>> report.samples, report.changes[0].path
        (64, '0')
    """
    if variance not in VARIANCES:
        raise GammabetaError(f"variance is {variance!r}, but must be {' or '.join(VARIANCES)}")
    if isinstance(model, DistributedDataParallel):
        model = model.module  # the wrapper broadcasts buffers in every forward, and shares differ
    refuse(model)
    stations, left = survey(model)
    before = {s.path: _numbers(s) for s in stations}
    feed, processes = Feed(model, loader, forward, batches, samples), Processes()
    parking = Parking(memory)
    with _stood_in_for(model):
        measure = partial(_measure, stations, feed, processes, sequential, variance, parking)
        total = _together(processes, measure, _on_batch(progress))
    if not total[0]:
        raise GammabetaError("the loader has no batch, so there is nothing to measure")
    reached = [station for station in stations if station.seen.batches]
    changes = [_change(station, before[station.path], variance) for station in reached]
    left += [Entry(s.path, "no forward reached it") for s in stations if not s.seen.batches]
    _write([(s, c) for s, c in zip(reached, changes, strict=True)])
    notes = list(_notes(changes, sequential))
    return Recalibration(changes, left, *total, sequential, variance, parking.spilled, notes)


@contextmanager
def _stood_in_for(model: nn.Module) -> Iterator[None]:
    """Run a model in eval mode on stand-ins of its tensors."""
    with not_compiled(), untouched(model, parameters=False), torch.no_grad():
        for module in model.modules():
            module.training = False
        yield


def _together(
    processes: Processes,
    measure: Callable[[OnBatch], tuple[int, int]],
    on_batch: OnBatch,
) -> tuple[int, int]:
    """Measure, and tell the other processes if it fails."""
    try:
        return measure(on_batch)
    except Exception as error:
        processes.fail(error)
        raise


def _measure(
    stations: Sequence[Station],
    feed: Feed,
    processes: Processes,
    sequential: bool,
    variance: str,
    parking: Parking,
    on_batch: OnBatch,
) -> tuple[int, int]:
    """Fill the stations' estimates, and return how many batches and samples there were."""
    if sequential:
        statistics = partial(_statistics, variance=variance)
        measure_in_sequence(stations, feed, processes, statistics, parking, on_batch)
    else:
        measure_together(stations, feed, on_batch)
    open_stations = [station for station in stations if not station.fixed]
    brought = processes.gather([station.seen for station in open_stations])
    for i, station in enumerate(open_stations):
        station.seen = Estimate.of_all([seen[i] for seen in brought])
    totals = processes.gather((feed.batches, feed.samples))
    return sum(b for b, _ in totals), sum(s for _, s in totals)


def _statistics(station: Station, seen: Estimate, variance: str) -> tuple[Array, Array]:
    """Return the mean and the variance that the layer is to have.

    Raises:
        GammabetaError: If there was one value per channel in all, so that no variance is known.
    """
    pooled = seen.pooled
    var = pooled.unbiased_var if variance == "pooled" else seen.mean_of_variances
    if np.isnan(var).any():
        raise GammabetaError(
            f"{station.path or 'the batch norm'} saw one value per channel"
            f"{'' if variance == 'pooled' else ' in every batch'}, which says nothing of a "
            "variance; hand in more data"
        )
    return pooled.mean, var


def _numbers(station: Station) -> tuple[Array, Array]:
    layer = station.layer
    return _array(layer.running_mean), _array(layer.running_var)


def _array(tensor: Tensor) -> Array:
    return tensor.detach().cpu().double().numpy().copy()


def _change(station: Station, before: tuple[Array, Array], variance: str) -> Change:
    mean, var = _statistics(station, station.seen, variance)
    count, errors = int(station.seen.pooled.count), station.seen.errors()
    return Change(station.path, count, station.calls, *before, mean, var, errors)


def _write(changes: list[tuple[Station, Change]]) -> None:
    """Write all statistics in place, or none.

    Raises:
        GammabetaError: If one is too large for its buffer's dtype.
    """
    new: list[tuple[Tensor, Tensor, Tensor]] = []
    for station, change in changes:
        layer = station.layer
        for buffer, value in ((layer.running_mean, change.mean), (layer.running_var, change.var)):
            rounded = torch.from_numpy(value).to(buffer.device, buffer.dtype)
            if not bool(torch.isfinite(rounded).all()):
                raise GammabetaError(
                    f"{change.path or 'the batch norm'}: {np.abs(value).max():.3g} does not fit "
                    f"into {buffer.dtype}; keep batch norms in float32"
                )
            new.append((buffer, rounded, buffer.detach().clone()))
    try:
        for buffer, rounded, _ in new:
            _put(buffer, rounded)
    except BaseException:
        for buffer, _, old in new:
            _put(buffer, old)
        raise


def _put(buffer: Tensor, value: Tensor) -> None:
    with torch.inference_mode(buffer.is_inference()), torch.no_grad():
        buffer.copy_(value)


def _notes(changes: list[Change], sequential: bool) -> Iterator[str]:
    healed = [change.path or "the model" for change in changes if change.was_broken]
    if healed:
        yield f"{', '.join(healed)}: running statistics were NaN or infinite, and are whole now"
    shared = [change.path for change in changes if change.calls > 1]
    if sequential and shared:
        yield (
            f"{', '.join(shared)}: called several times in a forward, so normalised by each "
            "batch's own statistics while measuring; what follows carries their noise"
        )
    if not sequential and len(changes) > 1:
        yield (
            "each layer was fed by layers that used the batch's own statistics: exact at the first "
            "layer of every path, noisier after it the smaller the batches; sequential=True has "
            "no such noise"
        )
    if any(change.errors is None for change in changes):
        yield "standard errors are unknown: they compare batches, and there was one"


def _on_batch(progress: Callable[[str, int, int], None] | None) -> OnBatch:
    if progress is None:
        return lambda _done, _total: None
    return lambda done, total: progress("recalibrating", done, max(total, done))
