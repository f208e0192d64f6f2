"""What batch norm does to a model: every number measured in real passes of a real batch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn

import gammabeta
from gammabeta.errors import GammabetaError
from gammabeta.insight.explanation.assemble import assemble
from gammabeta.insight.explanation.numbers import finite
from gammabeta.insight.explanation.passes import Loss

Batch = Tensor | tuple[Tensor, Tensor] | list[Tensor]


@dataclass(eq=False)
class Explanation:
    """What :func:`explain` found.

    Args:
        data: See :meth:`to_dict`.
        command: The command that asked for it, for the page's header.
    """

    data: dict[str, Any]
    command: str | None = None

    @property
    def layers(self) -> list[dict[str, Any]]:
        """Every batch norm that the batch reached, in the order of the forward pass."""
        layers: list[dict[str, Any]] = self.data["layers"]
        return layers

    def to_dict(self) -> dict[str, Any]:
        """Return everything as lists, numbers and strings; ``json.dumps`` takes it as it is.

        Values that are NaN or infinite are None. Lists have seven significant digits; the values
        shown of a channel, its backward pass and single numbers have all of theirs.
        """
        return {**self.data, "command": self.command}

    def to_json(self) -> str:
        """Return :meth:`to_dict` as one line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)

    def to_html(self, path: str | os.PathLike[str], lang: str = "en") -> None:
        """Write a page of its own, which needs no network.

        Args:
            path: Of the file.
            lang: "en" or "zh".
        """
        from gammabeta.insight.render import page, write

        document = self.to_dict()
        write(path, page("explain", {"data": document, "meta": document}, lang))

    def __repr__(self) -> str:
        model = self.data["model"]
        return f"Explanation({model['name']}, {len(self.layers)} batch norms)"


def explain(
    model: nn.Module,
    batch: Batch,
    labels: Tensor | None = None,
    loss: Loss | None = None,
    classes: Sequence[str] | None = None,
    population: Iterable[Any] | None = None,
    name: str | None = None,
    data_name: str | None = None,
) -> Explanation:
    """Run a batch through a model in training and in eval mode, and explain what each BN did.

    The model is left exactly as it was, its random generators included, also when a pass fails.
    Passes use the ambient autocast. Wherever the result is folded to stay below a megabyte,
    ``limits`` says so.

    Args:
        model: Any module; only ``nn.Module`` batch norms are seen.
        batch: The model's input (N, ...), or a pair of it and the labels.
        labels: int64, (N,), class indices. Without them the backward pass uses the cross entropy
            against the classes that the model names in eval mode; for an output that is no (N, K)
            logits, a fixed random cotangent.
        loss: ``loss(output, labels)`` to use instead.
        classes: Names of the classes.
        population: Batches (or pairs) of the whole data; their exact statistics at each layer,
            upstream layers in eval mode, stand beside the running ones. None leaves them out.
        name: Of the model; its class by default.
        data_name: Of the data.

    Raises:
        GammabetaError: For a batch or labels of the wrong form, and for lazy or scripted models.

    Example:
        >>> torch.manual_seed(0) and None
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        >>> layer = explain(model, torch.randn(8, 3, 6, 6)).layers[0]
        >>> layer["path"], layer["activation"], layer["values"]
        ('1', 'relu', 128)
        >>> first = layer["channels"][0]
        >>> first["check"]["digits"] >= 5
        True
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    images, labels = _inputs(model, batch, labels)
    found = assemble(model, images, labels, loss, population)
    about = {
        "model": {
            "name": name or type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
            "batch_norms": found.pop("batch_norms"),
            "unreached": found.pop("unreached"),
        },
        "data": {
            "name": data_name,
            "images": len(images),
            "shape": list(images.shape[1:]),
            "classes": None if classes is None else [str(c) for c in classes],
            "labels": None if labels is None else labels.tolist(),
            "target": found.pop("target"),
        },
    }
    return Explanation(
        {
            "gammabeta": gammabeta.__version__,
            "torch": str(torch.__version__),
            "created": datetime.now(UTC).astimezone().isoformat(timespec="seconds"),
            **about,
            **finite(found),
        }
    )


def _inputs(model: nn.Module, batch: Batch, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return images and labels on the model's device."""
    images = batch
    if not isinstance(batch, Tensor):
        if len(batch) != 2 or labels is not None:
            raise GammabetaError("batch must be a tensor, or a pair of images and labels")
        images, labels = batch
    if not isinstance(images, Tensor) or images.dim() < 2 or not len(images):
        what = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise GammabetaError(f"batch must be a tensor (N, ...) with N of 1 or more, not {what}")
    if labels is not None and (labels.shape != images.shape[:1] or labels.is_floating_point()):
        raise GammabetaError(
            f"labels must be class indices ({len(images)},), one an image, not "
            f"{labels.dtype} {tuple(labels.shape)}"
        )
    where = next(model.parameters(), images).device
    return images.to(where), None if labels is None else labels.to(where)
