"""Training mode against eval mode on the same images, and one image among different neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gammabeta.insight.explanation.numbers import brief
from gammabeta.insight.explanation.passes import SEED, only_batch_norms, run, to_eval
from gammabeta.probe import Seen, probe, untouched

IMAGES = 16
"""Images whose outputs are shown."""
DRAWS = 12
"""Sets of neighbours drawn for the one image."""
CLASSES = 12
"""Classes shown; of more, those that the shown images are nearest to."""
PARTED = 0.01
"""A layer parts the modes where its outputs differ by this share or more."""
_VALUES = 2**20  # values of a layer's output that are compared

Mode = Callable[[nn.Module], None]


class _Outputs:
    """A ``Keep`` of every layer's output for the first images, in at most ``_VALUES`` values."""

    def __call__(self, seen: Seen, name: str, tensor: Tensor) -> Tensor | None:
        if name != "y" or seen.number:
            return None
        images = max(1, min(IMAGES, len(tensor), _VALUES // max(tensor[0].numel(), 1)))
        return tensor[:images].float().clone()


def modes(
    model: nn.Module, images: Tensor, labels: Tensor | None, classes: int | None, stay: list[str]
) -> dict[str, Any]:
    """Compare the modes; dropout and the like stay off in both, batch norm alone is switched.

    Args:
        model: The model.
        images: (N, ...), at least two.
        labels: (N,), or None.
        classes: Number of logits, or None if the output is something else.
        stay: Layers that cannot normalise this batch by its own statistics.
    """
    to_training: Mode = lambda m: only_batch_norms(m, stay)  # noqa: E731
    train, train_y = _watched(model, images, to_training)
    evaluated, eval_y = _watched(model, images, to_eval)
    layers = [
        {"path": path, "distance": brief(_distance(y, eval_y[path]))}
        for path, y in train_y.items()
        if path in eval_y and y.shape == eval_y[path].shape
    ]
    apart = [e["path"] for e in layers if e["distance"] is None or e["distance"] >= PARTED]
    found: dict[str, Any] = {
        "images": min(len(images), IMAGES),
        "layers": layers,
        "parts_at": apart[0] if apart else None,
        "threshold": PARTED,
        "output_distance": brief(_distance(train, evaluated)),
    }
    names = ("logits_train", "logits_eval", "agreement", "accuracy_train", "accuracy_eval")
    empty = dict.fromkeys((*names, "classes", "company"))
    if classes is None:
        return found | empty
    return (
        found
        | empty
        | _logits(train, evaluated, labels)
        | {"company": _company(model, images, evaluated, to_training)}
    )


def _watched(model: nn.Module, images: Tensor, mode: Mode) -> tuple[Tensor, dict[str, Tensor]]:
    with probe(model, _Outputs()) as record, torch.no_grad():
        mode(model)
        output = run(model, images)
    return output.detach(), {seen.path: seen.y for seen in record.calls if seen.number == 0}


def _distance(a: Tensor, b: Tensor) -> float:
    """Return ‖a − b‖ / ‖b‖."""
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


def shown_classes(logits: Tensor, most: int = CLASSES) -> list[int]:
    """Return the classes with the highest logit of any image, in order.

    Example:
        >>> shown_classes(torch.tensor([[0.0, 5.0, 1.0], [9.0, 0.0, 1.0]]), 2)
        [0, 1]
    """
    order = logits.max(dim=0).values.argsort(descending=True, stable=True)
    return sorted(order[:most].tolist())


def _logits(train: Tensor, evaluated: Tensor, labels: Tensor | None) -> dict[str, Any]:
    few = slice(None, IMAGES)
    shown = shown_classes(torch.cat([train[few], evaluated[few]]))
    named = {"train": train.argmax(1), "eval": evaluated.argmax(1)}
    found: dict[str, Any] = {
        "classes": shown,
        "logits_train": brief(_numpy(train[few, shown])),
        "logits_eval": brief(_numpy(evaluated[few, shown])),
        "agreement": float((named["train"] == named["eval"]).double().mean()),
    }
    if labels is not None:
        found |= {f"accuracy_{m}": float((n == labels).double().mean()) for m, n in named.items()}
    return found


def _numpy(tensor: Tensor) -> Any:
    return tensor.detach().double().cpu().numpy()


def _company(
    model: nn.Module, images: Tensor, evaluated: Tensor, to_training: Mode
) -> dict[str, Any] | None:
    """Run the image that eval mode is least sure of among different neighbours of its batch."""
    if len(images) < 4:
        return None
    best = evaluated.float().topk(2, dim=1).values
    image = int((best[:, 0] - best[:, 1]).argmin())
    size = max(2, min(len(images) // 2, 32))
    generator = torch.Generator().manual_seed(SEED)
    others = torch.tensor([i for i in range(len(images)) if i != image])
    drawn = [others[torch.randperm(len(others), generator=generator)[: size - 1]]
             for _ in range(DRAWS)]  # fmt: skip
    batches = [images[torch.cat([torch.tensor([image]), rest])] for rest in drawn]
    rows = {
        name: torch.stack([_first(model, batch, mode) for batch in batches])
        for name, mode in (("train", to_training), ("eval", to_eval))
    }
    shown = shown_classes(torch.cat(list(rows.values())))
    usual = int(evaluated[image].argmax())
    return {
        "image": image,
        "draws": DRAWS,
        "size": size,
        "neighbours": [rest.tolist() for rest in drawn],
        "classes": shown,
        "train": brief(_numpy(rows["train"][:, shown])),
        "eval": brief(_numpy(rows["eval"][:, shown])),
        "train_spread": _spread(rows["train"]),
        "eval_spread": _spread(rows["eval"]),
        "flips": int((rows["train"].argmax(1) != usual).sum()),
    }


def _first(model: nn.Module, batch: Tensor, mode: Mode) -> Tensor:
    with untouched(model), torch.no_grad():
        mode(model)
        return run(model, batch)[0].detach()


def _spread(rows: Tensor) -> float:
    """Return the standard deviation over draws, its root mean square over classes."""
    return float(np.sqrt(_numpy(rows).var(axis=0).mean()))
