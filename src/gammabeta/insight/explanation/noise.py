"""How uncertain the statistics of a batch are."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gammabeta.moments import Moments

Array = NDArray[np.float64]
_BLOCK = 2**21  # values converted to float64 at a time


def noise(x: Tensor, moments: Moments) -> dict[str, float | None]:
    """Measure how uncertain the statistics of a batch are.

    Values of one image are alike, so images are the independent units: the standard error of the
    mean is that of the means of images, the variance's that of their mean squares about it.

    Args:
        x: (N, C, *).
        moments: Of x.

    Returns:
        ``mean``, the standard error in standard deviations if all values were independent, 1/√m;
        ``mean_measured``, the same between images; ``variance``, relative, between images;
        ``effective_values``, the independent values that would give ``mean_measured``. Medians
        over channels; None where there is one image or no variance.

    Example:
        >>> x = torch.randn(64, 3)
        >>> noise(x, Moments.of(x))["effective_values"]
        64.0
    """
    count, images = moments.count, len(x)
    found: dict[str, float | None] = {"mean": count**-0.5}
    rest: list[float | None] = [None] * 3
    spread = moments.var > 0
    if images > 1 and spread.any():
        means, squares = _per_image(x, moments.mean)
        between = means.var(axis=0, ddof=1)[spread] / images
        within = squares.std(axis=0, ddof=1)[spread] / images**0.5
        effective = moments.unbiased_var[spread] / np.maximum(between, 1e-300)
        rest = [
            float(np.median((between / moments.var[spread]) ** 0.5)),
            float(np.median(within / moments.var[spread])),
            round(float(np.median(effective)), 6),
        ]
    return found | dict(zip(("mean_measured", "variance", "effective_values"), rest, strict=True))


def _per_image(x: Tensor, mean: Array) -> tuple[Array, Array]:
    """Return each image's mean, and its mean square about the batch's mean, (N, C) each."""
    rows = x.unsqueeze(-1) if x.dim() == 2 else x.flatten(2)
    centre = torch.from_numpy(mean).to(x.device)
    means, squares = [], []
    step = max(1, _BLOCK * rows.shape[1] // max(rows.numel(), 1))
    for start in range(0, rows.shape[1], step):
        block = rows[:, start : start + step].double()
        means.append(block.mean(2))
        squares.append((block - centre[start : start + step, None]).square().mean(2))
    return torch.cat(means, 1).cpu().numpy(), torch.cat(squares, 1).cpu().numpy()
