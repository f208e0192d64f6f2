"""The reference network, and its variants without batch norm, with Dropout and with group norm.

Three convolutions and two linear layers, all but the last batch-normed.

Attribute names are those of the tutorial that the product starts from, so that a state_dict of its
class loads unchanged: conv1, bn1, conv2, bn2, conv3, bn3, fc1, bn4, fc2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gammabeta.errors import GammabetaError
from gammabeta.memory import require
from gammabeta.norm.act import BatchNormAct1d, BatchNormAct2d
from gammabeta.norm.activation import Epilogue

VARIANTS = ("bn", "none", "dropout", "bn+dropout", "groupnorm")
"""The names that :func:`variant` knows."""
DROPOUT = 0.5
"""Share of the 1024 hidden units that the variants with Dropout drop before the last layer."""
GRID = 4
"""Side of the largest feature map that ``fc1`` reads: that of images of 32 pixels."""
FLOAT = 4
"""Bytes of a float32."""
GROUPS = 32
"""Groups of the variant with group norm (Wu and He 2018, arXiv:1803.08494, section 3.1)."""


class Net(nn.Module):
    """Three conv-BN-ReLU-pool blocks, then a linear-BN-ReLU layer and a linear classifier.

    ReLU and pooling are part of the batch norm layers, which do all three in one pass over memory.

    Args:
        num_classes: Number of logits.
        image_size: Height and width of the input in pixels, a positive multiple of 8.
        grid: Larger feature maps than ``grid`` by ``grid``, those of images above ``8 * grid``
            pixels, are averaged down to it before ``fc1``, so that the number of weights does not
            grow with the image. None: they are not, as in runs of earlier versions.

    Shapes: input (N, 3, image_size, image_size), output (N, num_classes).

    Raises:
        GammabetaError: If ``image_size`` is not a positive multiple of 8, or so large that the
            weights, or the first layer's output for a single image, would not fit into memory.

    Example:
        >>> net = Net()
        >>> sum(p.numel() for p in net.parameters())
        4579338
        >>> net(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
        >>> sum(p.numel() for p in Net(image_size=224).parameters())
        4579338
    """

    def __init__(
        self, num_classes: int = 10, image_size: int = 32, *, grid: int | None = GRID
    ) -> None:
        super().__init__()
        if image_size < 8 or image_size % 8:
            raise GammabetaError(
                f"image_size is {image_size}, but three 2x2 poolings need a positive multiple of 8"
            )
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1)
        self.bn1 = BatchNormAct2d(64, pool=2)
        self.conv2 = nn.Conv2d(64, 128, 3, padding=1)
        self.bn2 = BatchNormAct2d(128, pool=2)
        self.conv3 = nn.Conv2d(128, 256, 3, padding=1)
        self.bn3 = BatchNormAct2d(256, pool=2)
        side = image_size // 8
        self.grid = None if grid is None or side <= grid else grid
        features = 256 * (self.grid or side) ** 2
        if torch.get_default_device().type == "cpu":
            _require(max(FLOAT * 1024 * features, FLOAT * 64 * image_size**2), image_size)
        self.fc1 = nn.Linear(features, 1024)
        self.bn4 = BatchNormAct1d(1024)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (N, num_classes) for images (N, 3, image_size, image_size)."""
        x = self.bn1(self.conv1(x))
        x = self.bn2(self.conv2(x))
        x = self.bn3(self.conv3(x))
        if self.grid is not None:
            x = F.adaptive_avg_pool2d(x, self.grid)
        x = self.bn4(self.fc1(torch.flatten(x, 1)))
        logits: Tensor = self.fc2(x)
        return logits


def require_memory(image_size: int, batch_size: int) -> None:
    """Refuse a training for which memory is short.

    Counted is what is needed at the least: the first convolution's output, and its gradient.

    Args:
        image_size: Height and width of the images, in pixels.
        batch_size: Images in a step.

    Raises:
        GammabetaError: With what it needs and what there is.
    """
    _require(2 * FLOAT * 64 * image_size**2 * batch_size, image_size, batch_size)


def _require(needed: int, image_size: int, batch_size: int = 0) -> None:
    require(
        needed,
        f"the network for images of {image_size}x{image_size} pixels"
        + (f" in batches of {batch_size}" if batch_size else ""),
        "choose a smaller --image-size" + (" or --batch-size" if batch_size > 2 else ""),
    )


class _GroupNorm(nn.GroupNorm):
    """Group norm that computes in float32: torch's bf16 one takes three times as long on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class _Activated(nn.Module):
    """``pool(relu(norm(x)))`` in torch's own operators, where ``Net`` has one fused layer."""

    def __init__(self, norm: nn.Module, pool: int | None) -> None:
        super().__init__()
        self.norm = norm
        self.epilogue = Epilogue("relu", pool=pool)

    def forward(self, x: Tensor) -> Tensor:
        return self.epilogue(self.norm(x))


def variant(name: str, num_classes: int = 10, image_size: int = 32) -> Net:
    """Return ``Net``, or ``Net`` with other layers where its batch norms are.

    "bn" is ``Net`` itself; "none" has no normalization; "groupnorm" has group norm; "dropout" and
    "bn+dropout" drop half of the hidden units before the last linear layer, the place where the
    batch norm paper's network had its Dropout (Ioffe and Szegedy 2015, section 4.2.1). Nothing
    but convolutions and linear layers draws random numbers here, in one order: after the same
    ``torch.manual_seed`` their weights are the same in every variant.

    Args:
        name: One of ``VARIANTS``.
        num_classes: Number of logits.
        image_size: Height and width of the input in pixels, a positive multiple of 8.

    Raises:
        GammabetaError: For an unknown name, or an ``image_size`` that ``Net`` refuses.

    Example:
        >>> [sum(p.numel() for p in variant(name).parameters()) for name in ("bn", "none")]
        [4579338, 4576394]
    """
    if name not in VARIANTS:
        raise GammabetaError(f"variant is {name!r}, but must be one of {', '.join(VARIANTS)}")
    net = Net(num_classes, image_size)
    if not name.startswith("bn"):
        for layer, channels, pool in (("bn1", 64, 2), ("bn2", 128, 2), ("bn3", 256, 2)):
            setattr(net, layer, _Activated(_norm(name, channels), pool))
        net.bn4 = _Activated(_norm(name, net.fc1.out_features), None)  # type: ignore[assignment]
    if name.endswith("dropout"):
        net.fc2 = nn.Sequential(nn.Dropout(DROPOUT), net.fc2)  # type: ignore[assignment]
    return net


def _norm(name: str, channels: int) -> nn.Module:
    return _GroupNorm(GROUPS, channels) if name == "groupnorm" else nn.Identity()
