"""Which layers and channels are shown, so that the numbers of any model stay under a megabyte."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LAYERS = 160
"""Layers described at all; of more, these are spread evenly."""
LISTED = 1900
"""Channels of all layers together whose statistics are listed."""
DRAWN = 1200
"""Channels of all layers together whose distributions are drawn."""
PICKED = 64
"""Channels of all layers together that can be picked, with every number of their formula."""


@dataclass(frozen=True)
class Room:
    """How many channels of a layer are listed, drawn and picked."""

    listed: int
    drawn: int
    picked: int


def spread(count: int, most: int) -> list[int]:
    """Return up to ``most`` of range(count), the first and the last among them, evenly spread.

    Example:
        >>> spread(10, 4), spread(3, 4), spread(9, 1)
        ([0, 3, 6, 9], [0, 1, 2], [0])
    """
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / max(most - 1, 1)) for i in range(most)})


def rooms(channels: list[int]) -> list[Room]:
    """Share the room between layers of these many channels.

    Example:
        >>> rooms([64, 128])
        [Room(listed=64, drawn=64, picked=16), Room(listed=128, drawn=64, picked=16)]
    """
    layers = max(len(channels), 1)
    limit = _limit(channels, LISTED)
    pickable = set(spread(len(channels), PICKED))
    picked = min(16, max(1, PICKED // layers))
    return [
        Room(min(c, limit), min(c, 64, max(4, DRAWN // layers)), min(c, picked * (i in pickable)))
        for i, c in enumerate(channels)
    ]


def _limit(channels: list[int], total: int) -> int:
    """Return the largest limit a layer that keeps the sum within ``total``, or 8."""
    left, layers = total, len(channels)
    for c in sorted(channels):
        if c * layers > left:
            return max(8, left // layers)
        left, layers = left - c, layers - 1
    return max(channels, default=0)


def choose(features: list[NDArray[np.float64]], count: int) -> list[int]:
    """Choose channels: the extremes of each feature, and others spread evenly.

    Args:
        features: (C,) each, the most telling first.
        count: How many to choose.

    Example:
        >>> choose([np.array([0.0, 9.0, 1.0, -5.0, 2.0, 3.0])], 3)
        [0, 1, 3]
    """
    channels = len(features[0])
    if channels <= count:
        return list(range(channels))
    chosen: dict[int, None] = {}
    for feature in features:
        known = np.where(np.isfinite(feature), feature, np.nanmedian([*feature, 0.0]))
        chosen |= {int(known.argmin()): None, int(known.argmax()): None}
    chosen = dict.fromkeys(list(chosen)[: max(1, math.ceil(count * 2 / 3))])
    for i in [*spread(channels, count), *range(channels)]:
        if len(chosen) >= count:
            break
        chosen[i] = None
    return sorted(chosen)
