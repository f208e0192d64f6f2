"""What a model is called with: batches of any loader, and how many of them.

A batch may be a tensor, a tuple or list whose first element is the input, or a dictionary whose
keys are the model's arguments. For anything else the user says how: ``forward(model, batch)``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from gammabeta.errors import GammabetaError

Forward = Callable[[Any, Any], Any]
"""Calls a model on a batch: ``forward(model, batch)``."""


class Feed:
    """The batches of a loader, up to a limit, and the calls to be made with them.

    Args:
        model: Decides the device, and which entries of a dictionary are its arguments.
        loader: Any iterable of batches; it is gone through once.
        forward: How to call the model on a batch; by default as the module's docstring says.
        batches: Stop after this many.
        samples: Stop after the batch with which this many are reached.

    Attributes:
        batches: Handed out so far.
        samples: In them; what the first tensor of a batch has on its first axis.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        forward: Forward | None = None,
        batches: int | None = None,
        samples: int | None = None,
    ) -> None:
        for name, limit in (("batches", batches), ("samples", samples)):
            if limit is not None and limit < 1:
                raise GammabetaError(f"{name} is {limit}, but at least one must be seen")
        if isinstance(loader, Tensor | nn.Module | str) or not isinstance(loader, Iterable):
            kind = type(loader).__name__
            raise GammabetaError(
                f"loader is a {kind}, but must be an iterable of batches; of one tensor make "
                "x.split(128)"
            )
        self.model, self.loader, self.forward = model, loader, forward
        self.most_batches, self.most_samples = batches, samples
        self.batches = self.samples = 0
        self._device = next((t.device for t in (*model.parameters(), *model.buffers())), None)

    def __len__(self) -> int:
        """Return how many batches there will be, 0 if that is not known."""
        try:
            known = len(self.loader)  # type: ignore[arg-type]
        except TypeError:
            known = self.most_batches or 0
        return min(known, self.most_batches or known)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches, on the model's device."""
        if self.most_batches == 0:
            return
        for batch in self.loader:
            moved = tree_map(self._moved, batch)
            self.batches += 1
            self.samples += size_of(moved)
            yield moved
            if self.batches == self.most_batches or self.samples >= (self.most_samples or 2**62):
                return

    def call(self, batch: Any) -> None:
        """Call the model on a batch."""
        if self.forward is not None:
            self.forward(self.model, batch)
        elif isinstance(batch, Mapping):
            self.model(**self._arguments(batch))
        else:
            self.model(self._first(batch))

    def few(self, batch: Any) -> Any:
        """Return two samples of a batch; all of them where only the user knows how to take some."""
        if self.forward is not None:
            return batch
        size = size_of(batch)
        return tree_map(lambda x: x[:2] if isinstance(x, Tensor) and _len(x) == size else x, batch)

    def _moved(self, leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and self._device is not None and leaf.device != self._device:
            return leaf.to(self._device)
        return leaf

    def _first(self, batch: Any) -> Any:
        if isinstance(batch, list | tuple):
            if not batch:
                raise GammabetaError("a batch is empty; a tensor, or a tuple of them, was expected")
            return batch[0]
        if not isinstance(batch, Tensor):
            raise GammabetaError(
                f"a batch is a {type(batch).__name__}, but a tensor, a tuple or a dictionary was "
                "expected; say how it is used: forward=lambda model, batch: model(...)"
            )
        return batch

    def _arguments(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the entries that the model's forward takes by name."""
        parameters = inspect.signature(self.model.forward).parameters.values()
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return dict(batch)
        named = {p.name: p for p in parameters if p.kind is not p.VAR_POSITIONAL}
        taken = {key: value for key, value in batch.items() if key in named}
        missing = [n for n, p in named.items() if p.default is p.empty and n not in taken]
        if missing:
            raise GammabetaError(
                f"a batch has the keys {', '.join(map(str, batch))}, but the model's forward needs "
                f"{', '.join(missing)}; say how it is used: "
                "forward=lambda model, batch: model(batch[...])"
            )
        return taken


def size_of(batch: Any) -> int:
    """Return how many samples a batch holds: what its first tensor has on its first axis.

    Example:
        >>> import torch
        >>> size_of({"image": torch.zeros(8, 3), "label": torch.zeros(8)})
        8
    """
    tensors = (t for t in tree_leaves(batch) if isinstance(t, Tensor) and t.dim())
    return next(map(_len, tensors), 1)


def _len(x: Tensor) -> int:
    return len(x) if x.dim() else 0
