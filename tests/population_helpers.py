"""Small networks of every kind of wiring, and the truth about their population statistics."""

from __future__ import annotations

import copy
import random

import numpy as np
import torch
from torch import nn

from gammabeta import Net, accelerate
from norm_helpers import randn
from surgery_helpers import twin


class Residual(nn.Module):
    """Two blocks with a shortcut each, one of them with a batch norm of its own."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)
        self.down = nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6))
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(6, 2)

    def forward(self, x):
        x = torch.relu_(self.bn0(self.stem(x)))
        x = x + torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)) + self.down(x))
        return self.fc(self.drop(x.mean((2, 3))))


class Dense(nn.Module):
    """Every layer reads all before it; one normalises what no convolution made."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(3 + 2 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(3 + 2 * i, 2, 3, padding=1) for i in range(3))
        self.last = nn.BatchNorm1d(9)

    def forward(self, x):
        features = [x]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(torch.relu(norm(torch.cat(features, 1)))))
        return self.last(torch.cat(features, 1).mean((2, 3)))


class Autocast(nn.Module):
    """Changes, inside its forward, what torch keeps for the thread."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn1, self.bn2 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            x = self.bn1(self.conv(x))
        assert not torch.is_autocast_enabled("cpu")
        with torch.enable_grad():
            x = self.bn2(x.float() * 2)
        assert not torch.is_grad_enabled()
        return x


def plain():
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4),
        nn.Flatten(), nn.Linear(4 * 4 * 4, 7), nn.BatchNorm1d(7, momentum=None),
    )  # fmt: skip


NETWORKS = {
    "plain": plain,
    "residual": Residual,
    "dense": Dense,
    "Net": lambda: Net(image_size=8),
    "accelerated": lambda: accelerate(Residual()),
}


def network(name, dtype=torch.float64):
    torch.manual_seed(3)
    return NETWORKS[name]().to(dtype)


def images(count=23, dtype=torch.float64, size=8):
    """Images whose brightness and contrast differ: batches differ too."""
    x = randn(count, 3, size, size, seed=5, dtype=torch.float64)
    return (x * torch.linspace(0.5, 3, count)[:, None, None, None].double() + 1).to(dtype)


def norms(model):
    return {
        n: m for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
    }


def statistics(model):
    found = norms(model)
    return {n: (m.running_mean.clone(), m.running_var.clone()) for n, m in found.items()}


def truth(model, x):
    """Fix one layer after the other, a whole pass for each, all data in one batch, in float64."""
    model = twin(model).double().eval()
    order = []
    seen = {}

    def hook(name):
        def note(_, args):
            if name not in order:
                order.append(name)
            seen[name] = args[0].detach()

        return note

    for name, norm in norms(model).items():
        norm.register_forward_pre_hook(hook(name))
    with torch.no_grad():
        model(x.double())
        for name in list(order):
            model(x.double())
            norm, axes = norms(model)[name], [0, *range(2, seen[name].dim())]
            norm.running_mean.copy_(seen[name].mean(axes))
            norm.running_var.copy_(seen[name].var(axes))
    return statistics(model)


def assert_same(got, want, bound=1e-10):
    assert got.keys() == want.keys()
    for name in want:
        for kind, a, b in zip(("mean", "var"), got[name], want[name], strict=True):
            b = b.double()
            scale = want[name][1].double().sqrt() if kind == "mean" else b
            off = ((a.double() - b).abs() / (scale + 1e-12)).max()
            assert off < bound, f"{kind} of {name} is off by {off:.2g}"


def everything(model):
    """All that must not change: bits, addresses, modes, hooks, attributes, random state."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "tensors": {
            n: (t.data_ptr(), t._version, copy.deepcopy(t.detach())) for n, t in tensors.items()
        },
        "grads": {n: p.grad for n, p in model.named_parameters()},
        "modules": [
            (n, m.training, sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks))
            for n, m in model.named_modules()
        ],
        "momentum": {n: m.momentum for n, m in norms(model).items()},
        "random": (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())),  # noqa: NPY002
        "grad mode": torch.is_grad_enabled(),
    }


def assert_untouched(before, model, but=()):
    after = everything(model)
    for name, (pointer, version, value) in before["tensors"].items():
        now = after["tensors"][name]
        assert now[0] == pointer, f"{name} lies elsewhere"
        if name.rpartition(".")[2] not in but:
            assert now[1] == version, f"{name} was written"
            assert torch.equal(now[2].nan_to_num(7), value.nan_to_num(7)), f"{name} changed"
    for key in before.keys() - {"tensors"}:
        assert after[key] == before[key], key
