"""The tutorial's script, corrected: a network with Batch Normalization on CIFAR-10.

    python examples/tutorial.py --root FOLDER --epochs 8

It reads like the original. Each place where the original goes wrong carries a comment that begins
with "Corrected"; docs/tutorial.md says what each mistake costs. `--data digits` needs no download.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F  # Corrected (1): one listing of the original uses F without this.
from torch import nn, optim

from gammabeta import BatchNorm1d, BatchNorm2d, data, param_groups
from gammabeta.data.loader import Loader


class Net(nn.Module):
    """Three convolutions and two linear layers, batch-normalised."""

    def __init__(self):
        super().__init__()
        # Corrected (2): no bias before Batch Normalization, which subtracts it again with the mean.
        self.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn1 = BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 128, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn2 = BatchNorm2d(128)
        self.conv3 = nn.Conv2d(128, 256, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn3 = BatchNorm2d(256)
        self.fc1 = nn.Linear(256 * 4 * 4, 1024, bias=False)
        self.bn4 = BatchNorm1d(1024)
        self.fc2 = nn.Linear(1024, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.max_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        x = torch.flatten(x, 1)
        x = F.relu(self.bn4(self.fc1(x)))
        return self.fc2(x)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", default="cifar10", help="cifar10 or digits")
parser.add_argument("--root", type=Path, help="where CIFAR-10 lies or is downloaded to")
parser.add_argument("--epochs", type=int, default=200)
options = parser.parse_args()

torch.manual_seed(0)
dataset = data.load(options.data, root=options.root)
trainloader = Loader(dataset.train, 128, dataset.normalization, dataset.augmentation)
# Corrected (3): test images are measured as they are, without random crops and flips.
testloader = Loader(dataset.test, 128, dataset.normalization)

net = Net()
criterion = nn.CrossEntropyLoss()
# Corrected (4): weight decay shrinks the weights, not gamma, beta and the biases.
optimizer = optim.SGD(param_groups(net, weight_decay=5e-4), lr=0.1, momentum=0.9)
# Corrected (5): the learning rate falls to zero, so that the last steps settle instead of jumping.
steps = options.epochs * len(trainloader)
scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)

for epoch in range(options.epochs):
    net.train()
    running_loss = 0.0
    for i, (inputs, labels) in enumerate(trainloader.epoch(epoch)):
        optimizer.zero_grad()
        outputs = net(inputs)
        loss = criterion(outputs, labels)
        loss.backward()
        optimizer.step()
        scheduler.step()
        running_loss += loss.item()
        if i % 100 == 99:
            print("[%d, %5d] loss: %.3f" % (epoch + 1, i + 1, running_loss / 100), flush=True)
            running_loss = 0.0

print("Finished Training")

# Corrected (6): eval mode, so that running statistics are used and test images do not change them.
net.eval()
correct = 0
total = 0
with torch.no_grad():
    for inputs, labels in testloader.epoch(0):
        outputs = net(inputs)
        predicted = outputs.argmax(dim=1)
        total += labels.size(0)
        correct += (predicted == labels).sum().item()

print("Accuracy of the network on the %d test images: %d %%" % (total, 100 * correct / total))
