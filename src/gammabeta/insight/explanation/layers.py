"""Each batch norm at a glance: the lists of its channels."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from gammabeta.insight.explanation.measure import Array, Measured
from gammabeta.insight.explanation.numbers import brief
from gammabeta.moments import Moments


def describe(found: Measured, calls: int, population: Moments | None) -> dict[str, Any]:
    """Return a layer's part of the explanation, without its pickable channels.

    Args:
        found: What was measured.
        calls: How often the layer was called in the pass.
        population: Moments of its input over the population, or None.
    """
    seen, layer = found.seen, found.seen.layer
    return {
        "path": seen.path,
        "kind": type(seen.caller).__name__,
        "num_features": len(found.moments.mean),
        "input_shape": list(found.shape),
        "values": int(found.moments.count),
        "eps": layer.eps,
        "momentum": layer.momentum,
        "affine": layer.weight is not None,
        "tracks": layer.running_mean is not None,
        "frozen": not seen.batch,
        "statistics": "batch" if seen.batch else "running",
        "calls": calls,
        "virtual_batch_size": getattr(layer, "virtual_batch_size", None),
        "activation": found.following.activation,
        "adds": found.following.adds,
        "pool": found.following.pool,
        "noise": found.noise,
        "per_channel": _per_channel(found, population),
        "quantiles": _quantiles(found),
    }


def _per_channel(found: Measured, population: Moments | None) -> dict[str, Any]:
    layer, before, m = found.seen.layer, found.seen.before, found.moments
    columns: dict[str, Any] = {
        "batch_mean": m.mean,
        "batch_var": m.var,
        "running_mean": before and before.running_mean,
        "running_var": before and before.running_var,
        "population_mean": population and population.mean,
        "population_var": population and population.unbiased_var,
        "weight": layer.weight,
        "bias": layer.bias,
        "dead": found.dead,
        "saturated": found.saturated,
        "grad_weight": None if layer.weight is None else layer.weight.grad,
        "grad_bias": None if layer.bias is None else layer.bias.grad,
    }
    return {"index": found.listed} | {
        name: None if values is None else brief(_numpy(values)[found.listed])
        for name, values in columns.items()
    }


def _numpy(values: Tensor | Array) -> Array:
    array: Array = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values
    return array


def _quantiles(found: Measured) -> dict[str, Any]:
    """Return quantiles before and after; batch norm is monotone, so those of y follow from x's."""
    mean, var = (s[found.drawn][:, None] for s in found.statistics)
    weight, bias = (p[found.drawn][:, None] for p in found.affine)
    assert found.quantiles is not None  # noqa: S101 (measured before it is described)
    after = weight * (found.quantiles - mean) / np.sqrt(var + found.seen.layer.eps) + bias
    after = np.where(weight < 0, after[:, ::-1], after)
    return {"channels": found.drawn, "before": brief(found.quantiles), "after": brief(after)}
