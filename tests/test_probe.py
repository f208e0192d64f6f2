"""What a probe records, and that it leaves no trace, whatever fails half-way."""

from __future__ import annotations

import random
import warnings
from contextlib import suppress

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import gammabeta
from gammabeta import equations as eq
from gammabeta import equations_act
from gammabeta.errors import GammabetaError
from gammabeta.probe import probe, untouched
from norm_helpers import fill, randn
from trace_helpers import BrokenError, broken, state


class Checkpointed(nn.Module):
    """A block run under activation checkpointing, between two that are not."""

    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)
        )
        self.bn = gammabeta.BatchNormAct2d(4, pool=2)

    def forward(self, x):
        x = checkpoint(self.block, self.stem(x), use_reentrant=self.reentrant)
        return self.bn(x).flatten(1)


class Restless(nn.Module):
    """A model that changes itself and draws random numbers of every kind in its forward."""

    def __init__(self):
        super().__init__()
        self.conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))
        self.bn = nn.BatchNorm2d(4, momentum=None)
        self.frozen = gammabeta.freeze(gammabeta.BatchNorm2d(4), affine=True)
        self.drop = nn.Dropout(0.3)
        self.own = torch.Generator().manual_seed(5)
        self.steps, self.seen, self.plain = 0, [], torch.zeros(3)
        self.register_buffer("rebound", torch.zeros(1))

    def forward(self, x):
        self.steps += 1
        self.seen.append(self.steps)
        self.plain.add_(1)
        self.rebound = self.rebound + 1
        with torch.no_grad():
            self.bn.weight.clamp_(-1, 0.5)
        x = self.frozen(F.relu(self.bn(self.conv(x))))
        noise = torch.rand(1, generator=self.own) + random.random() + np.random.rand()  # noqa: NPY002
        return self.drop(x).flatten(1) * noise


MODELS = {
    "Net": lambda: gammabeta.Net(4, 8),
    "checkpointed": lambda: Checkpointed(False),
    "checkpointed, reentrant": lambda: Checkpointed(True),
    "restless": Restless,
    "timm": lambda: timm.create_model("mobilenetv3_small_050", num_classes=4),
}


def made(name):
    """Return a model with a history: gradients, modes of its own, statistics, a user's hook."""
    torch.manual_seed(0)
    model = MODELS[name]()
    model(images()).square().mean().backward()
    model.eval() if name == "timm" else model.train()
    list(model.modules())[2].eval()
    list(model.modules())[1].register_forward_hook(lambda *_: None)
    return model


def images(n=4):
    return randn(n, 3, 8, 8)


def look(model):
    with probe(model) as record:
        model.train()
        y = model(images().requires_grad_())
        y.backward(randn(*y.shape, seed=3))
    return record


@pytest.mark.parametrize("name", MODELS)
def test_a_probe_leaves_no_trace(name):
    model = made(name)
    before = state(model)
    record = look(model)
    assert state(model) == before
    assert all(seen.dx is not None for seen in record.calls)


@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("name", MODELS)
def test_a_probe_leaves_no_trace_wherever_the_model_fails(name, way):
    model = made(name)
    every = 1 if name != "timm" else 12
    failed = 0
    for place in range(0, len(list(model.modules())), every):
        handle = broken(place, way)(model)
        before = state(model)
        with suppress(BrokenError):
            look(model)
            failed -= 1  # containers are never called, eval branches may not be
        failed += 1
        assert state(model) == before, place
        handle.remove()
    assert failed >= 3


def test_the_test_of_traces_sees_a_trace():
    model = made("Net")
    before = state(model)
    model(images())
    assert state(model)["tensors"] != before["tensors"]


def test_parameters_are_free_of_hooks_that_run_on_gradients():
    model, ran = made("Net"), []
    model.fc1.weight.register_post_accumulate_grad_hook(ran.append)
    look(model)
    assert ran == []


def test_a_pending_backward_of_the_caller_survives():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).eval()
    y = model(randn(4, 3))
    look_at = randn(4, 3, seed=1)
    with probe(model):
        model.train()(look_at)
    y.backward(randn(4, 2, seed=2))
    assert model[1].weight.grad is not None


LAYERS = {
    "torch": lambda: nn.BatchNorm2d(4),
    "ours": lambda: gammabeta.BatchNorm2d(4),
    "act": lambda: gammabeta.BatchNormAct2d(4),
    "act, pool 3": lambda: gammabeta.BatchNormAct2d(4, activation="silu", pool=3),
    "act, slope, pool 2": lambda: gammabeta.BatchNormAct2d(
        4, activation="leaky_relu", negative_slope=0.3, pool=2
    ),
    "timm": lambda: timm.layers.BatchNormAct2d(4),
    "timm, silu": lambda: timm.layers.BatchNormAct2d(4, act_layer=nn.SiLU),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_what_is_recorded_is_what_the_equations_say(name, training, dtype):
    layer = LAYERS[name]()
    fill(getattr(layer, "bn", layer))
    model = nn.Sequential(layer.to(dtype)).train(training)
    x = (randn(5, 4, 6, 6) * 2 + 1).to(dtype).requires_grad_()
    with probe(model) as record:
        z = model(x)
        z.backward(randn(*z.shape, seed=9, dtype=dtype))
    (seen,) = record.calls
    norm = seen.layer
    gamma, beta = (p.detach().double().numpy() for p in (norm.weight, norm.bias))
    if training:
        y = eq.batch_norm(seen.x, gamma, beta, norm.eps)
        dx, _, _ = eq.batch_norm_backward(seen.dy, seen.x, gamma, norm.eps)
    else:
        y = eq.batch_norm_eval(seen.x, *seen.before, gamma, beta, norm.eps)
        dx, _, _ = eq.batch_norm_eval_backward(seen.dy, seen.x, *seen.before, gamma, norm.eps)
    bound = 1e-10 if dtype is torch.float64 else 2e-5
    np.testing.assert_allclose(seen.y.double().numpy(), y, atol=bound)
    np.testing.assert_allclose(seen.dx.double().numpy(), dx, atol=bound)
    assert torch.equal(seen.x, x)
    assert torch.equal(seen.z, z)
    assert torch.equal(seen.dx, x.grad)
    assert seen.batch is training


@pytest.mark.parametrize("residual", [False, True])
def test_the_gradient_before_a_fused_activation_is_the_oracles(residual):
    layer = fill(gammabeta.BatchNormAct2d(4, pool=2).double())
    x, added = (randn(5, 4, 6, 6, seed=i, dtype=torch.float64) for i in (1, 2))
    with probe(layer) as record:
        z = layer(x.requires_grad_(), added if residual else None)
        dz = randn(*z.shape, seed=9, dtype=torch.float64)
        z.backward(dz)
    (seen,) = record.calls
    dx, _, _, dy = equations_act.batch_norm_act_backward(
        dz.numpy(), x.detach(), *(p.detach() for p in (layer.bn.weight, layer.bn.bias)),
        activation="relu", pool=2, residual=added if residual else None,
    )  # fmt: skip
    np.testing.assert_allclose(seen.dy, dy, atol=1e-12)
    np.testing.assert_allclose(seen.dx, dx, atol=1e-10)
    assert seen.path == ""
    assert (seen.residual is not None) is residual


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_layer_is_recorded_once_with_its_gradients(reentrant):
    model, x = Checkpointed(reentrant), images()
    plain = Checkpointed(reentrant)
    plain.load_state_dict(model.state_dict())
    plain.forward = lambda x: plain.bn(plain.block(plain.stem(x))).flatten(1)
    records = []
    for one in (model, plain):
        with probe(one) as record:
            y = one(x.clone().requires_grad_())
            y.backward(randn(*y.shape, seed=3))
        records.append(record)
    assert [s.path for s in records[0].calls] == ["stem.1", "block.1", "bn"]
    for got, expected in zip(*(r.calls for r in records), strict=True):
        for name in ("x", "y", "z", "dy", "dx"):
            torch.testing.assert_close(getattr(got, name), getattr(expected, name))
        torch.testing.assert_close(got.after.running_mean, expected.after.running_mean)


def test_a_reentrant_checkpoint_run_twice_gives_each_call_its_own_gradient():
    block = nn.Sequential(nn.BatchNorm1d(3), nn.Tanh())
    x = randn(6, 3).requires_grad_()
    with probe(block) as record:
        first = checkpoint(block, x, use_reentrant=True)
        second = checkpoint(block, first, use_reentrant=True)
        second.backward(randn(6, 3, seed=4))
    assert [seen.number for seen in record.calls] == [0, 1]
    for seen in record.calls:
        dx, _, _ = eq.batch_norm_backward(seen.dy, seen.x)
        np.testing.assert_allclose(seen.dx, dx, atol=1e-5)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn, self.unused = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.again = self.bn

    def forward(self, x):
        y = self.bn(x)
        return y + self.again(y * 2) + y.sin() + x


def test_shared_and_unreached_layers_are_told_and_dx_is_the_layers_own():
    model = Shared()
    with probe(model) as record:
        y = model(randn(6, 3).requires_grad_())
        y.backward(randn(6, 3, seed=2))
    assert [(s.path, s.number) for s in record.calls] == [("bn", 0), ("bn", 1)]
    assert record.unreached == ["unused"]
    assert len(record.of("bn")) == 2
    for seen in record.calls:  # x and y have other readers, whose share must not be in it
        dx, _, _ = eq.batch_norm_backward(seen.dy, seen.x)
        np.testing.assert_allclose(seen.dx, dx, atol=1e-5)


def test_an_activation_in_place_leaves_the_recorded_output_alone():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU(inplace=True))
    with probe(model) as record:
        model(randn(6, 3).requires_grad_()).backward(randn(6, 3, seed=2))
    seen = record.calls[0]
    assert bool((seen.y < 0).any())
    assert torch.equal(seen.dy != 0, (seen.y > 0))


def test_an_accelerated_model_and_a_compiled_one_are_seen():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    gammabeta.accelerate(model)
    compiled = torch.compile(model, backend="eager")
    compiled(images())
    for one in (model, compiled):
        with probe(one) as record:
            one(images())
        seen = record.calls[0]
        np.testing.assert_allclose(seen.y, eq.batch_norm(seen.x), atol=1e-5)


def test_keep_decides_what_stays():
    names = []

    def keep(seen, name, tensor):
        names.append(name)
        return tuple(tensor.shape)

    model = gammabeta.BatchNormAct2d(4, pool=2)
    with probe(model, keep) as record:
        z = model(randn(2, 4, 4, 4).requires_grad_(), randn(2, 4, 4, 4))
        z.backward(randn(2, 4, 2, 2))
    assert names == ["x", "residual", "y", "z", "dy", "dx"]
    assert (record.calls[0].x, record.calls[0].z) == ((2, 4, 4, 4), (2, 4, 2, 2))


def test_running_statistics_are_noted_before_and_after():
    layer = fill(nn.BatchNorm1d(3))
    x = randn(6, 3)
    with probe(layer) as record:
        layer(x)
    seen = record.calls[0]
    mean, var = eq.batch_statistics(x)
    expected = eq.update_running(*seen.before, mean, var, 6)
    for got, wanted in zip(seen.after, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_probe_has_gradients_whatever_mode_surrounds_it(context):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with context(), probe(model) as record:
        y = model(randn(6, 3).clone().requires_grad_())
        y.backward(randn(6, 3, seed=2))
    assert record.calls[0].dx is not None
    assert model[0].weight.grad is None


def test_weights_tied_in_a_plain_list_stay_tied():
    lstm = nn.LSTM(3, 4)
    before = [id(w) for w in lstm._flat_weights]
    with untouched(lstm):
        assert lstm._flat_weights[0] is lstm.weight_ih_l0
        lstm(randn(5, 2, 3))[0].backward(randn(5, 2, 4))
        assert lstm.weight_ih_l0.grad is not None
    assert [id(w) for w in lstm._flat_weights] == before
    assert lstm.weight_ih_l0.grad is None


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: nn.Sequential(nn.LazyBatchNorm2d()), "0 .LazyBatchNorm2d. is lazy"),
        (lambda: nn.Sequential(nn.LazyLinear(3), nn.BatchNorm1d(3)), "0 .LazyLinear. is lazy"),
        (lambda: torch.jit.trace(nn.BatchNorm1d(3).eval(), torch.zeros(2, 3)), "scripted"),
    ],
)
def test_models_that_hide_their_layers_are_refused(model, says):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lazy modules and tracing warn of themselves
        built = model()
    with pytest.raises(GammabetaError, match=says), probe(built):
        pass
