"""Scaling bytes to what a network was trained on, as part of the network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gammabeta.data.dataset import Normalization


class Preprocess(nn.Module):
    """``(byte / 255 - mean) / std`` and the channels first, as :class:`data.loader.Loader` does.

    Each operation rounds to float32 as the loader's does, in the same order: the same bits.

    Args:
        normalization: Mean and standard deviation of each channel, of values from 0 to 1.

    Shapes: input uint8 (N, H, W, 3), output (N, 3, H, W) in the dtype of the buffers.

    Example:
        >>> black = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
        >>> y = Preprocess(Normalization())(black)
        >>> y.shape, float(y.max())
        (torch.Size([1, 3, 2, 2]), -1.0)
    """

    mean: Tensor
    std: Tensor

    def __init__(self, normalization: Normalization) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(normalization.mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(normalization.std, dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        """Return what the network takes, for images as decoders give them."""
        scaled = (images.to(self.mean.dtype) / 255 - self.mean) / self.std
        return scaled.permute(0, 3, 1, 2)


class Preprocessed(nn.Module):
    """A network that takes bytes.

    Args:
        normalization: The scaling that it was trained with.
        model: Takes (N, 3, H, W).
    """

    def __init__(self, normalization: Normalization, model: nn.Module) -> None:
        super().__init__()
        self.preprocess = Preprocess(normalization)
        self.model = model

    def forward(self, images: Tensor) -> object:
        """Return the network's output for uint8 images (N, H, W, 3)."""
        return self.model(self.preprocess(images).contiguous())
