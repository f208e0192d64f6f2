"""Averaged weights need statistics of their own: SWA on real handwritten digits.

Run it with ``python examples/averaging.py``: some seconds on two cores, no download. The network
is trained at a constant rate and its weights are averaged over the last epochs (Izmailov et al.
2018, arXiv:1803.05407). The average never saw data, so its batch norms still hold the statistics of
another network; printed is its accuracy before and after they are measured.
"""

import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel

import gammabeta as gb
from gammabeta import Net
from gammabeta.data import load
from gammabeta.data.loader import Loader
from gammabeta.training.evaluate import evaluate

EPOCHS, AVERAGED = 6, 3


def main():
    torch.manual_seed(0)
    digits = load("digits", image_size=16)
    loader = Loader(digits.train, 64, digits.normalization, digits.augmentation)
    net = Net(num_classes=10, image_size=16)
    averaged = AveragedModel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9, weight_decay=5e-4)
    for epoch in range(EPOCHS):
        for images, labels in loader.epoch(epoch):
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()
        if epoch >= EPOCHS - AVERAGED:
            averaged.update_parameters(net)

    def accuracy(model):
        return f"{100 * evaluate(model, digits.test, digits.normalization).accuracy:.2f} %"

    print(f"last weights: {accuracy(net)}")
    print(f"averaged weights, statistics of other weights: {accuracy(averaged)}")
    report = gb.recalibrate(averaged, loader.epoch(EPOCHS))
    print(f"averaged weights, their own statistics: {accuracy(averaged)}\n\n{report}")


if __name__ == "__main__":
    main()
