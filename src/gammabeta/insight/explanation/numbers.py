"""Numbers as JSON has them: lists of floats, seven digits where more would say nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def exact(values: ArrayLike) -> Any:
    """Return floats with all their digits, nested as the array is; None for NaN and infinities.

    Example:
        >>> exact([1 / 3, float("nan")])
        [0.3333333333333333, None]
    """
    return finite(np.asarray(values, dtype=np.float64).tolist())


def brief(values: ArrayLike) -> Any:
    """Return floats rounded to seven significant digits, nested as the array is.

    Example:
        >>> brief([1 / 3, 12345678.0])
        [0.3333333, 12345680.0]
    """
    return _rounded(exact(values))


def finite(value: Any) -> Any:
    """Return nested data with None in place of NaN and infinities, which JSON does not have.

    Example:
        >>> finite({"a": [1, float("inf")], "b": "text"})
        {'a': [1, None], 'b': 'text'}
    """
    if isinstance(value, list):
        return [finite(v) for v in value]
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return None if value is None else float(f"{value:.7g}")
