"""The reference network: three convolutions and two linear layers, all but the last batch-normed.

Attribute names are those of the tutorial that the product starts from, so that a state_dict of its
class loads unchanged: conv1, bn1, conv2, bn2, conv3, bn3, fc1, bn4, fc2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gammabeta.errors import GammabetaError
from gammabeta.norm.act import BatchNormAct1d, BatchNormAct2d


class Net(nn.Module):
    """Three conv-BN-ReLU-pool blocks, then a linear-BN-ReLU layer and a linear classifier.

    ReLU and pooling are part of the batch norm layers, which do all three in one pass over memory.

    Args:
        num_classes: Number of logits.
        image_size: Height and width of the input in pixels, a positive multiple of 8.

    Shapes: input (N, 3, image_size, image_size), output (N, num_classes).

    Raises:
        GammabetaError: If ``image_size`` is not a positive multiple of 8.

    Example:
        >>> net = Net()
        >>> sum(p.numel() for p in net.parameters())
        4579338
        >>> net(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10, image_size: int = 32) -> None:
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
        self.fc1 = nn.Linear(256 * (image_size // 8) ** 2, 1024)
        self.bn4 = BatchNormAct1d(1024)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (N, num_classes) for images (N, 3, image_size, image_size)."""
        x = self.bn1(self.conv1(x))
        x = self.bn2(self.conv2(x))
        x = self.bn3(self.conv3(x))
        x = self.bn4(self.fc1(torch.flatten(x, 1)))
        logits: Tensor = self.fc2(x)
        return logits
