"""Batch norm with what follows it: one layer that computes, saves and hooks like three."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gammabeta import (
    BatchNorm1d,
    BatchNormAct1d,
    BatchNormAct2d,
    BatchNormAct3d,
    GammabetaError,
    batch_norm,
)
from norm_helpers import (
    ACTIVATIONS,
    POOLS,
    assert_same,
    fill,
    randn,
    with_gradients,
)

LAYERS = {1: (BatchNormAct1d, (6, 3, 4)), 2: (BatchNormAct2d, (4, 3, 6, 5)),
          3: (BatchNormAct3d, (3, 3, 2, 3, 2))}  # fmt: skip
DIMS = pytest.mark.parametrize("d", LAYERS)
MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, w):
        return 2 * w


class Around(nn.Module):
    """A norm inside a model, so that keys have a prefix."""

    def __init__(self, norm):
        super().__init__()
        self.first, self.norm, self.tail = nn.Linear(3, 3), norm, nn.Linear(3, 3)


def twins(d):
    """Our layer, and torch's batch norm with the same values."""
    return fill(LAYERS[d][0](3)), fill_plain(getattr(nn, f"BatchNorm{d}d")(3))


def fill_plain(layer):
    layer.load_state_dict(fill(BatchNormAct1d(3)).state_dict())
    return layer


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("case", ACTIVATIONS)
@DIMS
@MODES
def test_it_is_torchs_sequence(d, case, residual, training):
    kind, shape = LAYERS[d]
    options, act = ACTIVATIONS[case]
    ours = fill(kind(3, **options)).train(training)
    plain = twins(d)[1].train(training)
    inputs = {"x": randn(*shape)}
    if residual:
        inputs["r"] = randn(*shape, seed=4)

    def sequence(x, r=0):
        return act(plain(x) + r)

    got = with_gradients(lambda x, r=None: ours(x, r), inputs)
    torch.testing.assert_close(got, with_gradients(sequence, inputs))
    torch.testing.assert_close(dict(ours.state_dict()), dict(plain.state_dict()))


@pytest.mark.parametrize("pool", POOLS)
def test_pooling_follows(pool):
    layer, plain = BatchNormAct2d(3, pool=pool), nn.BatchNorm2d(3)
    expected = F.max_pool2d(F.relu(plain(randn(4, 3, 7, 6))), *POOLS[pool])
    torch.testing.assert_close(layer(randn(4, 3, 7, 6)), expected)


def test_arguments_reach_the_batch_norm():
    layer = BatchNormAct2d(3, 0.1, None, False, virtual_batch_size=2)
    bn = layer.bn
    assert (bn.eps, bn.momentum, bn.affine, bn.virtual_batch_size) == (0.1, None, False, 2)


def test_the_repr_tells_what_follows():
    text = repr(BatchNormAct2d(3, activation="leaky_relu", negative_slope=0.2, pool=2))
    assert "activation=leaky_relu, negative_slope=0.2, pool=2" in text
    assert "approximate=tanh" in repr(BatchNormAct1d(3, activation="gelu", approximate="tanh"))


@DIMS
def test_state_dicts_go_both_ways_inside_a_model(d):
    ours, plain = (Around(norm) for norm in twins(d))
    fill(ours.norm, seed=40)
    assert list(ours.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(ours.state_dict(), strict=True)
    assert_same(dict(plain.state_dict()), dict(ours.state_dict()))
    fill(plain, seed=60)
    before = dict(plain.state_dict())
    ours.load_state_dict(before, strict=True)
    assert_same(dict(ours.state_dict()), before)
    assert_same({"w": ours.norm.bn.weight.data}, {"w": plain.norm.weight.data})


def test_the_state_dict_carries_batch_norms_version():
    ours, plain = (Around(norm).state_dict()._metadata for norm in twins(1))
    assert plain["norm"]["version"] == ours["norm"]["version"] == 2


def test_loading_does_not_change_the_callers_dict():
    state = twins(1)[1].state_dict()
    names = list(state)
    BatchNormAct1d(3).load_state_dict(state)
    assert list(state) == names


@pytest.mark.parametrize("versioned", [True, False])
def test_checkpoints_older_than_the_counter_load(versioned):
    old = Around(twins(1)[1]).state_dict()
    del old["norm.num_batches_tracked"]
    if versioned:
        old._metadata["norm"]["version"] = 1
    else:
        old = dict(old)
    model = Around(BatchNormAct1d(3))
    model.load_state_dict(old, strict=True)
    assert torch.equal(model.norm.bn.running_mean, old["norm.running_mean"])


def test_a_missing_or_unexpected_key_is_an_error():
    model = Around(BatchNormAct1d(3))
    state = {**model.state_dict(), "norm.gamma": torch.ones(3)}
    del state["norm.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*norm\..*weight.*\s.*Unexpected.*gamma"):
        model.load_state_dict(state)


def test_a_copy_is_equal_and_apart():
    layer = fill(BatchNormAct1d(3, activation="silu"))
    twin = copy.deepcopy(layer)
    layer(randn(6, 3))
    assert repr(twin) == repr(layer)
    assert twin.bn.num_batches_tracked == 0


@MODES
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_of_the_inner_batch_norm_run(kind, training):
    layer, plain = fill(BatchNormAct1d(3)).train(training), BatchNormAct1d(3).train(training)
    plain.load_state_dict(layer.state_dict())
    seen = []
    getattr(layer.bn, f"register_{kind}_hook")(lambda *args: seen.append(len(args)))
    got, want = (with_gradients(m, {"input": randn(6, 3)}) for m in (layer, plain))
    assert len(seen) == 1
    torch.testing.assert_close(got, want)


def test_a_global_hook_sees_the_inner_batch_norm():
    layer, seen = BatchNormAct1d(3), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(m))
    try:
        layer(randn(6, 3))
    finally:
        handle.remove()
    assert seen == [layer.bn, layer]


def test_a_forward_replaced_on_the_inner_batch_norm_is_called():
    layer = BatchNormAct1d(3, activation=None)
    layer.bn.forward = lambda x: x * 3
    torch.testing.assert_close(layer(randn(6, 3)), randn(6, 3) * 3)


def test_another_module_in_place_of_the_batch_norm_is_called():
    layer = BatchNormAct1d(3)
    layer.bn = nn.Identity()
    assert torch.equal(layer(randn(6, 3)), randn(6, 3).relu())


def test_a_subclass_in_place_of_the_batch_norm_is_called():
    class Tripled(BatchNorm1d):
        def forward(self, x):
            return 3 * x

    layer = BatchNormAct1d(3, activation=None)
    layer.bn = Tripled(3)
    torch.testing.assert_close(layer(randn(6, 3)), 3 * randn(6, 3))


def test_a_parametrized_weight_is_used():
    layer = fill(BatchNormAct1d(3, activation=None))
    weight = layer.bn.weight.detach().clone()
    nn.utils.parametrize.register_parametrization(layer.bn, "weight", Doubled())
    expected = batch_norm(randn(6, 3), None, None, 2 * weight, layer.bn.bias, True)
    torch.testing.assert_close(layer(randn(6, 3)), expected)


SHARED = {
    "weight": nn.Parameter(torch.zeros(3)),
    "bias": None,
    "num_batches_tracked": torch.tensor(5),
    "eps": 0.1,
    "momentum": None,
    "num_features": 3,
    "affine": False,
    "track_running_stats": False,
}


@pytest.mark.parametrize("name", SHARED)
def test_what_a_batch_norm_has_can_be_read_and_set_on_the_whole(name):
    layer = BatchNormAct1d(3)
    assert getattr(layer, name) is getattr(layer.bn, name)
    setattr(layer, name, SHARED[name])
    assert getattr(layer, name) is getattr(layer.bn, name) is SHARED[name]
    assert name not in {*vars(layer), *layer._parameters, *layer._buffers}
    assert {n for n, _ in layer.named_parameters()} <= {"bn.weight", "bn.bias"}


def test_code_written_for_a_batch_norm_reaches_it():
    layer, plain = fill(BatchNormAct1d(3, activation=None)), nn.BatchNorm1d(3)
    for norm in (layer, plain):
        nn.init.constant_(norm.weight, 2.0)
        nn.init.uniform_(norm.bias, generator=torch.Generator().manual_seed(0))
        norm.weight.requires_grad_(False)
        norm.momentum, norm.eps = 0.5, 0.01
    layer.running_mean, layer.running_var = torch.zeros(3), torch.ones(3)
    torch.testing.assert_close(layer(randn(6, 3)), plain(randn(6, 3)))
    torch.testing.assert_close(layer.bn.running_var, plain.running_var)


def test_compiled_code_reads_them_too():
    layer = BatchNormAct1d(3)
    read = torch.compile(
        lambda x: layer(x) * layer.weight + layer.eps, backend="eager", fullgraph=True
    )
    torch.testing.assert_close(read(randn(6, 3)), layer(randn(6, 3)) + layer.eps)


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_statistics_are_not_offered_to_what_would_fold_by_them(name):
    layer = BatchNormAct1d(3)
    assert not hasattr(layer, name)
    with pytest.raises(AttributeError, match=rf"no attribute '{name}'.*use \.bn\.{name}$"):
        getattr(layer, name)


def test_in_place_of_the_batch_norm_may_be_what_has_no_such_attribute():
    layer = BatchNormAct1d(3)
    layer.bn = nn.Identity()
    with pytest.raises(AttributeError, match="'momentum'"):
        layer.momentum  # noqa: B018


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (BatchNormAct2d, {"activation": "mish"}, "activation is 'mish', but must be None, relu"),
        (BatchNormAct2d, {"pool": 5}, "pool is 5"),
        (BatchNormAct1d, {"pool": 2}, "BatchNormAct1d has no pooling; BatchNormAct2d has"),
        (BatchNormAct3d, {"pool": 2}, "BatchNormAct3d has no pooling"),
    ],
    ids=str,
)
def test_what_cannot_follow_is_refused_when_built(kind, options, message):
    with pytest.raises(GammabetaError, match=message):
        kind(3, **options)


@pytest.mark.parametrize("shape", [(6, 1), (3,), (5, 3)], ids=str)
@pytest.mark.parametrize("hooked", [False, True], ids=["fused", "hooked"])
def test_a_residual_of_another_shape_is_refused(shape, hooked):
    layer = BatchNormAct1d(3)
    if hooked:
        layer.bn.register_forward_hook(lambda *_: None)
    with pytest.raises((GammabetaError, RuntimeError, ValueError)):
        layer(randn(6, 3), randn(*shape))


def test_one_value_names_the_inner_layer():
    with pytest.raises(GammabetaError, match=r"'norm\.bn' \(BatchNorm1d\)"):
        Sequence(BatchNormAct1d(3))(randn(1, 3))


class Sequence(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x)


def test_named_parameters_lead_functional_call():
    model = Sequence(BatchNormAct1d(3, activation=None))
    doubled = {n: 2 * p for n, p in model.named_parameters()}
    y = torch.func.functional_call(model, doubled, (randn(6, 3),))
    torch.testing.assert_close(y, 2 * F.batch_norm(randn(6, 3), None, None, training=True))
