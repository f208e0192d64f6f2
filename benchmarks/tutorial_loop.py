"""The tutorial's own training loop, as the rival that every measure is held against.

torchvision's CIFAR-10 data set and transforms on PIL images, a DataLoader with two workers, the
network in PyTorch's default layout and precision, and SGD as the tutorial calls it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from gammabeta.bench.models import TorchNet
from gammabeta.data.dataset import Split

WORKERS = 2


class PilImages(TorchDataset[tuple[Tensor, int]]):
    """Serves a split as ``torchvision.datasets.CIFAR10`` does: array, PIL image, transform."""

    def __init__(self, split: Split, transform: transforms.Compose) -> None:
        self.split = split
        self.transform = transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(np.asarray(self.split.images[index]))
        return self.transform(image), int(self.split.labels[index])


def data_loader(split: Split, batch_size: int = 128, workers: int = WORKERS) -> DataLoader:
    """Return the tutorial's training loader."""
    transform = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.RandomCrop(32, padding=4),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ]
    )
    images = PilImages(split, transform)
    return DataLoader(images, batch_size=batch_size, shuffle=True, num_workers=workers)


def train(
    batches: Iterator[tuple[Tensor, Tensor]], layout: torch.memory_format = torch.contiguous_format
) -> Iterator[float]:
    """Run the tutorial's loop over the batches, in its layout or another; yield each loss."""
    net = TorchNet().to(memory_format=layout)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for inputs, labels in batches:
        optimizer.zero_grad()
        loss = criterion(net(inputs.contiguous(memory_format=layout)), labels)
        loss.backward()
        optimizer.step()
        yield loss.item()
