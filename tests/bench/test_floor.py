"""The floors against counts by hand, and against the operations that torch itself counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gammabeta.bench.floor import Copy, LayersAlone, block_bytes, copy_bandwidth, pooled
from gammabeta.bench.models import TorchNet
from gammabeta.bench.tasks import random_images

MB = 2**20
IN, OUT = 128 * 64 * 32 * 32, 128 * 64 * 16 * 16  # 8 Mi and 2 Mi values


@pytest.mark.parametrize(
    ("dtype", "pool", "mode", "expected"),
    [
        # read x twice 64, write y 8, index 2; read y 8, dy 8, index 2, x 32, write dx 32 (in MiB)
        (torch.float32, 2, "backward", (64 + 8 + 2 + 8 + 8 + 2 + 32 + 32) * MB),
        (torch.bfloat16, 2, "backward", (32 + 4 + 2 + 4 + 4 + 2 + 16 + 16) * MB),
        (torch.float32, 2, "forward", (64 + 8) * MB),
        (torch.float32, 2, "eval", (32 + 8) * MB),
        (torch.bfloat16, 2, "eval", (16 + 4) * MB),
        # without pooling y is as large as x, and its sign is the mask
        (torch.float32, None, "backward", (64 + 32 + 32 + 32 + 32 + 32) * MB),
        (torch.float32, None, "forward", (64 + 32) * MB),
    ],
)
def test_the_bytes_of_the_largest_block_are_those_counted_by_hand(dtype, pool, mode, expected):
    assert (IN // MB, OUT // MB) == (8, 2)
    assert block_bytes((128, 64, 32, 32), dtype, pool, mode) == expected


@pytest.mark.parametrize("pool", [2, 3])
@pytest.mark.parametrize("size", [(4, 4), (7, 5), (9, 8)])
def test_the_pooled_shape_is_torchs(pool, size):
    layer = {2: nn.MaxPool2d(2), 3: nn.MaxPool2d(3, 2, 1)}[pool]
    assert pooled((2, 3, *size), pool) == layer(torch.zeros(2, 3, *size)).shape


@pytest.mark.parametrize("moved", [16, 1000, 2**20])
def test_a_copy_moves_the_bytes_that_were_asked_for(moved):
    copy = Copy(moved)
    copied = copy()
    assert torch.equal(copied, copy.source)
    assert copied.data_ptr() != copy.source.data_ptr()
    assert copied.nbytes + copy.source.nbytes == copy.moved_bytes == moved // 16 * 16


def test_bandwidth_is_bytes_over_seconds(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr("gammabeta.bench.floor.time.perf_counter", lambda: 0.5 * next(ticks))
    assert copy_bandwidth(2**20, rounds=3) == 2**20 / 0.5


class Flops(TorchDispatchMode):
    """Adds up convolutions and matrix products, forward and backward, by torch's own formulas."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        self.total += count(*args, **(kwargs or {}), out_val=out) if count else 0
        return out


def branching():
    """A model with a shared layer, a grouped convolution, and a convolution that gets no bias."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
            self.bn = nn.BatchNorm2d(4)
            self.twice = nn.Conv2d(4, 4, 3, padding=1, groups=2)
            self.last = nn.Linear(4, 10)

        def forward(self, x):
            x = self.bn(self.first(x)).relu_()
            x = self.twice(x) + self.twice(2 * x)
            return self.last(x.mean((2, 3)))

    return Model()


@pytest.mark.parametrize("make", [lambda: TorchNet(image_size=8), branching])
def test_the_layers_alone_do_the_models_arithmetic_and_no_other(make):
    model, images = make(), torch.randn(4, 3, 8, 8)
    alone = LayersAlone(model, images)
    with Flops() as of_model:
        logits = model(images)
        logits.backward(torch.randn_like(logits))
    with Flops() as of_layers:
        alone()
    assert of_layers.total == of_model.total > 0


def test_each_layer_gets_the_input_that_it_has_in_the_model():
    model = TorchNet(image_size=8).to(memory_format=torch.channels_last)
    images = random_images(4, 8, torch.channels_last)
    seen = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for layer in (model.conv1, model.conv2, model.conv3, model.fc1, model.fc2)
    ]
    alone = LayersAlone(model, images)
    for hook in hooks:
        hook.remove()
    for call, x in zip(alone.calls, seen, strict=True):
        assert torch.equal(call.x, x)
        assert call.x.stride() == x.stride()
        assert call.x.is_leaf
        assert call.x.requires_grad == (x is not images)


def test_gradients_are_those_of_each_layer_for_its_own_cotangent():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    alone = LayersAlone(model, torch.randn(5, 3))
    first, last = alone.calls
    got = alone()
    torch.testing.assert_close(got[0], first.dy.T @ first.x)  # weight and bias of the first
    torch.testing.assert_close(got[1], first.dy.sum(0))
    torch.testing.assert_close(got[2], last.dy @ last.layer.weight)  # then the last's input
    torch.testing.assert_close(got[3], last.dy.T @ last.x)


def test_in_bf16_the_layers_compute_in_bf16_and_hooks_are_gone():
    model = TorchNet(image_size=8)
    alone = LayersAlone(model, torch.randn(4, 3, 8, 8), bf16=True)
    assert {call.dy.dtype for call in alone.calls} == {torch.bfloat16}
    assert alone.calls[0].x.dtype == torch.float32  # the images
    assert all(gradient.dtype != torch.float64 for gradient in alone())
    assert not any(module._forward_hooks for module in model.modules())
