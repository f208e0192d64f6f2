"""Whole models by name, with torch's own layers: the tutorial's network, torchvision's, timm's."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gammabeta.errors import GammabetaError
from gammabeta.models import GRID

LIBRARIES = ("torchvision", "timm")


class TorchNet(nn.Module):
    """:class:`gammabeta.Net` as the tutorial writes it: torch's layers; normalise, activate, pool.

    Args:
        num_classes: Number of logits.
        image_size: Height and width of the input in pixels, a positive multiple of 8.

    Raises:
        GammabetaError: If ``image_size`` is not a positive multiple of 8.

    Example:
        >>> from gammabeta import Net
        >>> Net().load_state_dict(TorchNet().state_dict())
        <All keys matched successfully>
    """

    def __init__(self, num_classes: int = 10, image_size: int = 32) -> None:
        super().__init__()
        if image_size < 8 or image_size % 8:
            raise GammabetaError(
                f"image_size is {image_size}, but three 2x2 poolings need a positive multiple of 8"
            )
        self.num_classes = num_classes
        self.image_size = image_size
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64)
        self.conv2, self.bn2 = nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128)
        self.conv3, self.bn3 = nn.Conv2d(128, 256, 3, padding=1), nn.BatchNorm2d(256)
        side = image_size // 8
        self.grid = GRID if side > GRID else None  # averaged to, as Net does
        self.fc1 = nn.Linear(256 * (self.grid or side) ** 2, 1024)
        self.bn4 = nn.BatchNorm1d(1024)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (N, num_classes) for images (N, 3, image_size, image_size)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.max_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        if self.grid is not None:
            x = F.adaptive_avg_pool2d(x, self.grid)
        x = F.relu(self.bn4(self.fc1(torch.flatten(x, 1))))
        logits: Tensor = self.fc2(x)
        return logits


def build(name: str, image_size: int, seed: int = 0) -> nn.Module:
    """Return a model in training mode, with random weights that depend on the seed alone.

    Args:
        name: "net", "torchvision:NAME" or "timm:NAME".
        image_size: Height and width of the images that it will be given.
        seed: Of the weights; torch's own generator is left as it was.

    Raises:
        GammabetaError: For a name that is not known, or a library that is not installed.

    Example:
        >>> type(build("net", 32)).__name__
        'TorchNet'
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "net":
            return TorchNet(image_size=image_size)
        library, colon, of_library = name.partition(":")
        if library not in LIBRARIES or not colon:
            raise GammabetaError(
                f"model is {name!r}, but must be net, torchvision:NAME or timm:NAME"
            )
        return _build_from(library, of_library).train()


def _build_from(library: str, name: str) -> nn.Module:
    """Make a classifier of torchvision's or timm's, without downloading any weights."""
    try:
        module: Any = import_module(library)
    except ImportError as error:
        raise GammabetaError(
            f"--model {library}:{name} needs a package: pip install {library} ({error})"
        ) from error
    models = module.models if library == "torchvision" else module
    extra = {"module": models} if library == "torchvision" else {}
    known: list[str] = models.list_models(**extra)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else f"it has {len(known)} others"
        raise GammabetaError(f"{library} has no model {name!r}; {hint}")
    if library == "timm":
        return _module(models.create_model(name, pretrained=False))
    options = {"aux_logits": False, "init_weights": False} if name in _WITH_AUXILIARIES else {}
    return _module(models.get_model(name, weights=None, **options))


_WITH_AUXILIARIES = {"googlenet", "inception_v3"}  # in training these return several outputs


def _module(model: Any) -> nn.Module:
    built: nn.Module = model
    return built
