"""Models and explanations that the tests of pages share; each is made once for a process."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.insight.explain import Explanation, explain
from gammabeta.insight.render import page, write
from training_helpers import digits, slice_of


def batch_of_digits(count: int, size: int = 16) -> tuple[Tensor, Tensor]:
    """The first test images, scaled as the network is given them."""
    from gammabeta.data.loader import Loader

    dataset = digits(size)
    loader = Loader(slice_of(dataset.test, count), count, dataset.normalization)
    return next(loader.epoch(0))


def small_net(seed: int = 0) -> nn.Module:
    """Batch norm after convolutions and a linear layer; one γ is negative, one channel dead."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(20 * 16, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 10),
    )  # fmt: skip
    with torch.no_grad():
        for norm in (net[1], net[5], net[10]):
            norm.weight.uniform_(0.3, 2.0)
            norm.bias.normal_(0.1, 0.5)
        net[1].weight[0] = -1.2
        net[1].bias[1] = -50.0
        net(torch.randn(64, 3, 16, 16))  # running statistics that fit nothing well
    return net


@functools.cache
def explanation() -> Explanation:
    """The small net on digits; the one most tests look at."""
    images, labels = batch_of_digits(48)
    found = explain(
        small_net(),
        (images, labels),
        classes=list("0123456789"),
        population=[images, images * 0.9],
        name="small <net>",
        data_name="digits",
    )
    found.command = "gammabeta explain 'a & b'"
    return found


@functools.cache
def explained_page(folder: Path, lang: str) -> Path:
    """The page of :func:`explanation`."""
    file = folder / f"explain-{lang}.html"
    explanation().to_html(file, lang=lang)
    return file


def page_of(document: dict[str, Any], file: Path, lang: str = "en") -> Path:
    """Write the explain page of any document."""
    write(file, page("explain", {"data": document, "meta": document}, lang))
    return file
