"""Captured graphs compute channels last inside, and nobody outside of them sees it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gammabeta import accelerate
from gammabeta.surgery import channels_last
from norm_helpers import randn
from surgery_helpers import near, step, twin

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.fixture
def layouts(monkeypatch):
    """Whether the input of each convolution was channels last, as models run."""
    seen = []
    convolution = torch.conv2d

    def spy(x, *args, **options):
        seen.append(x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous())
        return convolution(x, *args, **options)

    lay_out = channels_last.lay_out

    def watched(graph):
        count = lay_out(graph)
        for node in graph.nodes:
            if node.target is torch.conv2d:
                node.target = spy
        return count

    monkeypatch.setattr("gammabeta.surgery.compiler.lay_out", watched)
    return seen


class Net(nn.Module):
    """Two convolutions, and an end of the test's."""

    def __init__(self, end):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.end = end

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.max_pool2d(F.relu(self.bn2(self.conv2(y)) + y), 2)
        return self.end(y)


def images(channels=3, size=16):
    return randn(4, channels, size, size, seed=3)


def both(end):
    model = Net(end)
    reference = twin(model).double()
    return accelerate(model), reference


def test_convolutions_are_computed_channels_last_and_weights_stay(layouts):
    model, reference = both(torch.sigmoid)
    strides = [p.stride() for p in model.parameters()]
    near(step(model, images())[0].double(), step(reference, images().double())[0], 1e-5, "output")
    assert layouts == [True, True]
    assert [p.stride() for p in model.parameters()] == strides
    assert [p.grad.stride() for p in model.parameters()] == strides


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    "end",
    [
        torch.sigmoid,
        lambda y: y,
        lambda y: y.mean((2, 3), keepdim=True),
        lambda y: y.permute(0, 2, 3, 1),
        lambda y: y[:, :3],
        lambda y: torch.cat([y, y], 1),
        lambda y: y.transpose(2, 3),
    ],
    ids=["value", "itself", "mean", "permuted", "part", "cat", "transposed"],
)
def test_outputs_have_the_layout_that_they_had(end, layout):
    model, reference = both(end)
    x = images().to(memory_format=layout)
    got, expected = model(x), reference(x.double())
    near(got.double(), expected, 1e-5, "output")
    assert got.stride() == expected.stride()


@pytest.mark.parametrize(
    "end",
    [
        lambda y: y.view(4, -1),
        lambda y: y.view(4, 8, 64),
        lambda y: y.view_as(torch.empty(4, 512)),
        lambda y: y.flatten(1),
        lambda y: y.reshape(32, -1),
        lambda y: y.as_strided((3, 5), (2, 1)),
        lambda y: torch.as_strided(y, (3, 5), (2, 1)),
        lambda y: y.unfold(2, 2, 2),
        lambda y: torch.cat(y.chunk(2, 1), 2),
        lambda y: y[y > 0],
        lambda y: F.pixel_shuffle(y, 2),
        lambda y: F.group_norm(y, 2),
        lambda y: y.unsqueeze(2),
        lambda y: torch.einsum("nchw,ncij->nhj", y, y),
    ],
)
def test_what_depends_on_the_layout_is_right(end):
    model, reference = both(end)
    got, expected = step(model, images()), step(reference, images().double())
    near(got[0].double(), expected[0], 1e-5, "output")
    scale = max(float(g.abs().max()) for g in expected[1].values())
    for name, gradient in expected[1].items():
        near(got[1][name].double(), gradient, 1e-4, name, scale)


@pytest.mark.parametrize(
    "end",
    [
        lambda y: (y.view(4, -1).mul_(2), y)[1] + 1,
        lambda y: (y.flatten(1).add_(1), y)[1] * 2,
        lambda y: (y.view(4, -1), y.mul_(3))[0] * 1,
        lambda y: (y.permute(0, 2, 3, 1).add_(1), y)[1] * 2,
        lambda y: (y[:, 0].zero_(), y)[1] * 1,
        lambda y: (y.__setitem__((0, 0), 7.0), y)[1] * 1,
        lambda y: (F.relu(y.reshape(4, -1), inplace=True), y)[1] * 1,
        lambda y: (torch.neg(y, out=y.view(4, 8, 8, 8)), y)[1] * 1,
        lambda y: (torch._foreach_mul_([y], 2.0), y)[1] * 1,
        lambda y: (F.dropout(input=y, p=0.0, inplace=True), y.mul_(2), y)[2] * 1,
        lambda y: (F.threshold(input=y, threshold=0.5, value=3.0, inplace=True), y)[1] * 1,
    ],
)
def test_writes_into_views_are_seen_by_all_who_share_them(end):
    model, reference = both(end)
    with torch.no_grad():
        near(model(images()).double(), reference(images().double()), 1e-5, "output")


def test_outputs_that_share_memory_still_do():
    model, reference = both(lambda y: (y * 1, y.flatten(1), y))
    with torch.no_grad():
        for m, x in ((model, images()), (reference, images().double())):
            _, flat, y = m(x)
            y.zero_()
            assert not flat.any()


def test_a_copy_that_costs_more_than_is_won_is_not_made(layouts):
    class Shuffles(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(4))
            self.bn = nn.BatchNorm2d(8)

        def forward(self, x):
            for layer in self.layers:
                x = layer(x).view(4, 2, 4, 16, 16).transpose(1, 2).reshape(4, 8, 16, 16)
            return F.relu(self.bn(x))

    model = Shuffles()
    reference = twin(model).double()
    x = images(8)
    near(accelerate(model)(x).double(), reference(x.double()), 1e-5, "output")
    assert layouts == [False] * 4


def test_a_heavy_weight_is_not_reordered_in_every_call(layouts):
    model = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.BatchNorm2d(256), nn.ReLU())
    reference = twin(model).double()
    x = images(256, 3)
    near(accelerate(model)(x).double(), reference(x.double()), 1e-5, "output")
    assert layouts == [False]


@pytest.mark.parametrize("channels", [1, 3, 7, 13, 15])
@pytest.mark.parametrize("stride", [2, (1, 2), 4])
def test_convolutions_that_torch_gets_wrong_channels_last_stay_contiguous(
    channels, stride, layouts
):
    model = nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, 48, 1, stride=stride),
        nn.BatchNorm2d(48),
        nn.ReLU(),
    )
    reference = twin(model).double()
    x = images(channels, 64)
    got, expected = step(accelerate(model), x), step(reference, x.double())
    near(got[0].double(), expected[0], 1e-5, "output")
    near(got[1]["3.weight"].double(), expected[1]["3.weight"], 1e-4, "gradient")
    assert layouts[1] is False


AVX2 = """
import copy, torch
from torch import nn
from gammabeta import accelerate
torch.manual_seed(0)
for channels, size, out in [(3, 64, 48), (7, 32, 8), (13, 64, 48)]:
    for stride in (2, 4):
        model = nn.Sequential(nn.Conv2d(channels, out, 1, stride), nn.BatchNorm2d(out), nn.ReLU())
        reference = copy.deepcopy(model).double()
        accelerate(model)
        x = torch.randn(4, channels, size, size)
        y = model(x)
        dy = torch.randn_like(y)
        y.backward(dy)
        reference(x.double()).backward(dy.double())
        g, e = model[0].weight.grad.double(), reference[0].weight.grad
        assert float((g - e).abs().max() / e.abs().max()) < 1e-3, (channels, stride)
print("right")
"""


@pytest.mark.parametrize("isa", ["AVX2", "DEFAULT"])
def test_strided_pointwise_convolutions_of_few_channels_are_right_on_any_cpu(isa):
    limits = {"ONEDNN_MAX_CPU_ISA": isa} | (
        {"ATEN_CPU_CAPABILITY": "avx2"} if isa == "AVX2" else {}
    )
    done = subprocess.run(
        [sys.executable, "-c", AVX2],
        env=os.environ | limits,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "right"), done.stderr[-2000:]
