"""Measuring each batch norm while the passes run, so that no pass need keep what it sees."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gammabeta.equations import ghost_parts
from gammabeta.insight.explanation.choice import Room, choose
from gammabeta.insight.explanation.following import Following
from gammabeta.insight.explanation.noise import noise
from gammabeta.moments import Moments
from gammabeta.norm.act import _BatchNormAct
from gammabeta.probe import Seen

Array = NDArray[np.float64]
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(eq=False)
class Measured:
    """What was measured on one call of a layer, all in float64.

    Args:
        seen: The call. Its tensors are float64 arrays (n, channels picked, *).
        following: What follows it.
        room: How many channels are shown.
        shape: Of the input that is normalised together; of ghost batches, the first.
        samples: In the whole batch.
        moments: Of each channel.
        noise: See :func:`noise`.
        dead: Share of values of each channel that the activation maps to 0, (C,), or None.
        saturated: Share that it maps to its upper bound, or None.
        listed: Channels that are listed.
        drawn: Channels whose distributions are drawn.
        picked: Channels that can be picked.
        quantiles: Of x, (drawn, 5).
    """

    seen: Seen
    following: Following
    room: Room
    shape: tuple[int, ...] = ()
    samples: int = 0
    moments: Moments = field(default_factory=lambda: Moments.empty(0))
    noise: dict[str, float | None] | None = None
    dead: Array | None = None
    saturated: Array | None = None
    listed: list[int] | None = None
    drawn: list[int] | None = None
    picked: list[int] | None = None
    quantiles: Array | None = None

    @property
    def affine(self) -> tuple[Array, Array]:
        """γ and β, (C,)."""
        channels = len(self.moments.mean)
        weight, bias = (
            np.full(channels, default) if p is None else p.detach().cpu().double().numpy()
            for p, default in ((self.seen.layer.weight, 1.0), (self.seen.layer.bias, 0.0))
        )
        return weight, bias

    @property
    def statistics(self) -> tuple[Array, Array]:
        """Mean and variance that normalised this call, (C,)."""
        if self.seen.batch or self.seen.before is None:
            return self.moments.mean, self.moments.var
        mean, var = (s.cpu().double().numpy() for s in self.seen.before)
        return mean, var


class Collector:
    """A ``Keep`` for :func:`gammabeta.probe.probe` that measures layers and keeps channels.

    Args:
        rooms: The layers to describe, by path, and how many of their channels are shown.
        following: What follows each layer, by the layer's id.
    """

    def __init__(self, rooms: dict[str, Room], following: dict[int, Following]) -> None:
        self.rooms = rooms
        self.following = following
        self.layers: dict[str, Measured] = {}
        self.samples: dict[str, int] = {}

    def __call__(self, seen: Seen, name: str, tensor: Tensor) -> Any:
        """Keep the whole until y is known, and of then on the picked channels only."""
        if seen.path not in self.rooms or seen.number:
            return None
        if name == "z":
            return None
        part = tensor[: ghost(seen, tensor)]
        if name in {"x", "residual"}:
            self.samples[seen.path] = len(tensor)
            return part
        if name == "y":
            self.layers[seen.path] = self._measure(seen, part)
        return _arrays(part, self.layers[seen.path].picked)

    def _measure(self, seen: Seen, y: Tensor) -> Measured:
        x, residual = seen.x, seen.residual
        known = self._following(seen)
        found = Measured(seen, known, self.rooms[seen.path], tuple(x.shape))
        found.samples, found.moments = self.samples[seen.path], Moments.of(x)
        found.noise = noise(x, found.moments)
        if known.activation is not None and not (known.adds and residual is None):
            found.dead, found.saturated = shares(known, y if residual is None else y + residual)
        _choose(found)
        found.quantiles = np.quantile(
            _arrays(x, found.drawn).swapaxes(0, 1).reshape(len(found.drawn or ()), -1),
            QUANTILES,
            axis=1,
        ).T
        seen.x = _arrays(x, found.picked)
        seen.residual = None if residual is None else _arrays(residual, found.picked)
        return found

    def _following(self, seen: Seen) -> Following:
        if isinstance(seen.caller, _BatchNormAct):
            return Following(seen.caller.epilogue, seen.residual is not None)
        return self.following.get(id(seen.layer), Following())


def ghost(seen: Seen, x: Tensor) -> int:
    """Return how many samples of x the layer normalises together; the first ones are shown."""
    size = getattr(seen.layer, "virtual_batch_size", None) if seen.layer.training else None
    if not size or not x.numel():
        return len(x)
    first = ghost_parts(len(x), size, x[0, 0].numel())[0]
    return int(first.stop)


def _arrays(x: Tensor, channels: list[int] | None) -> Array:
    array: Array = x[:, channels].detach().cpu().double().numpy()
    return array


def _choose(found: Measured) -> None:
    weight, _ = found.affine
    features = [found.moments.mean, found.moments.var, weight]
    if found.dead is not None:
        features.insert(0, found.dead)
    found.picked = choose(features, found.room.picked) if found.room.picked else []
    found.drawn = _with(found.picked, choose(features, found.room.drawn), found.room.drawn)
    found.listed = _with(found.drawn, choose(features, found.room.listed), found.room.listed)


def _with(first: list[int], others: list[int], count: int) -> list[int]:
    """Return ``count`` channels: the first ones, and as many of the others as there is room for."""
    return sorted(list(dict.fromkeys([*first, *others]))[: max(count, len(first))])


def shares(known: Following, z: Tensor) -> tuple[Array, Array | None]:
    """Return what share of each channel the activation maps to 0, and to its upper bound.

    Args:
        known: What follows.
        z: (N, C, *), what enters the activation.
    """
    axes = [0, *range(2, z.dim())]
    zero = z <= 0 if known.activation in {"relu", "relu6"} else _activated(known, z) == 0
    dead: Array = zero.double().mean(axes).cpu().numpy()
    if known.activation != "relu6":
        return dead, None
    return dead, (z >= 6).double().mean(axes).cpu().numpy()


def _activated(known: Following, z: Tensor) -> Tensor:
    assert known.epilogue is not None  # noqa: S101 (it has an activation)
    return replace(known.epilogue, pool=None)(z)
