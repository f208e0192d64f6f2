"""What ``state.pt`` holds: where a training is, and all that it needs to go on to the same bits.

Nothing of a file is believed: plain values go through a strict schema, tensors are compared with
those that the run's own network and optimizer have, and the optimizer's numbers are the recipe's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from gammabeta.errors import RunError
from gammabeta.files import to_json
from gammabeta.schema import STRICT, parse
from gammabeta.training.events import Line
from gammabeta.training.step import Outcome

Count = Annotated[int, Field(ge=0, lt=2**63)]
Sum = Annotated[float, Field(ge=0)]


@dataclass
class Position:
    """How far a training is, and the sums that its next reports need. All counts start at 0."""

    __pydantic_config__ = STRICT

    epoch: Count = 0
    batch: Count = 0
    step: Count = 0
    logged_loss: Sum = 0.0
    epoch_loss: Sum = 0.0
    epoch_correct: Count = 0
    epoch_images: Count = 0
    epoch_seconds: Sum = 0.0
    images: Count = 0
    train_seconds: Sum = 0.0
    seconds: Sum = 0.0
    best_accuracy: Sum = 0.0
    best_epoch: Count = 0

    def count(self, outcome: Outcome, seconds: float) -> None:
        """Add one step."""
        self.batch += 1
        self.step += 1
        self.logged_loss += outcome.loss
        self.epoch_loss += outcome.loss * outcome.total
        self.epoch_correct += outcome.correct
        self.epoch_images += outcome.total
        self.epoch_seconds += seconds
        self.images += outcome.total
        self.train_seconds += seconds
        self.seconds += seconds

    def next_epoch(self) -> None:
        """Begin the next epoch with empty sums."""
        self.epoch += 1
        self.batch = 0
        self.logged_loss = self.epoch_loss = self.epoch_seconds = 0.0
        self.epoch_correct = self.epoch_images = 0

    def check(self, epochs: int, batches: int) -> None:
        """Raise a ValueError unless a training of so many epochs and batches can be here."""
        if self.epoch > epochs or self.batch > batches:
            raise ValueError(
                f"it is at epoch {self.epoch}, batch {self.batch}, but the run has {epochs} epochs "
                f"of {batches} batches"
            )
        if self.step != self.epoch * batches + self.batch:
            raise ValueError(
                f"it is at step {self.step}, but epoch {self.epoch}, batch {self.batch} is step "
                f"{self.epoch * batches + self.batch}"
            )


@dataclass(kw_only=True)
class Progress:
    """The plain values of a state.

    Args:
        position: How far the training is.
        images: Of the training split that it was begun on.
        records: All lines of ``metrics.jsonl`` up to there; None in states of older versions.
    """

    __pydantic_config__ = STRICT

    position: Position
    images: Count
    records: list[Line] | None = None


def pack(progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return all of a training as ``state.pt`` keeps it, with this process's random state."""
    return dataclasses.asdict(progress) | {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
    }


def progress_of(state: Mapping[str, Any], source: Path) -> Progress:
    """Return the plain values of a state.

    Raises:
        RunError: Naming the file and the field.
    """
    names = {field.name for field in dataclasses.fields(Progress)}
    tensors = {"model", "optimizer", "random"}
    unknown = [str(key) for key in state if key not in names | tensors]
    if unknown:
        raise RunError(f"{source}: is damaged or of another version: {unknown[0]} is unknown")
    try:
        text = to_json({key: state[key] for key in names & state.keys()})
    except (TypeError, ValueError, RecursionError) as error:
        raise RunError(f"{source}: is damaged or of another version: {error}") from None
    progress: Progress = parse(Progress, text, source)
    return progress


def unpack(state: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Set a model, its optimizer's momentum and the random state to those of a state.

    Raises:
        ValueError: If a tensor is missing or differs in shape or dtype; nothing is changed then.
    """
    weights = _like(_dict(state, "model"), model.state_dict(), "model")
    momentum = _momentum(_dict(state, "optimizer"), optimizer)
    torch.set_rng_state(_alike(state.get("random"), torch.get_rng_state(), "random"))
    model.load_state_dict(weights)
    for parameter, buffer in momentum.items():
        own = torch.empty_like(parameter).copy_(buffer)  # laid out as the parameter is
        optimizer.state[parameter]["momentum_buffer"] = own


def same_tensors(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Tell whether two state_dicts hold the same numbers under the same names."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _momentum(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[Tensor, Tensor]:
    """Return the saved momentum of each parameter: of all, or of none before the first step."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries = _dict(saved, "state")
    if not entries:
        return {}
    if entries.keys() != set(range(len(parameters))):
        raise ValueError(f"optimizer has momentum of other parameters than the {len(parameters)}")
    return {
        parameter: _alike(_dict(entries, i).get("momentum_buffer"), parameter, f"momentum {i}")
        for i, parameter in enumerate(parameters)
    }


def _dict(holder: Mapping[Any, Any], key: str | int) -> dict[Any, Any]:
    found = holder.get(key)
    if not isinstance(found, dict):
        raise ValueError(f"{key} is {_kind(found)}, but must be a dict")  # noqa: TRY004
    return found


def _like(
    given: Mapping[Any, object], wanted: Mapping[str, Tensor], name: str
) -> dict[str, Tensor]:
    """Return what is given if it has exactly the wanted names, shapes and dtypes."""
    for key in given:
        if key not in wanted:
            raise ValueError(f"{name}.{key} is unknown")
    return {key: _alike(given.get(key), tensor, f"{name}.{key}") for key, tensor in wanted.items()}


def _alike(given: object, wanted: Tensor, name: str) -> Tensor:
    """Return what is given if it is a dense tensor of the wanted shape and dtype."""
    if not isinstance(given, Tensor) or given.layout != torch.strided or given.is_nested:
        raise ValueError(f"{name} is {_kind(given)}, but must be a dense tensor")
    if given.is_quantized or given.is_meta:
        raise ValueError(f"{name} is quantized or without data, but must be a dense tensor")
    if (given.shape, given.dtype) != (wanted.shape, wanted.dtype):
        raise ValueError(
            f"{name} is {given.dtype} {tuple(given.shape)}, but must be {wanted.dtype} "
            f"{tuple(wanted.shape)}"
        )
    return given


def _kind(value: object) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"
