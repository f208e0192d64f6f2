"""The reference network is the tutorial's: same names, same outputs and gradients, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gammabeta import GammabetaError, Net
from training_helpers import one_thread

one_thread()


class Tutorial(nn.Module):
    """The class as the tutorial writes it: pooling after the ReLU, no argument."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 128, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(128)
        self.conv3 = nn.Conv2d(128, 256, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(256)
        self.fc1 = nn.Linear(256 * 4 * 4, 1024)
        self.bn4 = nn.BatchNorm1d(1024)
        self.fc2 = nn.Linear(1024, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.max_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        x = F.relu(self.bn4(self.fc1(torch.flatten(x, 1))))
        return self.fc2(x)


def pair(dtype):
    torch.manual_seed(0)
    tutorial = Tutorial()
    for module in tutorial.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight)  # also negative gammas
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    net = Net()
    net.load_state_dict(tutorial.state_dict(), strict=True)
    return net.to(dtype), tutorial.to(dtype)


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@DTYPES
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_outputs_equal_the_tutorials_in_eval_mode(dtype, layout):
    net, tutorial = pair(dtype)
    images = torch.randn(5, 3, 32, 32, dtype=dtype).to(memory_format=layout)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(images), tutorial.eval()(images))


@DTYPES
def test_gradients_and_statistics_equal_the_tutorials_in_train_mode(dtype):
    net, tutorial = pair(dtype)
    images = torch.randn(6, 3, 32, 32, dtype=dtype)
    cotangent = torch.randn(6, 10, dtype=dtype)
    grads = []
    for model in (net, tutorial):
        given = images.clone().requires_grad_()
        logits = model.train()(given)
        wanted = torch.autograd.grad(logits, [given, *model.parameters()], cotangent)
        grads.append([logits.detach(), *wanted, *model.buffers()])
    for ours, theirs in zip(*grads, strict=True):  # to rounding: our layers move far channels
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert all(grad.abs().max() > 0 for grad in grads[0][:2])


def test_ties_and_values_below_zero_send_the_gradient_the_same_way():
    x = torch.tensor([[[[1.0, 1.0, -1.0, -2.0], [1.0, 0.5, -3.0, -1.0]]]])
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    cotangent = torch.tensor([[[[2.0, 3.0]]]])
    F.relu(F.max_pool2d(first, 2)).backward(cotangent)
    F.max_pool2d(F.relu(second), 2).backward(cotangent)
    assert torch.equal(first.grad, second.grad)


def test_state_dicts_go_both_ways():
    net, tutorial = pair(torch.float32)
    assert list(net.state_dict()) == list(tutorial.state_dict())
    tutorial.load_state_dict(net.state_dict(), strict=True)


def test_the_number_of_parameters_is_the_tutorials():
    assert sum(p.numel() for p in Net().parameters()) == 4_579_338


@pytest.mark.parametrize("size", range(8, 97, 8))
def test_every_multiple_of_eight_is_accepted(size):
    net = Net(3, size).eval()
    with torch.no_grad():
        assert net(torch.zeros(1, 3, size, size)).shape == (1, 3)


class Features(nn.Module):
    """The layers before fc1, in torch's own operators."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        for conv, bn in (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")):
            x = getattr(self.net, conv)(x)
            layer = getattr(self.net, bn)
            x = F.batch_norm(x, None, None, layer.weight, layer.bias, training=True)
            x = F.max_pool2d(F.relu(x), 2)
        return x


@pytest.mark.parametrize("size", [40, 64, 224])
def test_larger_images_are_averaged_to_the_same_weights(size):
    torch.manual_seed(0)
    net = Net(10, size).double()
    assert {k: v.shape for k, v in net.state_dict().items()} == {
        k: v.shape for k, v in Net().state_dict().items()
    }
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    features = Features(net)(x)
    side = size // 8
    edges = [(side * i // 4, -(-side * (i + 1) // 4)) for i in range(4)]
    averages = torch.stack([
        torch.stack([features[..., a:b, c:d].mean((2, 3)) for c, d in edges], -1)
        for a, b in edges
    ], -2)  # fmt: skip
    hidden = F.batch_norm(net.fc1(averages.flatten(1)), None, None, training=True)
    wanted = net.fc2(F.relu(hidden))
    got = net.train()(x)
    cotangent = torch.randn_like(wanted)
    torch.testing.assert_close(got, wanted)
    weights = [net.conv1.weight, net.fc1.weight]
    for ours, theirs in zip(*(torch.autograd.grad(y, weights, cotangent) for y in (got, wanted)),
                            strict=True):  # fmt: skip
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("size", "poolings"), [(16, 0), (32, 0), (64, 1)])
def test_only_larger_images_gain_an_operator(size, poolings):
    program = torch.export.export(Net(10, size).eval(), (torch.zeros(2, 3, size, size),))
    names = [str(node.target) for node in program.graph.nodes]
    assert sum("adaptive_avg_pool2d" in name for name in names) == poolings


def test_a_network_of_an_older_version_is_still_to_be_had():
    net = Net(10, 64, grid=None)
    assert net.fc1.in_features == 256 * 8 * 8
    assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


@pytest.mark.parametrize("size", [0, -8, 4, 7, 30, 33])
def test_other_sizes_are_refused_with_the_rule(size):
    with pytest.raises(GammabetaError, match=f"image_size is {size}, but .* multiple of 8"):
        Net(10, size)
