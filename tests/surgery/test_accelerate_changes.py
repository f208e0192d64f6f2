# ruff: noqa: ARG005 (what torch passes, and every case of a table takes)
"""What a forward reads or runs may change after ``accelerate``, and is then obeyed."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import math
import random
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook

from gammabeta import accelerate
from norm_helpers import randn
from surgery_helpers import near, twin

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def images():
    return randn(2, 3, 8, 8, seed=3, dtype=torch.float64)


def model_of(then, **held):
    """A model of a class of its own, which ends as it is told and holds what it is given."""

    class Model(nn.Module):
        factor = 1.0

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.bn = nn.BatchNorm2d(4)
            self.act = nn.ReLU()
            for name, value in held.items():
                setattr(self, name, value)

        def forward(self, x, skip=None):
            return then(self, self.act(self.bn(self.conv(x))), skip)

    return Model().double()


def same(got, expected):
    """Compare what two models returned, with the types of what holds tensors."""
    if isinstance(expected, torch.Tensor):
        near(got, expected, 1e-9, "output")
        return
    assert type(got) is type(expected)
    if isinstance(expected, dict):
        assert list(got) == list(expected)
        same(list(got.values()), list(expected.values()))
    elif isinstance(expected, list | tuple):
        for a, b in zip(got, expected, strict=True):
            same(a, b)
    elif dataclasses.is_dataclass(expected):
        same(vars(got), vars(expected))
    else:
        assert got == expected


class Mode(enum.Enum):
    SINGLE = 1
    DOUBLE = 2


@dataclasses.dataclass
class Config:
    factor: float = 2.0
    on: bool = True


class Scaler:
    def __init__(self, by):
        self.by = by

    def scale(self, y):
        return y * self.by


class Helped(nn.Module):
    """Calls a method of its own."""

    def forward(self, y):
        return self.helper(y)

    def helper(self, y):
        return y * 2


def other_forward(self, x, skip=None):
    return torch.sigmoid(self.bn(self.conv(x)))


def set_to(name, value):
    return lambda model: setattr(model, name, value)


def to_parameter(model):
    del model.held
    model.held = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))


GLOBAL = {"by": 2.0}

CHANGES = {
    "class attribute": (
        lambda m, y, _: y * m.factor,
        None,
        lambda m: set_to("factor", 3.0)(type(m)),
    ),
    "enum": (lambda m, y, _: y * m.held.value, Mode.SINGLE, set_to("held", Mode.DOUBLE)),
    "enum member": (
        lambda m, y, _: y * 2 if m.held is Mode.DOUBLE else y,
        Mode.SINGLE,
        set_to("held", Mode.DOUBLE),
    ),
    "set": (lambda m, y, _: y * (2 if "a" in m.held else 3), {"b"}, lambda m: m.held.add("a")),
    "list": (lambda m, y, _: y * m.held[0], [2.0], lambda m: m.held.insert(0, 5.0)),
    "dict": (lambda m, y, _: y * m.held["by"], {"by": 2.0}, lambda m: m.held.update(by=5.0)),
    "partial": (
        lambda m, y, _: m.held(y - 1),
        functools.partial(F.leaky_relu, negative_slope=0.5),
        set_to("held", functools.partial(F.leaky_relu, negative_slope=0.9)),
    ),
    "bound method": (
        lambda m, y, _: m.held(y),
        Scaler(2.0).scale,
        set_to("held", Scaler(5.0).scale),
    ),
    "object of a bound method": (
        lambda m, y, _: m.held(y),
        Scaler(2.0).scale,
        lambda m: setattr(m.held.__self__, "by", 5.0),
    ),
    "field": (lambda m, y, _: y * m.held.factor, Config(), lambda m: set_to("factor", 5.0)(m.held)),
    "flag": (
        lambda m, y, _: -y if m.held.on else y,
        Config(),
        lambda m: set_to("on", False)(m.held),
    ),
    "function": (lambda m, y, _: m.held(y), torch.sigmoid, set_to("held", torch.neg)),
    "method of the class": (
        lambda m, y, _: y,
        None,
        lambda m: set_to("forward", other_forward)(type(m)),
    ),
    "method of the object": (
        lambda m, y, _: y,
        None,
        lambda m: set_to("forward", types.MethodType(other_forward, m))(m),
    ),
    "method of a part's class": (
        lambda m, y, _: m.held(y),
        type("Part", (Helped,), {"forward": lambda self, y: y * 2})(),
        lambda m: setattr(type(m.held), "forward", lambda self, y: y * 5),
    ),
    "helper of a part's class": (
        lambda m, y, _: m.held(y),
        type("Part", (Helped,), {})(),
        lambda m: setattr(type(m.held), "helper", lambda self, y: y * 5),
    ),
    "part deleted": (
        lambda m, y, _: m.held(y) if hasattr(m, "held") else y * 2,
        nn.BatchNorm2d(4),
        lambda m: delattr(m, "held"),
    ),
    "part set to None": (
        lambda m, y, _: y * 2 if m.held is None else m.held(y),
        nn.BatchNorm2d(4),
        set_to("held", None),
    ),
    "number becomes a parameter": (lambda m, y, _: y * m.held, 2.0, to_parameter),
    "activation exchanged": (lambda m, y, _: y, None, set_to("act", nn.SiLU())),
    "activation set": (
        lambda m, y, _: m.held(y - 1),
        nn.LeakyReLU(0.1),
        lambda m: set_to("negative_slope", 0.7)(m.held),
    ),
    "batch norm exchanged": (lambda m, y, _: y, None, set_to("bn", nn.GroupNorm(1, 4).double())),
    "eps": (lambda m, y, _: y, None, lambda m: set_to("eps", 0.5)(m.bn)),
    "mode": (lambda m, y, _: y if m.training else -y, None, lambda m: m.eval()),
    "mode of a part": (lambda m, y, _: y, None, lambda m: m.bn.eval()),
    "parameter exchanged": (
        lambda m, y, _: y,
        None,
        lambda m: set_to("weight", nn.Parameter(torch.full((4,), 3.0).double()))(m.bn),
    ),
    "hook of a part": (
        lambda m, y, _: y,
        None,
        lambda m: m.act.register_forward_hook(lambda module, args, y: y * 5),
    ),
    "hook of a batch norm": (
        lambda m, y, _: y,
        None,
        lambda m: m.bn.register_forward_hook(lambda module, args, y: y * 5 + 1),
    ),
    "hook before a convolution": (
        lambda m, y, _: y,
        None,
        lambda m: m.conv.register_forward_pre_hook(lambda module, args: (args[0] ** 2,)),
    ),
    "hook of the model": (
        lambda m, y, _: y,
        None,
        lambda m: m.register_forward_hook(lambda module, args, y: y * 5),
    ),
    "layers appended": (
        lambda m, y, _: m.held(y),
        nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()),
        lambda m: m.held.append(nn.Hardtanh(0, 0.5)),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_obeyed(name):
    then, held, change = CHANGES[name]
    model = model_of(then, held=held)
    x = images()
    accelerate(model)
    before = model(x)
    same(model(x), before)
    assert model.gammabeta_report.done
    change(model)
    got = model(x)
    model._compiled_call_impl = None  # what torch computes
    same(got, model(x))
    assert not torch.equal(got, before)


def test_a_hook_of_every_module_is_obeyed_and_its_removal_too():
    model = accelerate(model_of(lambda m, y, _: y))
    x = images()
    before = model(x)
    handle = register_module_forward_hook(lambda m, args, y: y * 2 if m is model.act else None)
    try:
        near(model(x), 2 * before, 1e-9, "hooked")
    finally:
        handle.remove()
    near(model(x), before, 1e-9, "again")


def test_a_hook_that_comes_and_goes_is_called_every_time():
    model = accelerate(model_of(lambda m, y, _: y))
    seen = []
    for _ in range(12):
        with model.bn.register_forward_hook(lambda m, args, y: seen.append(type(y))):
            model(images())
        model(images())
    assert seen == 12 * [torch.Tensor]


def test_global_values_are_obeyed():
    model = accelerate(model_of(lambda m, y, _: y * GLOBAL["by"]))
    before = model(images())
    GLOBAL["by"] = 6.0
    try:
        near(model(images()), 3 * before, 1e-9, "output")
    finally:
        GLOBAL["by"] = 2.0


# What a forward asks and draws


ENDS = {
    "type of a value": lambda m, y, _: y * 2 if type(y) is torch.Tensor else y,
    "type of a part": lambda m, y, _: y if type(m.held) == nn.Identity else y * 3,  # noqa: E721
    "scripting": lambda m, y, _: y * 2 if torch.jit.is_scripting() else y,
    "tracing": lambda m, y, _: y * 2 if torch.jit.is_tracing() else y,
    "ONNX export": lambda m, y, _: y * 2 if torch.onnx.is_in_onnx_export() else y,
    "torch.export": lambda m, y, _: y * 2 if torch.compiler.is_exporting() else y,
    "NumPy's numbers": lambda m, y, _: (y + y) * np.sqrt(0.5),
    "math": lambda m, y, _: y * math.pi,
    "NumPy's random numbers": lambda m, y, _: y * np.random.rand(),  # noqa: NPY002
    "a decision by them": lambda m, y, _: y if np.random.rand() < 0.5 else -y,  # noqa: NPY002
    "Python's random numbers": lambda m, y, _: y * random.random(),
    "torch's random numbers": lambda m, y, _: y * torch.rand_like(y),
    "dropout": lambda m, y, _: F.dropout(y, 0.5),
    "control flow": lambda m, y, _: y if y.sum() > 0 else -y,
    "OrderedDict": lambda m, y, _: collections.OrderedDict(a=y, b=y * 2),
    "list": lambda m, y, _: Features([y, y * 2]),
    "named tuple": lambda m, y, _: Pair(y, y * 2),
    "dataclass": lambda m, y, _: Config(y, y * 2),
    "nested": lambda m, y, _: (y, [y * 2, {"a": y * 3}]),
    "view": lambda m, y, _: y.view(y.size(0), -1),
    "view_as": lambda m, y, _: y.view_as(torch.empty(2, 144)),
    "a function that views": lambda m, y, _: torch.Tensor.view(y, (2, -1)),
    "as_strided": lambda m, y, _: y.as_strided((2, 3), (1, 1)),
    "checkpoint": lambda m, y, _: torch.utils.checkpoint.checkpoint(
        torch.sigmoid, y, use_reentrant=False
    ),
    "item assignment": lambda m, y, _: y.__setitem__(0, 1) or y,
}


class Features(list):
    """A list of a class of the user's."""


Pair = collections.namedtuple("Pair", "a b")


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_whatever_a_forward_asks_or_draws_is_right(name, dtype):
    model = model_of(ENDS[name], held=nn.Identity()).to(dtype)
    reference = twin(model).double()
    accelerate(model)
    for _ in range(3):
        got, expected = drawn(model, images().to(dtype)), drawn(reference, images())
        if dtype is torch.float64:
            same(got, expected)
        elif isinstance(expected, torch.Tensor):
            if name in {"torch's random numbers", "dropout"}:
                assert got.shape == expected.shape  # other dtypes draw other numbers
            else:
                near(got.double(), expected, 1e-5, "output")


def drawn(model, x):
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    torch.manual_seed(5)
    return model(x)


def test_dropout_draws_what_it_did_for_the_same_seed():
    model = model_of(lambda m, y, _: F.dropout2d(F.dropout(y, 0.5), 0.3)).float()
    reference = twin(model)
    accelerate(model)
    x = images().float()
    near(drawn(model, x), drawn(reference, x), 1e-5, "output")


def test_optional_arguments_and_modes_are_told_apart():
    model = model_of(lambda m, y, skip: y if skip is None else y + skip)
    reference = twin(model)
    accelerate(model)
    skip = randn(2, 4, 6, 6, seed=9, dtype=torch.float64)
    for args in [(), (skip,), (None,), (skip,)]:
        same(model(images(), *args), reference(images(), *args))


def test_autocast_and_gradients_are_told_apart():
    model = model_of(
        lambda m, y, _: (
            y
            * (2 if torch.is_autocast_enabled("cpu") else 3)
            * (5 if torch.is_grad_enabled() else 7)
        )
    ).float()
    reference = twin(model)
    accelerate(model)
    x = images().float()
    for autocast in (False, True, False):
        for grad in (True, False):
            with (
                torch.autocast("cpu", torch.bfloat16, enabled=autocast),
                torch.set_grad_enabled(grad),
            ):
                got, expected = model(x), reference(x)
            assert (got.dtype, got.requires_grad) == (expected.dtype, expected.requires_grad)
            near(got.float(), expected.float(), 2e-2 if autocast else 1e-5, "output")


def test_features_kept_in_the_users_own_object_are_tensors():
    class Store:
        def __init__(self):
            self.features = []

    store = Store()
    model = model_of(lambda m, y, _: (m.held.features.append(y), y * 2)[1], held=store)
    reference = twin(model)
    accelerate(model)
    for _ in range(2):
        near(model(images()), reference(images()), 1e-9, "output")
    assert [type(f) for f in store.features] == 2 * [torch.Tensor]
    same(store.features, reference.held.features)


@pytest.mark.parametrize("dynamic", [None, True])
def test_slopes_may_differ_between_blocks_and_change(dynamic):
    class Leaky(nn.Module):
        def __init__(self, slope):
            super().__init__()
            self.bn = nn.BatchNorm1d(3)
            self.slope = slope

        def forward(self, x):
            return F.leaky_relu(self.bn(x), self.slope)

    models = [Leaky(s).double() for s in (0.1, 0.3, 0.5)]
    references = twin(models)
    compiled = [torch.compile(m, backend="gammabeta", dynamic=dynamic) for m in models]
    for n in (4, 5, 6):
        x = randn(n, 3, seed=n, dtype=torch.float64)
        for run, reference in zip(compiled, references, strict=True):
            near(run(x), reference(x), 1e-9, "output")
    models[0].slope = references[0].slope = 0.9
    near(compiled[0](x), references[0](x), 1e-9, "output")
