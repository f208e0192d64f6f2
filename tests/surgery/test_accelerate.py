# ruff: noqa: ARG004, ARG005 (what torch passes, and every case of a table takes)
"""``accelerate`` changes how fast a model is, and nothing else of it."""

from __future__ import annotations

import copy
import inspect
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import gammabeta
from gammabeta import GammabetaError, accelerate, convert, freeze, unfreeze
from gammabeta.surgery import rewrite
from norm_helpers import randn
from surgery_helpers import assert_twins, evaluate, images, near, step, twin


class Block(nn.Module):
    """A residual block whose forward depends on the mode and on an attribute."""

    def __init__(self, channels=3, rate=0.0):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, 3, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(3)
        self.rate = rate

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        if self.training and self.rate > 0:
            y = y * (1 - self.rate)
        return self.relu(self.bn2(self.conv2(y)) + x)

    def features(self, x):
        """Another method that calls the same layers."""
        return self.relu(self.bn1(self.conv1(x)))


class Odd(nn.Module):
    """No graph can be taken of this forward."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x):
        y = F.relu(self.bn(x))
        return y if y.sum() > 0 else -y


def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)).double()


def blocks():
    return nn.Sequential(Block(4), Block(5, rate=0.3)).double()


def fused(model):
    return {e.path: e.what for e in model.gammabeta_report.done if e.what.startswith("fused")}


def left(model):
    return {e.path: e.what for e in model.gammabeta_report.left}


@pytest.fixture
def calls(monkeypatch):
    """The settings of every call that was fused, as the model runs."""
    seen = []
    original = rewrite.epilogue

    def spy(*args, **kwargs):
        seen.append(original(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(rewrite, "epilogue", spy)
    return seen


# What is computed


@pytest.mark.parametrize("make", [plain, blocks])
def test_a_model_computes_what_it_did_with_fewer_calls(make, calls):
    model = make()
    reference = twin(model)
    accelerate(model)
    assert_twins(model, reference, images())
    assert calls


@pytest.mark.parametrize("make", [plain, blocks])
def test_in_single_precision_the_kernels_compute_it_as_closely(make):
    reference = make()
    model = accelerate(twin(reference).float())
    got, expected = step(model, images().float()), step(reference, images())
    near(got[0].double(), expected[0], 1e-5, "output")
    scale = max(float(g.abs().max()) for g in expected[1].values())
    for name, gradient in expected[1].items():
        near(got[1][name].double(), gradient, 1e-5, f"gradient of {name}", scale)


def test_what_is_fused_is_reported_with_what_feeds_it():
    model = accelerate(nn.Sequential(plain(), blocks()))
    assert str(model.gammabeta_report).splitlines() == [
        "done  0.1: fused BN + relu + max pooling 2x2 after 0 (Conv2d)",
        "done  1.0.bn1: fused BN + relu after conv1 (Conv2d)",
        "done  1.0.bn2: fused BN + add + relu after conv2 (Conv2d)",
        "done  1.1.bn1: fused BN + relu after conv1 (Conv2d)",
        "done  1.1.bn2: fused BN + add + relu after conv2 (Conv2d)",
        "done  : weights of 5 convolutions channels last",
    ]


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (3, 8, 8), (1,), (2, 1, 8, 8)], ids=str)
def test_a_sum_that_broadcasts_is_added_as_before(shape):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)
            self.r = nn.Parameter(randn(*shape, dtype=torch.float64))

        def forward(self, x):
            return F.relu(self.bn(x) + self.r)

    model = Sum().double()
    reference = twin(model)
    assert fused(accelerate(model)) == {"bn": "fused BN + add + relu"}
    assert_twins(model, reference, images())


def test_a_sum_that_widens_the_output_is_added_as_before():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x):
            return F.relu(self.bn(x[:1]) + x)

    model = Wide().double()
    reference = twin(model)
    accelerate(model)
    assert_twins(model, reference, images())


def test_a_sum_keeps_its_promoted_dtype():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.bn(x) + x.double()

    model = accelerate(Mixed())
    assert model(images(dtype=torch.float32)).dtype == torch.float64


def test_a_sum_written_into_a_tensor_that_others_see_is_still_written():
    class Into(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x):
            x += self.bn(x.clone())
            return F.relu(x)

    model, x = accelerate(Into().double()), images()
    before = x.clone()
    y = evaluate(model, x)
    assert not torch.equal(x, before)
    torch.testing.assert_close(y, F.relu(x))
    assert left(model) == {"bn": "BN alone: the addition overwrites a tensor that others may see"}


def test_a_shared_layer_and_a_shared_module_are_fused_where_they_are_called():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x):
            return F.silu(self.bn(F.relu(self.bn(x))))

    layer = Twice()
    model = nn.Sequential(layer, layer).double()
    reference = twin(model)
    accelerate(model)
    assert_twins(model, reference, images())
    assert model[0].bn.num_batches_tracked == 4


OPERATIONS = {
    "relu": lambda m, y, r: F.relu(y),
    "relu_": lambda m, y, r: y.relu_(),
    "silu": lambda m, y, r: F.silu(y),
    "hardtanh": lambda m, y, r: F.hardtanh(y, 0, 6, inplace=True),
    "pool": lambda m, y, r: F.max_pool2d(y, 2),
    "pool3": lambda m, y, r: F.max_pool2d(y, 3, 2, 1),
    "dropout": lambda m, y, r: F.dropout(y, 0.0),
    "y + r": lambda m, y, r: y + r,
    "y += r": lambda m, y, r: y.add_(r),
    "r += 1": lambda m, y, r: (r.add_(1), y)[1],
    "r += y": lambda m, y, r: r.add_(y),
    "y * relu(y)": lambda m, y, r: y * F.relu(y),
    "r + bn": lambda m, y, r: m.bn(r) + y,
    "bn": lambda m, y, r: m.bn2(y),
    "y * r": lambda m, y, r: y * r.mean(),
    "y + bn": lambda m, y, r: y + m.bn2(m.conv(y)),
}


class Random(nn.Module):
    """Does what it is told to a batch norm's output."""

    def __init__(self, names, source):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.names, self.source = names, source

    def forward(self, x):
        r = self.conv(x) if self.source == "conv" else x * 1
        y = self.bn(r if self.source == "same" else self.conv(x))
        for name in self.names:
            y = OPERATIONS[name](self, y, r)
        return y * 1 + r.sum()


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([n for n in OPERATIONS if "pool" not in n]), max_size=4),
    st.sampled_from([None, "pool", "pool3"]),
    st.sampled_from(["conv", "same", "product"]),
    st.booleans(),
)
def test_whatever_follows_a_batch_norm_the_model_computes_what_it_did(names, pool, source, first):
    pools = [pool] if pool else []
    model = Random([*pools, *names] if first else [*names, *pools], source).double()
    reference = twin(model)
    try:
        with torch.no_grad():
            expected = twin(reference)(images())
    except RuntimeError:
        return  # sizes that do not fit
    accelerate(model)
    with torch.no_grad():
        near(twin(model)(images()), expected, 1e-9, "output")
    try:
        step(twin(reference), images())
    except RuntimeError:
        return  # what backward needs was overwritten, by the reference already
    assert_twins(model, reference, images())


# What the forward went by


def test_both_modes_have_their_own_forward(calls):
    model = accelerate(blocks())
    for mode in (True, False):
        calls.clear()
        model.train(mode)(images())
        assert len(calls) == 4


def test_an_attribute_changed_later_is_obeyed():
    model = Block(rate=0.0).double()
    reference = twin(model)
    accelerate(model)
    model.rate = reference.rate = 0.5
    assert_twins(model, reference, images())


@pytest.mark.parametrize(
    "value",
    [2.0, [2.0, 3], {"by": (2.0, None)}, torch.sigmoid],
    ids=["number", "list", "dict", "function"],
)
def test_any_plain_attribute_is_watched(value, calls):
    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)
            self.held = value

        def forward(self, x):
            held = self.held["by"] if isinstance(self.held, dict) else self.held
            y = F.relu(self.bn(x))
            return held(y) if callable(held) else y * (held if isinstance(held, float) else held[0])

    model = Held().double()
    accelerate(model)
    y = evaluate(model, images())
    assert len(calls) == 1
    other = {float: 5.0, list: [5.0, 3], dict: {"by": (5.0, None)}}.get(type(value), torch.neg)
    if isinstance(value, list):
        model.held[0] = 5.0
    else:
        model.held = other
    z = evaluate(model, images())
    assert len(calls) == 1
    near(z, -F.relu(model.eval().bn(images())) if callable(value) else 2.5 * y, 1e-9, "output")


def test_a_setting_of_a_skipped_activation_changed_later_is_obeyed():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.LeakyReLU(0.1)).double()
    reference = twin(model)
    accelerate(model)
    model[1].negative_slope = reference[1].negative_slope = 0.7
    assert_twins(model, reference, images())


@pytest.mark.parametrize("new", [nn.Identity(), nn.SiLU(), nn.Sequential(nn.Tanh())], ids=repr)
def test_an_activation_exchanged_later_is_called(new):
    model = blocks()
    reference = twin(model)
    accelerate(model)
    model[0].relu = reference[0].relu = new
    assert_twins(model, reference, images())


@pytest.mark.parametrize("new", [nn.Identity(), nn.GroupNorm(1, 4).double(), nn.InstanceNorm2d(4)])
def test_a_batch_norm_exchanged_later_is_called(new):
    model = plain()
    reference = twin(model)
    accelerate(model)
    model[1] = reference[1] = new
    assert_twins(model, reference, images())


def test_a_list_of_layers_that_grew_later_is_run_to_its_end():
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.BatchNorm2d(3), nn.ReLU()])

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    for model in (Stack().double(), nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()).double()):
        assert fused(accelerate(model))
        layers = model if isinstance(model, nn.Sequential) else model.layers
        layers.append(nn.Hardtanh(0, 0.5))
        assert evaluate(model, images()).max() == 0.5


def test_a_sequential_keeps_its_length_index_order_and_slices():
    model = plain()
    reference = twin(model)
    accelerate(model)
    assert len(model) == 4
    assert [type(m).__name__ for m in model] == [type(m).__name__ for m in reference]
    x = images()
    near(evaluate(model[:2], x), evaluate(reference[:2], x), 1e-9, "slice")
    y = x
    for layer in model.eval():
        y = layer(y)
    near(y, evaluate(reference, x), 1e-9, "one by one")


def test_other_methods_still_compute_what_they_did():
    model = Block().double()
    reference = twin(model)
    accelerate(model)
    x = images()
    near(model.features(x), reference.features(x), 1e-9, "features")


def test_an_argument_left_at_its_default_is_told_from_one_that_is_given(calls):
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x, skip=None, *, scale=1.0):
            if skip is None:
                skip = x
            return F.relu(self.bn(x) + skip) * scale

    model = Optional().double()
    reference = twin(model)
    accelerate(model)
    x, skip = images(), images() + 1
    for args, options, fusable in [
        ((x,), {}, True),
        ((x, skip), {}, True),
        ((), {"x": x, "skip": skip}, True),
        ((x,), {"scale": 2.0}, False),
        ((x, None), {"scale": 1.0}, False),
    ]:
        calls.clear()
        torch.testing.assert_close(model(*args, **options), reference(*args, **options))
        assert bool(calls) >= fusable
    assert inspect.signature(model.forward) == inspect.signature(reference.forward)


def test_an_argument_may_be_a_tensor_or_a_list():
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(6)

        def forward(self, xs):
            xs = [xs, xs] if isinstance(xs, torch.Tensor) else xs
            return F.relu(self.bn(torch.cat(xs, 1)))

    model = Dense().double()
    reference = twin(model)
    assert fused(accelerate(model))
    x = images()
    for argument in (x, [x, x + 1], (x, x + 2)):
        torch.testing.assert_close(model(argument), reference(argument))


# What cannot be traced

STATE = {"calls": 0}


class Negate(torch.autograd.Function):
    """A gradient that no trace of the forward knows."""

    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, g):
        return -g


def counting(m, y):
    m.count = getattr(m, "count", 0) + 1
    return y


def remembering(m, y):
    m.seen.append(y)
    return y


def without_gradients(m, y):
    with torch.no_grad():
        return y * 2


def checkpointing(m, y):
    return torch.utils.checkpoint.checkpoint(torch.sigmoid, y, use_reentrant=False)


def lower(m, y):
    with torch.autocast("cpu", torch.bfloat16):
        return y * 2


UNTRACEABLE = {
    "control flow": (lambda m, y: y if y.sum() > 0 else -y, "fx stops at: symbolically traced"),
    "type": (lambda m, y: y if isinstance(y, torch.Tensor) else y[0], "asks for the type"),
    "random": (lambda m, y: y * (2 if random.random() < 0.5 else 3), "draws random numbers"),
    "torch's random": (lambda m, y: y if torch.rand(1) < 0.5 else -y, "draws random numbers"),
    "grad mode": (lambda m, y: y if torch.is_grad_enabled() else -y, "when gradients are off"),
    "no_grad": (without_gradients, "switches gradients, autocast"),
    "autocast": (lower, "switches gradients, autocast"),
    "attribute": (counting, "changes the module's attributes"),
    "list": (remembering, "changes the module's attributes"),
    "gradient": (lambda m, y: Negate.apply(y), "calls Negate, which has a gradient of its own"),
    "checkpointing": (checkpointing, "switches gradients, autocast or checkpointing"),
    "item assignment": (lambda m, y: y.__setitem__(0, 1) or y, "fx stops at"),
}


class Tail(nn.Module):
    """Ends with what it is given."""

    def __init__(self, then):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.seen = []
        self.then = then

    def forward(self, x):
        return self.then(self, F.relu(self.bn(x)))


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_a_forward_that_no_graph_stands_for_is_left_as_it_was(name):
    then, why = UNTRACEABLE[name]
    model = nn.Sequential(Tail(then))
    attributes = dict(vars(model[0]))
    states = random.getstate(), torch.get_rng_state()
    accelerate(model)
    assert type(model[0]) is Tail
    assert type(model[0].bn) is nn.BatchNorm2d
    assert vars(model[0]) == attributes
    assert model[0].seen == []
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert fused(model) == {}
    assert why in left(model)["0"]
    assert 'torch.compile(model, backend="gammabeta")' in left(model)["0"]


def test_a_part_that_cannot_be_traced_costs_only_itself():
    model = nn.Sequential(plain(), Odd().double(), nn.BatchNorm2d(3)).double()
    accelerate(model)
    assert list(fused(model)) == ["0.1"]
    assert "Odd's forward cannot be traced" in left(model)["1.bn"]
    assert isinstance(model[1].bn, gammabeta.BatchNorm2d)


class MyBN(nn.BatchNorm2d):
    """A user's own."""


def hooked(where):
    bn = nn.BatchNorm2d(3)
    getattr(bn, f"register_{where}")(lambda *args: None)
    return bn


def parametrized():
    bn = nn.BatchNorm2d(3)
    nn.utils.parametrize.register_parametrization(bn, "weight", nn.Softplus())
    return bn


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: hooked("forward_hook"), "has hooks, which expect its own output"),
        (lambda: hooked("forward_pre_hook"), "has hooks, which expect its own output"),
        (lambda: hooked("full_backward_hook"), "has hooks, which expect its own output"),
        (MyBN, "MyBN may do more than a batch norm"),
        (nn.SyncBatchNorm, "SyncBatchNorm may do more than a batch norm"),
        (lambda *_: nn.LazyBatchNorm2d(), "is lazy: run the model once, then accelerate it"),
        (lambda *_: parametrized(), "is parametrised"),
        (gammabeta.BatchRenorm2d, "BatchRenorm2d may do more than a batch norm"),
    ],
)
def test_what_may_be_more_than_a_batch_norm_is_left_with_the_reason(make, why):
    bn = make(3) if isinstance(make, type) else make()
    model = accelerate(nn.Sequential(plain(), nn.Sequential(bn, nn.ReLU())))
    assert (left(model)["1.0"]).removeprefix("BN alone: ") == why
    assert list(fused(model)) == ["0.1"]
    assert model[1][0] is bn


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: nn.Linear(2, 2), {"": "the model holds no batch norm"}),
        (lambda: nn.BatchNorm2d(3), {"": "BN alone: it is the whole model"}),
        (
            lambda: nn.Sequential(gammabeta.BatchNormAct2d(3)),
            {"0.bn": "BN alone: is inside a BatchNormAct2d already"},
        ),
        (lambda: nn.Sequential(nn.BatchNorm2d(3)), {"0": "BN alone: its output leaves the module"}),
    ],
)
def test_a_model_with_nothing_to_fuse_says_so(model, expected):
    model = accelerate(model())
    assert fused(model) == {}
    assert left(model) == expected
    for module in model.modules():
        assert type(module) is not nn.BatchNorm2d


def test_code_that_is_no_forward_is_left_with_the_reason():
    scripted = torch.fx.symbolic_trace(plain())
    patched = plain()
    patched.forward = nn.Sequential.forward.__get__(patched)
    model = accelerate(nn.Sequential(scripted, patched, plain()))
    assert list(fused(model)) == ["2.1"]
    assert "GraphModule or a ScriptModule, with code of its own" in left(model)["0.1"]
    assert "it was replaced on the object" in left(model)["1.1"]


# What stays


def test_names_parameters_classes_and_modes_stay():
    model = blocks()
    model[1].eval()
    reference = twin(model)
    tensors = [id(t) for t in (*model.parameters(), *model.buffers())]
    modules = [id(m) for m in model.modules()]
    accelerate(model)
    assert [id(t) for t in (*model.parameters(), *model.buffers())] == tensors
    assert [id(m) for m in model.modules()] == modules
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in reference.named_parameters()]
    for m, r in zip(model.modules(), reference.modules(), strict=True):
        assert isinstance(m, type(r))
        assert (m.training, type(m).__name__) == (r.training, type(r).__name__)
    assert repr(model) == repr(reference)


def test_an_optimizer_made_before_goes_on():
    model = blocks()
    reference = twin(model)
    pairs = [(m, torch.optim.SGD(m.parameters(), 0.1, momentum=0.9)) for m in (model, reference)]
    for i in range(4):
        if i == 1:
            accelerate(model)
        for m, optimizer in pairs:
            step(m, images() + i)
            optimizer.step()
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        near(a, b, 1e-8, "parameter")


def test_a_state_goes_from_and_to_a_model_that_is_not_accelerated():
    model, other = accelerate(blocks()), blocks()
    step(other, images())
    model.load_state_dict(other.state_dict())
    near(evaluate(model, images()), evaluate(other, images()), 1e-9, "loaded")
    step(model, images() + 1)
    other.load_state_dict(model.state_dict())
    near(evaluate(model, images()), evaluate(other, images()), 1e-9, "loaded back")


def test_hooks_of_modules_that_are_called_still_run():
    model, seen = blocks(), []
    model[0].register_forward_hook(lambda m, args, y: seen.append("block"))
    model[0].conv1.register_forward_hook(lambda m, args, y: y + 1)
    model[0].register_forward_pre_hook(lambda m, args: seen.append("pre"))
    reference = twin(model)
    accelerate(model)
    assert len(fused(model)) == 4
    assert_twins(model, reference, images())
    assert seen.count("block") == seen.count("pre") == 4


@pytest.mark.parametrize("path", ["0.relu", "0.bn1", "0.bn2"])
@pytest.mark.parametrize("later", [True, False])
def test_hooks_of_modules_that_would_be_skipped_still_run(path, later):
    model = blocks()
    reference = twin(model)
    for m in (model, reference):
        if later and m is model:
            accelerate(m)
        m.get_submodule(path).register_forward_hook(lambda m, args, y: y * 1.5)
    if not later:
        accelerate(model)
    assert_twins(model, reference, images())


def test_frozen_statistics_stay_frozen_and_thaw():
    model = blocks()
    reference = twin(model)
    for m in (model, reference):
        freeze(m[0], affine=True)
    accelerate(model)
    assert_twins(model.train(), reference.train(), images())
    assert model[0].bn1.num_batches_tracked == 0
    for m in (model, reference):
        unfreeze(m)
        freeze(m[1])
    assert_twins(model.train(), reference.train(), images())
    assert [int(b.bn1.num_batches_tracked) for b in model] == [1, 1]


def test_copies_and_files_are_accelerated_too(tmp_path, calls):
    model = accelerate(blocks())
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    for other in (copy.deepcopy(model), copy.copy(model), loaded):
        calls.clear()
        torch.testing.assert_close(evaluate(other, images()), evaluate(model, images()))
        assert len(calls) == 8
        assert type(other[0]) is type(model[0])
        assert str(other.gammabeta_report) == str(model.gammabeta_report)
    assert_twins(loaded, twin(model), images())


def test_accelerating_again_changes_nothing():
    model = accelerate(blocks())
    kinds, report = [type(m) for m in model.modules()], str(model.gammabeta_report)
    accelerate(model)
    assert [type(m) for m in model.modules()] == kinds
    assert str(model.gammabeta_report) == report


def test_a_model_changed_since_can_be_accelerated_again(calls):
    model = accelerate(plain())
    model[2] = nn.SiLU()
    accelerate(model)
    assert fused(model) == {"1": "fused BN + silu after 0 (Conv2d)"}
    evaluate(model, images())
    assert [c.activation for c in calls] == ["silu"]


# Going back


@pytest.mark.parametrize("inplace", [True, False])
def test_going_back_restores_classes_and_forwards(inplace):
    model = blocks()
    reference = twin(model)
    accelerate(model)
    kinds = [type(m) for m in model.modules()]
    back = convert(model, to="torch", inplace=inplace)
    assert (back is model) is inplace
    assert [type(m) for m in back.modules()] == [type(m) for m in reference.modules()]
    assert type(back[0].bn1) is nn.BatchNorm2d
    if not inplace:
        assert [type(m) for m in model.modules()] == kinds
    assert "done  0: Block has its own forward again" in str(back.gammabeta_report)
    assert_twins(back, reference, images())


# Channels last


class Viewer(nn.Module):
    """Flattens as tensors laid out channels last cannot be."""

    def __init__(self):
        super().__init__()
        self.body = plain()

    def forward(self, x):
        x = self.body(x)
        return x.view(x.shape[0], -1)


def test_convolutions_go_channels_last_and_stay_the_same_objects():
    model = plain()
    weight = model[0].weight
    accelerate(model)
    assert model[0].weight is weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    y = evaluate(model, images(n=3))
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("example", [True, False])
def test_a_model_that_views_keeps_its_layout(example):
    model = Viewer().double()
    reference = twin(model)
    accelerate(model, images() if example else None)
    assert fused(model) == {"body.1": "fused BN + relu + max pooling 2x2 after 0 (Conv2d)"}
    assert model.body[0].weight.is_contiguous()
    why = "it fails with: view size" if example else "Viewer uses view"
    assert why in left(model)[""]
    assert_twins(model, reference, images())


# The comparison on an example


class Counter(nn.Module):
    """Draws, and writes a buffer and Python state, in evaluation too."""

    def __init__(self):
        super().__init__()
        self.body = plain()
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, x):
        self.steps += 1
        return self.body(x + torch.rand_like(x))


def test_the_comparison_leaves_no_trace():
    model = Counter().double()
    model.body[0].eval()  # one alone in another mode
    modes = [m.training for m in model.modules()]
    state = {n: t.clone() for n, t in model.state_dict().items()}
    x, rng = images(), torch.get_rng_state()
    accelerate(model, (x,))
    assert torch.equal(torch.get_rng_state(), rng)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert torch.equal(x, images())
    assert fused(model)


def test_a_model_that_would_compute_something_else_is_refused_and_left_as_it_was(monkeypatch):
    wrong = rewrite.Epilogue("silu")
    monkeypatch.setattr(rewrite, "epilogue", lambda *args, **kwargs: wrong)
    model = nn.Sequential(blocks(), nn.BatchNorm2d(3).double())
    reference = twin(model)
    with pytest.raises(GammabetaError, match=r"output 0 differs by .* left as it was.*backend="):
        accelerate(model, images())
    assert [type(m) for m in model.modules()] == [type(m) for m in reference.modules()]
    assert model[0][0].conv1.weight.stride() == reference[0][0].conv1.weight.stride()
    assert not hasattr(model, "gammabeta_report")


def test_examples_that_the_model_refuses_are_the_users_to_mend():
    with pytest.raises(GammabetaError, match=r"the model fails on example_inputs: .*channels"):
        accelerate(plain(), images(channels=5))
    with pytest.raises(GammabetaError, match="lazy layers: call it once"):
        accelerate(nn.Sequential(nn.LazyConv2d(3, 1), nn.BatchNorm2d(3)), images())


def test_objects_that_models_return_are_compared_too(monkeypatch):
    class Result:
        def __init__(self, y):
            self.logits = {"y": y}

    class Boxed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = plain()

        def forward(self, x):
            return Result(self.body(x))

    accelerate(Boxed().double(), images())
    wrong = rewrite.Epilogue("silu")
    monkeypatch.setattr(rewrite, "epilogue", lambda *args, **kwargs: wrong)
    with pytest.raises(GammabetaError, match="would change"):
        accelerate(Boxed().double(), images())


# Other tools


@pytest.mark.filterwarnings("ignore")
def test_an_accelerated_model_compiles_whole_and_stays_fused():
    torch._dynamo.reset()
    model = blocks()
    reference = twin(model)
    accelerate(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = images()
    for mode in (True, False):
        torch.manual_seed(1)
        got = compiled.train(mode)(x)
        torch.manual_seed(1)
        near(got, reference.train(mode)(x), 1e-9, str(mode))


def test_symbolic_tracing_sees_the_original_forward():
    model = Block().double()
    before = torch.fx.symbolic_trace(twin(model))
    traced = torch.fx.symbolic_trace(accelerate(model))
    assert [n.name for n in traced.graph.nodes if n.op == "call_module"] == [
        n.name for n in before.graph.nodes if n.op == "call_module" and "bn" not in n.name
    ]
    near(traced.eval()(images()), before.eval()(images()), 1e-9, "traced")


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("how", ["export", "jit", "functional_call"])
def test_exporters_take_the_model(how):
    model = accelerate(blocks()).eval()
    x = images()
    expected = evaluate(model, x)
    if how == "export":
        got = torch.export.export(model, (x,)).module()(x)
    elif how == "jit":
        got = torch.jit.trace(model, x)(x)
    else:
        got = torch.func.functional_call(model, dict(model.state_dict()), x)
    near(got, expected, 1e-9, how)


def test_a_synchronised_layer_put_in_later_is_called():
    model = accelerate(plain())
    done = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(done[1]) is nn.SyncBatchNorm
    near(evaluate(done, images()), evaluate(convert(model, "torch"), images()), 1e-9, "sync")
