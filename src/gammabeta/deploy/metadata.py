"""What an exported file says about itself, so that a program can use it without the run.

In ONNX these are ``metadata_props``, text by name: words as they are, lists and numbers as JSON. In
a ``.pt2`` archive they are one JSON object, the extra file ``gammabeta.json``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gammabeta
from gammabeta.data import DATA_SETS
from gammabeta.data.dataset import Normalization
from gammabeta.errors import GammabetaError, RunError
from gammabeta.schema import parse

PT2_NAME = "gammabeta.json"


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What the images are and what the outputs mean.

    Args:
        classes: Class names in the order of the logits.
        normalization: The scaling that the model was trained with.
        image_size: Height and width of the images, in pixels.
        data: "cifar10" or "digits", where the model was trained on one of them; the path of a
            folder is nobody's business.

    Raises:
        GammabetaError: For another name of a data set.

    Example:
        >>> Metadata(classes=("cat", "dog"), image_size=32).classes
        ('cat', 'dog')
    """

    classes: tuple[str, ...] | None = None
    normalization: Normalization | None = None
    image_size: int | None = None
    data: str | None = None

    def __post_init__(self) -> None:
        if self.data is not None and self.data not in DATA_SETS:
            raise GammabetaError(f"data is {self.data!r}, but must be None, cifar10 or digits")


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """What :func:`read` finds in a file that can name what is on an image.

    Args:
        classes: Class names in the order of the logits.
        normalization: The scaling that the model was trained with.
        image_size: Height and width of the images, in pixels.
        data: "cifar10", "digits" or None.
        with_preprocessing: Whether the file takes bytes, and scales them itself.
    """

    classes: tuple[str, ...]
    normalization: Normalization
    image_size: int
    data: str | None
    with_preprocessing: bool


def describe(metadata: Metadata, *, with_preprocessing: bool, precision: str) -> dict[str, Any]:
    """Return the entries of a file, by name, as JSON values.

    Args:
        metadata: What the caller knows.
        with_preprocessing: Whether scaling and layout are part of the graph.
        precision: "float32" or "int8".

    Example:
        >>> describe(Metadata(image_size=32), with_preprocessing=False, precision="float32")
        {'gammabeta': '0.1.0', 'precision': 'float32', 'image_size': 32}
    """
    found: dict[str, Any] = {"gammabeta": gammabeta.__version__, "precision": precision}
    if metadata.image_size is not None:
        found["image_size"] = metadata.image_size
    if metadata.normalization is not None:
        inside = with_preprocessing
        found |= {
            "preprocessing": "inside" if inside else "outside",
            "input_type": "uint8" if inside else "float32",
            "layout": "NHWC" if inside else "NCHW",
            "color": "RGB",
            "mean": list(metadata.normalization.mean),
            "std": list(metadata.normalization.std),
        }
    if metadata.classes is not None:
        found["classes"] = list(metadata.classes)
    if metadata.data is not None:
        found["data"] = metadata.data
    return found


def as_text(entries: Mapping[str, Any]) -> dict[str, str]:
    """Return entries as ONNX keeps them.

    Example:
        >>> as_text({"precision": "int8", "classes": ["cat", "dog"]})
        {'precision': 'int8', 'classes': '["cat", "dog"]'}
    """
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in entries.items()
    }


def read(entries: Mapping[str, str]) -> Labelled:
    """Read the entries of an ONNX file that is to classify images.

    Raises:
        GammabetaError: If entries are missing or damaged; the message names them.

    Example:
        >>> read({"image_size": "32"})
        Traceback (most recent call last):
            ...
        gammabeta.errors.GammabetaError: has no classes, mean, std, preprocessing in its metadata
    """
    wanted = ("classes", "mean", "std", "image_size", "preprocessing")
    missing = [name for name in wanted if name not in entries]
    if missing:
        raise GammabetaError(f"has no {', '.join(missing)} in its metadata")
    try:
        return Labelled(
            classes=_names(entries["classes"]),
            normalization=Normalization(_three(entries["mean"]), _three(entries["std"], least=0)),
            image_size=_positive(entries["image_size"]),
            data=entries["data"] if entries.get("data") in DATA_SETS else None,
            with_preprocessing={"inside": True, "outside": False}[entries["preprocessing"]],
        )
    except (ValueError, KeyError, RunError) as error:
        raise GammabetaError(f"has damaged metadata: {error}") from None


def _names(text: str) -> tuple[str, ...]:
    names = parse(list[str], text, "classes")
    if not names:
        raise ValueError(f"classes is {text[:60]}, but must be a list of names")
    return tuple(names)


def _three(text: str, least: float = -math.inf) -> tuple[float, float, float]:
    r, g, b = parse(tuple[float, float, float], text, "scaling")
    if not all(math.isfinite(value) and value > least for value in (r, g, b)):
        raise ValueError(f"{text[:60]} are no numbers to scale by")
    return r, g, b


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(f"image_size is {value}, but must be positive")
    return value
