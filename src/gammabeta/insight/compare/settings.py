"""What is compared, on what, and how long: the choices that decide every number.

A journal holds them in its first line, and is continued only under the same ones.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import gammabeta
from gammabeta.data.dataset import Dataset, Split
from gammabeta.errors import GammabetaError
from gammabeta.models import VARIANTS, Net
from gammabeta.schema import STRICT

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Learning rates of the sweep, half a decade apart."""
HELD_OUT = 5000
"""At most so many training images are kept for choosing; at most a tenth of them."""
SMALL = 10_000
"""A training split below this has smaller batches, so that an epoch is more than a few steps."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A comparison.

    Args:
        data: "cifar10", "digits" or a folder; for the reader.
        variants: Some of ``gammabeta.models.VARIANTS``.
        seeds: How many seeds.
        seed: The first of them; the others follow it.
        budget: Seconds for everything.
        rates: Learning rates of the sweep, rising.
        batch_size: Images a step.
        precision: "fp32" or "bf16", of every variant.
        image_size: Height and width of the images.

    Raises:
        GammabetaError: For a variant that is not known or given twice, and numbers out of range.
    """

    __pydantic_config__ = STRICT

    data: str
    variants: tuple[str, ...] = VARIANTS
    seeds: int = 3
    seed: int = 0
    budget: float
    rates: tuple[float, ...] = RATES
    batch_size: int = 128
    precision: str = "fp32"
    image_size: int = 32

    def __post_init__(self) -> None:
        unknown = [name for name in self.variants if name not in VARIANTS]
        if unknown or len(set(self.variants)) < len(self.variants) or len(self.variants) < 2:
            raise GammabetaError(
                f"variants are {', '.join(self.variants)}, but must be two or more of "
                f"{', '.join(VARIANTS)}, each once"
            )
        rising = list(self.rates) == sorted(set(self.rates)) and len(self.rates) >= 2
        rules = {
            "seeds": (self.seeds >= 1, "at least 1"),
            "seed": (0 <= self.seed < 2**63 - self.seeds, "0 or above, below 2^63"),
            "budget": (0 < self.budget < math.inf, "above 0"),
            "rates": (rising and 0 < self.rates[0] < self.rates[-1] < math.inf, "two, rising"),
            "batch_size": (self.batch_size >= 2, "at least 2: batch norm needs two values"),
            "precision": (self.precision in {"fp32", "bf16"}, "fp32 or bf16"),
        }
        for name, (holds, allowed) in rules.items():
            if not holds:
                raise GammabetaError(f"{name} is {getattr(self, name)}, but must be {allowed}")
        with torch.device("meta"):  # without memory
            Net(2, self.image_size)  # refuses a size that does not fit

    @property
    def all_seeds(self) -> list[int]:
        """Every seed, in the order in which they are run."""
        return list(range(self.seed, self.seed + self.seeds))

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        lists = {"variants": list(self.variants), "rates": list(self.rates)}
        return dataclasses.asdict(self) | lists

    def identity(self, data: HeldOut) -> dict[str, Any]:
        """Return what two sessions must share for their trainings to be comparable."""
        return self.to_dict() | {
            "classes": len(data.dataset.classes),
            "images": [len(data.train), len(data.validation), len(data.test)],
            "gammabeta": gammabeta.__version__,
            "torch": torch.__version__,
        }


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A data set whose training split has lent some images for making choices.

    Args:
        dataset: With all training images; its scaling and augmentation are used.
        train: To learn from.
        validation: To choose learning rates and the best moment of a training by.
        test: Measured once a training is over, and never chosen by.
    """

    dataset: Dataset
    train: Split
    validation: Split

    @property
    def test(self) -> Split:
        """The test split."""
        return self.dataset.test


def hold_out(dataset: Dataset) -> HeldOut:
    """Take a tenth of the training images out, class by class, the same in every comparison.

    Raises:
        GammabetaError: If there are too few images to do so.

    Example:
        >>> from gammabeta.data import load
        >>> data = hold_out(load("digits", image_size=8))
        >>> len(data.train), len(data.validation), len(data.test)
        (1293, 144, 360)
    """
    labels = dataset.train.labels
    wanted = min(HELD_OUT, round(len(labels) / 10))
    if wanted < len(dataset.classes) or len(labels) - wanted < 2:
        raise GammabetaError(
            f"{dataset.name} has {len(labels)} training images, but a comparison holds a tenth of "
            f"them out and needs one of each class there: at least {10 * len(dataset.classes)}"
        )
    shuffled = np.random.default_rng(0).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    taken = by_class[np.linspace(0, len(labels) - 1, wanted).round().astype(np.int64)]
    out = np.zeros(len(labels), np.bool_)
    out[taken] = True
    images = dataset.train.images
    return HeldOut(dataset, Split(images[~out], labels[~out]), Split(images[out], labels[out]))
