"""Every number of a training run, the two named recipes, and the learning rate at each step."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gammabeta.errors import GammabetaError
from gammabeta.schema import STRICT


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train: SGD with momentum on cross entropy.

    Args:
        name: The named recipe that these numbers started from.
        epochs: Passes over the training split.
        batch_size: Images a step; at least 2, since batch norm needs two values a channel.
        lr: Learning rate; with ``anneal`` its peak.
        momentum: Of SGD, in [0, 1).
        nesterov: Whether the momentum looks ahead (Sutskever et al. 2013).
        weight_decay: L2 penalty on the weights.
        decay_all: Whether the penalty also falls on γ, β and biases.
        label_smoothing: Share of the target spread over all classes (Szegedy et al. 2016).
        anneal: Whether the rate warms up and then falls to zero; else it stays constant.
        warmup: Share of all steps in which the rate rises from zero to ``lr``.
        seed: Decides initial weights, order and augmentation.

    Raises:
        GammabetaError: If a number is outside its range; the message names both.
    """

    __pydantic_config__ = STRICT

    name: str = "anneal"
    epochs: int = 8
    batch_size: int = 128
    lr: float = 0.2
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_all: bool = False
    label_smoothing: float = 0.1
    anneal: bool = True
    warmup: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "epochs": (_whole(self.epochs, 1), "at least 1, a whole number"),
            "batch_size": (
                _whole(self.batch_size, 2),
                "at least 2, a whole number: batch norm needs two values",
            ),
            "lr": (0 < self.lr < math.inf, "above 0 and finite"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "nesterov": (not self.nesterov or self.momentum > 0, "off when momentum is 0"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or above and finite"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "in [0, 1)"),
            "warmup": (0 <= self.warmup < 1, "in [0, 1)"),
            "seed": (_whole(self.seed, 0), "0 or above, below 2^63, a whole number"),
        }
        for name, (holds, allowed) in rules.items():
            if not holds:
                raise GammabetaError(f"{name} is {getattr(self, name)}, but must be {allowed}")

    def learning_rate(self, step: int, total: int) -> float:
        """Return the rate of step ``step`` (from 0) out of ``total``.

        Annealed, it rises linearly to ``lr`` over the first ``warmup`` of the steps, then falls
        linearly towards zero; no step is taken at a rate of exactly zero.
        """
        if not self.anneal:
            return self.lr
        peak = self.warmup * total
        rising = (step + 1) / peak if peak > 0 else 1.0
        falling = (total - step) / (total - peak)
        return self.lr * min(rising, falling, 1.0)


def _whole(value: object, least: int) -> bool:
    return type(value) is int and least <= value < 2**63


RECIPES: dict[str, Recipe] = {
    "anneal": Recipe(),
    "tutorial": Recipe(
        name="tutorial",
        epochs=200,
        lr=0.1,
        nesterov=False,
        decay_all=True,
        label_smoothing=0.0,
        anneal=False,
    ),
}


def resolve(name: str, config: Path | None, overrides: Mapping[str, Any]) -> Recipe:
    """Build a recipe: the named one, changed by a TOML file, changed by explicit values.

    Args:
        name: A key of ``RECIPES``; a ``recipe`` entry in the file is used if this is empty.
        config: TOML file whose keys are the fields of :class:`Recipe`.
        overrides: Field values; those that are None are ignored.

    Raises:
        GammabetaError: For an unknown recipe or key, a wrong type, or a number out of range.
    """
    values = _read_toml(config) if config else {}
    named = str(values.pop("recipe", "anneal"))
    base = RECIPES.get(name or named)
    if base is None:
        raise GammabetaError(f"recipe is {name or named!r}, but must be {' or '.join(RECIPES)}")
    values |= {key: value for key, value in overrides.items() if value is not None}
    if values.get("momentum") == 0:
        values.setdefault("nesterov", False)
    return dataclasses.replace(base, **values)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        read = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GammabetaError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise GammabetaError(f"{path}: is not TOML: {error}") from None
    values = {key.replace("-", "_"): value for key, value in read.items()}
    for key, value in values.items():
        _check_type(path, key, value)
    return values


def _check_type(path: Path, key: str, value: object) -> None:
    known = {f.name: str(f.type) for f in dataclasses.fields(Recipe)} | {"recipe": "str"}
    del known["name"]
    if key not in known:
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"
        raise GammabetaError(f"{path}: unknown key {key!r}; {hint}")
    given = type(value).__name__
    if given != known[key] and (given, known[key]) != ("int", "float"):
        raise GammabetaError(f"{path}: {key} is {value!r}, but must be of type {known[key]}")
