"""The batch norms whose statistics are to be measured, and those that are left alone.

While a model is gone through, its layers run in eval mode on stand-ins of their buffers. What
normalises is therefore whatever statistics are written there: those of the batch, or final ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gammabeta.errors import GammabetaError
from gammabeta.moments import Array, Moments
from gammabeta.norm.measure import channel_moments, is_finite
from gammabeta.population.estimate import Estimate
from gammabeta.probe import targets
from gammabeta.surgery.freeze import frozen_parts
from gammabeta.surgery.report import Entry
from gammabeta.surgery.survey import is_batch_norm


@dataclass(eq=False)
class Station:
    """A batch norm on the way of the batches.

    Args:
        path: Of the layer in the model; of a ``BatchNormAct``, its own.
        caller: The module that is called: the layer, or the ``BatchNormAct`` around it.
        layer: The batch norm.
        seen: What its inputs amount to so far.
        calls: How often a forward calls it.
        fixed: Whether its statistics are final.
    """

    path: str
    caller: nn.Module
    layer: Any
    seen: Estimate = field(init=False)
    calls: int = 0
    fixed: bool = False

    def __post_init__(self) -> None:
        self.seen = Estimate(self.layer.num_features)

    def measure(self, x: Tensor, batch: int) -> Moments:
        """Return the moments of an input.

        Raises:
            GammabetaError: If it holds NaN or infinity.
        """
        moments = channel_moments(x)
        if not is_finite(moments):
            wrong = int((~np.isfinite(moments.m2)).sum())
            raise GammabetaError(
                f"batch {batch}: the input of {self.path or 'the batch norm'} holds NaN or "
                f"infinity in {wrong} of {len(moments.mean)} channels; look at that batch and at "
                "the weights before this layer"
            )
        return moments

    def normalise_by(self, mean: Array, var: Array) -> None:
        """Make the layer use these statistics from now on, (C,) each."""
        self.layer.running_mean.copy_(torch.from_numpy(mean))
        self.layer.running_var.copy_(torch.from_numpy(var))

    def normalise_by_batch(self, moments: Moments, batch: int) -> None:
        """Make the layer use the statistics of the batch that it is about to see.

        Raises:
            GammabetaError: If there is one value per channel, which would leave nothing of it.
        """
        if moments.count == 1:
            raise GammabetaError(
                f"batch {batch}: {self.path or 'the batch norm'} gets one value per channel, which "
                "its own statistics would turn into nought; use sequential=True, larger batches, "
                "or leave that batch out"
            )
        if moments.count:
            self.normalise_by(moments.mean, moments.var)

    def fix(self, mean: Array, var: Array) -> None:
        """Make the layer use these statistics for good."""
        self.normalise_by(mean, var)
        self.fixed = True


def survey(model: nn.Module) -> tuple[list[Station], list[Entry]]:
    """Return the layers to be measured, in the model's order, and those left alone, with reasons.

    Raises:
        GammabetaError: If there is no batch norm, or none to be measured.
    """
    found = list(targets(model, is_batch_norm))
    if not found:
        raise GammabetaError(f"{type(model).__name__} holds no batch norm to recalibrate")
    stations, left = [], []
    for path, caller, layer in found:
        why = _why_not(model, layer)
        if why:
            left.append(Entry(path, why))
        else:
            stations.append(Station(path, caller, layer))
    if not stations:
        reasons = "; ".join(f"{e.path or 'the layer'} {e.what}" for e in left[:3])
        more = f"; and {len(left) - 3} more" if len(left) > 3 else ""
        raise GammabetaError(f"there is no batch norm to recalibrate: {reasons}{more}")
    return stations, left


def _why_not(model: nn.Module, layer: Any) -> str | None:
    if layer.running_mean is None or layer.running_var is None:
        return "keeps no running statistics: it uses each batch's own in eval mode too"
    if "stats" in frozen_parts(layer):
        return "is frozen: unfreeze(model) first if it is to follow the data"
    if model.training and not layer.training:
        return "is in eval mode inside a model in training mode, and so taken for frozen"
    return None
