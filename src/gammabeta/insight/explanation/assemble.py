"""Running the passes and putting an explanation together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.errors import GammabetaError
from gammabeta.insight.explanation.channels import channel
from gammabeta.insight.explanation.choice import LAYERS, rooms, spread
from gammabeta.insight.explanation.following import following
from gammabeta.insight.explanation.gradients import gradients, norms, without
from gammabeta.insight.explanation.layers import describe
from gammabeta.insight.explanation.measure import Collector, ghost
from gammabeta.insight.explanation.modes import modes
from gammabeta.insight.explanation.passes import (
    Loss,
    Target,
    leaf,
    run,
    target,
    to_eval,
    to_training,
)
from gammabeta.moments import Moments
from gammabeta.norm.renorm import _BatchRenorm
from gammabeta.probe import Record, Seen, probe


def assemble(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None,
    loss: Loss | None,
    population: Iterable[Any] | None,
) -> dict[str, Any]:
    """Return the parts of an explanation that are measured."""
    output, record = _look(model, images)
    if labels is not None and output.dim() == 2 and loss is None:
        _check_labels(labels, output.shape[1])
    plan = target(output, labels, loss)
    stay = sorted({seen.path for seen in record.calls if seen.x[0] < 2})
    shown = _shown(record)
    space = dict(zip(shown, rooms([shown[p].x[1] for p in shown]), strict=True))
    limits = _limits(model, images, record, stay)
    found: dict[str, Any] = {"layers": [], "modes": None, "gradients": None}
    if shown:
        collector = Collector(space, following(model))
        people = _population(model, population, set(shown)) if population is not None else {}
        layers, value, weights = _train(model, images, plan, stay, collector, people)
        found["layers"] = layers
        limits += _folded(layers, len(record.paths) - len(record.unreached) - len(shown))
        if len(images) > 1:
            bare = without(model, images, plan.loss, lambda m: to_training(m, stay))
            found["gradients"] = gradients(value, weights, bare)
            found["modes"] = modes(model, images, labels, plan.classes, stay)
            if plan.classes and plan.classes > len(found["modes"]["classes"]):
                limits.append("classes-folded")
    return {
        "batch_norms": len(record.paths),
        "unreached": record.unreached,
        "target": plan.kind,
        "limits": limits,
        **found,
    }


def _look(model: nn.Module, images: Tensor) -> tuple[Tensor, Record]:
    """Run the batch in eval mode; of each x keep the values a channel, and the channels."""

    def sizes(seen: Seen, name: str, tensor: Tensor) -> Any:
        if name != "x":
            return None
        channels = tensor.shape[1]
        values = tensor[: ghost(seen, tensor)].numel() // max(channels, 1)
        if values < 2 and seen.before is None:
            raise GammabetaError(
                f"{seen.path or 'the model'} has no running statistics and one value a channel, "
                "so it cannot normalise: explain it with a batch of two images or more"
            )
        return values, channels

    with probe(model, sizes) as record, torch.no_grad():
        to_eval(model)
        output = run(model, images)
    return output.detach(), record


def _check_labels(labels: Tensor, classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise GammabetaError(
            f"labels run from {low} to {high}, but the model has {classes} classes, 0 to "
            f"{classes - 1}"
        )


def _shown(record: Record) -> dict[str, Seen]:
    first = {seen.path: seen for seen in reversed(record.calls)}
    reached = list(dict.fromkeys(seen.path for seen in record.calls))
    return {reached[i]: first[reached[i]] for i in spread(len(reached), LAYERS)}


def _train(
    model: nn.Module,
    images: Tensor,
    plan: Target,
    stay: list[str],
    collector: Collector,
    population: dict[str, Moments],
) -> tuple[list[dict[str, Any]], float, dict[str, float]]:
    """Run the training pass and describe its layers, while their gradients are there."""
    with probe(model, collector) as record:
        to_training(model, stay)
        value = plan.loss(run(model, leaf(images)))
        if value.requires_grad:
            value.backward()
        layers = [
            describe(found, len(record.of(path)), population.get(path))
            | {"channels": [channel(found, i) for i in range(len(found.picked or ()))]}
            for path, found in collector.layers.items()
        ]
        return layers, value.item(), norms(model)


def _population(model: nn.Module, batches: Iterable[Any], paths: set[str]) -> dict[str, Moments]:
    """Merge the moments of each layer's input over all batches, in eval mode."""
    found: dict[str, Moments] = {}

    def add(seen: Seen, name: str, tensor: Tensor) -> None:
        if name == "x" and seen.path in paths:
            new = Moments.of(tensor)
            found[seen.path] = found[seen.path] + new if seen.path in found else new

    device = next(model.parameters()).device
    with probe(model, add), torch.no_grad():
        to_eval(model)
        for batch in batches:
            images = batch if isinstance(batch, Tensor) else batch[0]
            run(model, images.to(device))
    return found


def _limits(model: nn.Module, images: Tensor, record: Record, stay: list[str]) -> list[str]:
    tests = {
        "no-batch-norm": not record.paths,
        "batch-renorm": any(isinstance(m, _BatchRenorm) for m in model.modules()),
        "one-image": len(images) == 1,
        "one-value": bool(stay),
        "unreached-layers": bool(record.paths) and bool(record.unreached),
        "shared-layers": any(seen.number for seen in record.calls),
    }
    return [code for code, holds in tests.items() if holds]


def _folded(layers: list[dict[str, Any]], left_out: int) -> list[str]:
    tests = {
        "layers-folded": left_out > 0 or any(not layer["channels"] for layer in layers),
        "channels-folded": any(len(layer["channels"]) < layer["num_features"] for layer in layers),
        "ghost-batches": any(
            layer["virtual_batch_size"] and layer["statistics"] == "batch" for layer in layers
        ),
    }
    return [code for code, holds in tests.items() if holds]
