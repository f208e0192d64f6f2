# ruff: noqa: ARG005 (every case takes the same three arguments)
"""Chains are found by what the operations do, in whatever spelling, and end where they must."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gammabeta.surgery.links import read_module
from gammabeta.surgery.match import find_chains
from gammabeta.surgery.survey import ModuleReader
from gammabeta.surgery.tracing import trace


class Model(nn.Module):
    """Calls what it is given on a batch norm's output."""

    def __init__(self, then, **modules):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)
        self.other = nn.Conv2d(3, 3, 1)
        self.other_bn = nn.BatchNorm2d(3)
        self.then = then
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.then(self, self.bn(self.conv(x)), x)


def chains(then, **modules):
    model = Model(then, **modules)
    return find_chains(trace(model).graph, ModuleReader(model))


def found(then, **modules):
    chain = next(c for c in chains(then, **modules) if c.node.name == "bn")
    return chain.settings | ({"residual": str(chain.residual)} if chain.sum else {})


def stop(then, **modules):
    return next(c for c in chains(then, **modules) if c.node.name == "bn").stop


RELU, RELU6 = {"activation": "relu"}, {"activation": "relu6"}
SPELLINGS = {
    "F.relu": (lambda m, y, x: F.relu(y), RELU),
    "F.relu inplace": (lambda m, y, x: F.relu(y, inplace=True), RELU),
    "F.relu input=": (lambda m, y, x: F.relu(input=y), RELU),
    "F.relu_": (lambda m, y, x: F.relu_(y), RELU),
    "torch.relu": (lambda m, y, x: torch.relu(y), RELU),
    "torch.relu_": (lambda m, y, x: torch.relu_(y), RELU),
    "method": (lambda m, y, x: y.relu(), RELU),
    "method in place": (lambda m, y, x: y.relu_(), RELU),
    "F.relu6": (lambda m, y, x: F.relu6(y), RELU6),
    "F.hardtanh": (lambda m, y, x: F.hardtanh(y, 0.0, 6.0, True), RELU6),
    "F.silu": (lambda m, y, x: F.silu(y), {"activation": "silu"}),
    "F.hardswish": (lambda m, y, x: F.hardswish(y, True), {"activation": "hardswish"}),
    "F.gelu": (lambda m, y, x: F.gelu(y), {"activation": "gelu", "approximate": "none"}),
    "F.gelu tanh": (
        lambda m, y, x: F.gelu(y, approximate="tanh"),
        {"activation": "gelu", "approximate": "tanh"},
    ),
    "F.leaky_relu": (
        lambda m, y, x: F.leaky_relu(y),
        {"activation": "leaky_relu", "negative_slope": 0.01},
    ),
    "F.leaky_relu_": (
        lambda m, y, x: F.leaky_relu_(y, 0.2),
        {"activation": "leaky_relu", "negative_slope": 0.2},
    ),
    "pool after": (lambda m, y, x: F.max_pool2d(F.relu(y), 2), RELU | {"pool": 2}),
    "pool before": (lambda m, y, x: F.relu_(F.max_pool2d(y, 2)), RELU | {"pool": 2}),
    "torch.max_pool2d": (
        lambda m, y, x: torch.max_pool2d(F.relu(y), (2, 2), 2),
        RELU | {"pool": 2},
    ),
    "3x3": (lambda m, y, x: F.max_pool2d(F.relu(y), 3, 2, padding=1), RELU | {"pool": 3}),
    "nothing between": (lambda m, y, x: F.relu(F.dropout(y, 0.0)), RELU),
    "x + y": (lambda m, y, x: x + y, {"residual": "x"}),
    "y + x": (lambda m, y, x: F.relu(y + x), RELU | {"residual": "x"}),
    "torch.add": (lambda m, y, x: torch.add(x, y), {"residual": "x"}),
    "torch.add other=": (lambda m, y, x: torch.add(y, other=x, alpha=1), {"residual": "x"}),
    "y += x": (lambda m, y, x: operator.iadd(y, x), {"residual": "x"}),
    "y.add_": (lambda m, y, x: y.add_(x), {"residual": "x"}),
    "x.add": (lambda m, y, x: x.add(y), {"residual": "x"}),
    "a fresh tensor += y": (
        lambda m, y, x: operator.iadd(m.other(x), y).relu_(),
        RELU | {"residual": "other"},
    ),
    "add, relu, pool": (
        lambda m, y, x: F.max_pool2d(F.relu(y + m.other(x)), 2),
        RELU | {"residual": "other", "pool": 2},
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_read(spelling):
    then, expected = SPELLINGS[spelling]
    assert found(then) == expected


MODULES = {
    "ReLU": (nn.ReLU(), RELU),
    "ReLU in place": (nn.ReLU(inplace=True), RELU),
    "ReLU6": (nn.ReLU6(), RELU6),
    "Hardtanh": (nn.Hardtanh(0, 6), RELU6),
    "SiLU": (nn.SiLU(), {"activation": "silu"}),
    "Hardswish": (nn.Hardswish(), {"activation": "hardswish"}),
    "GELU": (nn.GELU(), {"activation": "gelu", "approximate": "none"}),
    "GELU tanh": (nn.GELU("tanh"), {"activation": "gelu", "approximate": "tanh"}),
    "LeakyReLU": (nn.LeakyReLU(0.3), {"activation": "leaky_relu", "negative_slope": 0.3}),
    "MaxPool2d": (nn.MaxPool2d(2), {"pool": 2}),
    "MaxPool2d pairs": (nn.MaxPool2d((3, 3), (2, 2), (1, 1)), {"pool": 3}),
    "Identity": (nn.Identity(), {}),
    "Dropout of nothing": (nn.Dropout(0.0), {}),
}
UNKNOWN_MODULES = {
    "Hardtanh to 5": nn.Hardtanh(0, 5),
    "Softplus": nn.Softplus(),
    "Dropout": nn.Dropout(0.1),
    "pool of 4": nn.MaxPool2d(4),
    "pool of 3 without padding": nn.MaxPool2d(3, 2),
    "pool of unequal sides": nn.MaxPool2d((2, 3), 2),
    "dilated pool": nn.MaxPool2d(2, dilation=2),
    "pool that rounds up": nn.MaxPool2d(2, ceil_mode=True),
    "pool with indices": nn.MaxPool2d(2, return_indices=True),
}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_read(name):
    module, expected = MODULES[name]
    assert read_module(module).settings == expected


@pytest.mark.parametrize("name", UNKNOWN_MODULES)
def test_a_module_that_does_something_else_is_not_read(name):
    assert read_module(UNKNOWN_MODULES[name]) is None


def test_a_subclass_of_an_activation_is_not_taken_for_it():
    class Mine(nn.ReLU):
        pass

    assert read_module(Mine()) is None


ENDS = {
    "two readers": (lambda m, y, x: y * F.relu(y), {}, "its output is used 2 times"),
    "returned": (lambda m, y, x: y, {}, "its output leaves the module"),
    "another layer": (lambda m, y, x: m.other(y), {}, "its output goes to other (Conv2d)"),
    "sigmoid": (lambda m, y, x: torch.sigmoid(y), {}, "its output goes to sigmoid()"),
    "scaled sum": (lambda m, y, x: torch.add(y, x, alpha=2), {}, "its output goes to add()"),
    "sum with itself": (lambda m, y, x: y + y, {}, "its output goes to add()"),
    "sum with a number": (lambda m, y, x: y + 1, {}, "its output goes to add()"),
    "second activation": (lambda m, y, x: F.silu(F.relu(y)), RELU, "a second activation follows"),
    "sum after ReLU": (lambda m, y, x: F.relu(y) + x, RELU, "its output goes to an addition"),
    "second sum": (lambda m, y, x: y + x + x, {"residual": "x"}, "its output goes to an addition"),
    "pool after SiLU": (
        lambda m, y, x: F.max_pool2d(F.silu(y), 2),
        {"activation": "silu"},
        "its pooling does not follow a ReLU",
    ),
    "SiLU after pool": (
        lambda m, y, x: F.silu(F.max_pool2d(y, 2)),
        {},
        "a second activation follows",
    ),
    "pool alone": (lambda m, y, x: F.max_pool2d(y, 2), {}, "its output leaves the module"),
    "dropout": (lambda m, y, x: F.relu(F.dropout(y, 0.5)), {}, "its output goes to dropout()"),
    "x += y": (
        lambda m, y, x: operator.iadd(x, y),
        {},
        "the addition overwrites a tensor that others may see",
    ),
    "x.add_(y)": (
        lambda m, y, x: x.add_(y),
        {},
        "the addition overwrites a tensor that others may see",
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_chain_ends_where_it_must(name):
    then, expected, why = ENDS[name]
    assert found(then) == expected
    assert stop(then) == why


def test_a_fresh_tensor_that_somebody_else_reads_is_not_overwritten_in_the_sum():
    def then(m, y, x):
        r = m.other(x)
        seen = r[:, :1]
        r += y
        return seen

    assert stop(then) == "the addition overwrites a tensor that others may see"


def test_two_batch_norms_that_meet_are_one_chain_and_a_plain_one():
    both = chains(lambda m, y, x: F.relu(y + m.other_bn(m.other(x))))
    assert [c.node.name for c in both] == ["bn", "other_bn"]
    assert [c.describe() for c in both] == ["BN", "BN + add + relu"]
    assert both[0].stop == "its sum is computed with another batch norm"


@pytest.mark.parametrize("write", [lambda m, r: r.mul_(2), lambda m, r: m.unknown(r)])
def test_a_batch_norm_does_not_wait_for_a_sum_if_its_input_may_be_overwritten(write):
    class Pre(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)
            self.unknown = nn.Sequential(nn.ReLU(inplace=True))

        def forward(self, x):
            view = x[:, :3]
            y = self.bn(view)
            return y + write(self, x)

    model = Pre()
    (chain,) = find_chains(trace(model).graph, ModuleReader(model))
    assert chain.links == []
    assert chain.stop == "its input may be overwritten before the addition"


def written_through_a_detached_view(m, x):
    z = m.conv(x)
    seen = z.detach()
    return m.bn(z) + seen.zero_()


def overwritten_by_position(m, x):
    y = m.bn(x[:, :3])
    return y + F.relu(x, True)


def overwritten_by_name_alone(m, x):
    y = m.bn(x[:, :3])
    return y + F.relu(input=x, inplace=True)


def overwritten_in_a_list(m, x):
    y = m.bn(x[:, :3])
    torch._foreach_mul_([x], 2.0)
    return y + x


@pytest.mark.parametrize(
    "forward",
    [
        written_through_a_detached_view,
        overwritten_by_position,
        overwritten_by_name_alone,
        overwritten_in_a_list,
    ],
)
def test_a_batch_norm_does_not_wait_for_writes_into_its_input_in_any_spelling(forward):
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return F.relu(forward(self, x))

    model = Writes()
    (chain,) = find_chains(trace(model).graph, ModuleReader(model))
    assert chain.links == []
    assert chain.stop == "its input may be overwritten before the addition"


def test_the_same_layer_called_twice_is_not_put_out_of_order():
    def then(m, y, x):
        z = m.bn(m.other(x))
        return F.relu(y + x) * z

    first, second = (c for c in chains(then) if str(c.node.target) == "bn")
    assert first.links == second.links == []
    assert first.stop == "its input or layer is used again before the addition"
