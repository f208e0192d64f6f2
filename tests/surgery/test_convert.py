"""Conversion changes the class and nothing else, whatever a layer holds."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import gammabeta
from gammabeta import GammabetaError, convert, freeze
from gammabeta.surgery.freeze import frozen_parts
from norm_helpers import TOLERANCES, assert_same, fill, randn

HOMES = {"torch": nn, "gammabeta": gammabeta}
OTHER = {"torch": "gammabeta", "gammabeta": "torch"}
BOTH = pytest.mark.parametrize("to", HOMES)
SHAPES = {1: (6, 3), 2: (4, 3, 5, 7), 3: (3, 3, 2, 3, 2)}


class MyBN(nn.BatchNorm2d):
    """A user's own."""


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, w):
        return 2 * w


def hook(module, args, y):
    """At module level, as a copy of a model keeps it."""
    return y + 1


layers = st.fixed_dictionaries(
    {
        "d": st.sampled_from([1, 2, 3]),
        "eps": st.sampled_from([1e-5, 1e-3]),
        "momentum": st.sampled_from([None, 0.0, 0.1, 1.0]),
        "affine": st.booleans(),
        "bias": st.booleans(),
        "track_running_stats": st.booleans(),
        "dtype": st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
        "training": st.booleans(),
        "gradients": st.tuples(st.booleans(), st.booleans()),
        "hooked": st.booleans(),
        "frozen": st.sampled_from([None, "stats", "affine"]),
        "parametrized": st.booleans(),
        "toggled": st.booleans(),
        "steps": st.integers(0, 2),
        "extra": st.booleans(),
    }
)


def build(home, spec):
    """A layer inside a model that uses it twice, in any state a user may have brought it to."""
    names = ("eps", "momentum", "affine", "bias", "track_running_stats", "dtype")
    kind = getattr(home, f"BatchNorm{spec['d']}d")
    layer = fill(kind(3, **{name: spec[name] for name in names}))
    for parameter, wanted in zip(layer.parameters(), spec["gradients"], strict=False):
        parameter.requires_grad_(wanted)
    for seed in range(spec["steps"]):
        layer(randn(*SHAPES[spec["d"]], seed=seed, dtype=spec["dtype"]))
    layer.train(spec["training"])
    if spec["hooked"]:
        layer.register_forward_hook(hook)
    if spec["parametrized"] and spec["affine"]:
        nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    if spec["frozen"] == "affine" or (spec["frozen"] and spec["track_running_stats"]):
        freeze(layer, stats=spec["frozen"] == "stats", affine=spec["frozen"] == "affine")
    if spec["toggled"]:
        layer.track_running_stats = False
    if spec["extra"]:
        layer.note = {"since": 3}
    model = nn.Sequential(layer, nn.Identity(), layer)
    model.register_buffer("scale", torch.ones(1))
    return model


def facts(model):
    """All that must survive; classes by name, for they may differ in their home."""
    return [
        (
            type(m).__name__,
            {k: v for k, v in vars(m).items() if isinstance(v, bool | int | float | str | dict)
             and not k.startswith("_")},
            m.training,
            m.extra_repr(),
            [h.__name__ for h in m._forward_hooks.values()],
            frozen_parts(m),
            [(n, p.requires_grad, p.dtype, p.stride()) for n, p in m.named_parameters()],
            [(n, b.dtype) for n, b in m.named_buffers()],
        )
        for m in model.modules()
    ]  # fmt: skip


def held(model):
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


@BOTH
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(spec=layers, inplace=st.booleans())
def test_everything_a_layer_holds_survives(to, spec, inplace):
    model = build(HOMES[OTHER[to]], spec)
    original, before, known = copy.deepcopy(model), held(model), facts(model)
    tensors = [t.data_ptr() for t in (*model.parameters(), *model.buffers())]
    done = convert(model, to, inplace=inplace)

    assert (done is model) is inplace
    assert facts(done) == known
    assert_same(held(done), before)
    assert done[0] is done[2]
    assert isinstance(done[0], getattr(HOMES[to], f"BatchNorm{spec['d']}d"))
    ours = getattr(gammabeta, f"BatchNorm{spec['d']}d")
    assert isinstance(done[0], ours) is (to == "gammabeta")
    assert [e.path for e in done.gammabeta_report.done] == ["0"]
    if inplace:
        assert [t.data_ptr() for t in (*done.parameters(), *done.buffers())] == tensors
    else:
        assert facts(model) == known
        assert_same(held(model), before)
        assert not {t.data_ptr() for t in done.parameters()} & set(tensors)
        assert not hasattr(model, "gammabeta_report")

    x = randn(*SHAPES[spec["d"]], seed=5, dtype=spec["dtype"])
    near = TOLERANCES[torch.bfloat16] if spec["dtype"] == torch.bfloat16 else {}
    torch.testing.assert_close(done[0](x), original[0](x), **near)
    torch.testing.assert_close(dict(done.state_dict()), dict(original.state_dict()), **near)

    back = convert(done, OTHER[to])
    parametrized = spec["parametrized"] and spec["affine"]
    assert parametrized or type(back[0]) is type(original[0])
    assert back[0].__class__.__name__ == original[0].__class__.__name__


@BOTH
@pytest.mark.parametrize("d", [1, 2, 3])
def test_every_class_has_its_twin_and_comes_back(to, d):
    for lazy in ("", "Lazy"):
        name = f"{lazy}BatchNorm{d}d"
        source = getattr(HOMES[OTHER[to]], name)
        # In place, for torch cannot copy a layer that is still lazy.
        there = convert(source(*[] if lazy else [3]), to, inplace=True)
        assert type(there) is getattr(HOMES[to], name)
        assert type(convert(there, OTHER[to], inplace=True)) is source


@BOTH
def test_a_converted_lazy_layer_becomes_the_targets_at_its_first_input(to):
    model = nn.Sequential(HOMES[OTHER[to]].LazyBatchNorm1d(momentum=0.3))
    convert(model, to, inplace=True)
    model(randn(6, 3))
    assert type(model[0]) is HOMES[to].BatchNorm1d
    assert (model[0].num_features, model[0].momentum) == (3, 0.3)


@BOTH
def test_the_inner_layer_of_an_activated_one_is_converted(to):
    model = nn.Sequential(fill(gammabeta.BatchNormAct1d(3, activation="silu"))).eval()
    model = convert(model, OTHER[to])
    expected, keys = model(randn(6, 3)), list(model.state_dict())
    done = convert(model, to)
    assert type(done[0].bn) is HOMES[to].BatchNorm1d
    torch.testing.assert_close(done(randn(6, 3)), expected)
    assert list(done.state_dict()) == keys


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: MyBN(3), "MyBN has no twin"),
        (lambda: nn.SyncBatchNorm(3), "SyncBatchNorm has no twin"),
        (lambda: gammabeta.BatchRenorm2d(3), "BatchRenorm2d has no twin"),
        (lambda: gammabeta.BatchNorm2d(3), "is gammabeta's already"),
    ],
    ids=["subclass", "sync", "renorm", "ours"],
)
def test_what_is_no_plain_batch_norm_is_left_alone_with_the_reason(make, why):
    layer = make()
    done = convert(nn.Sequential(nn.Identity(), layer), inplace=True)
    assert done[1] is layer
    assert type(layer) is type(make())
    assert done.gammabeta_report.done == []
    assert str(done.gammabeta_report) == f"left  1: {why}"


def test_a_subclass_of_a_parametrized_users_class_is_left_alone():
    layer = MyBN(3)
    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    kind = type(layer)
    assert type(convert(nn.Sequential(layer), inplace=True)[0]) is kind


def test_a_parametrized_layer_comes_back_to_torchs():
    layer = nn.BatchNorm1d(3)
    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    there = convert(layer)
    assert isinstance(there, gammabeta.BatchNorm1d)
    nn.utils.parametrize.remove_parametrizations(there, "weight")
    assert type(there) is gammabeta.BatchNorm1d
    assert torch.equal(there.weight, torch.full((3,), 2.0))


def test_ghost_batches_are_refused_for_torch_and_nothing_is_changed():
    model = nn.Sequential(nn.Identity(), nn.Sequential(gammabeta.BatchNorm1d(3)),
                          gammabeta.BatchNorm1d(3, virtual_batch_size=4))  # fmt: skip
    with pytest.raises(GammabetaError, match=r"ghost batches, which 2 use.*virtual_batch_size"):
        convert(model, "torch", inplace=True)
    assert type(model[1][0]) is gammabeta.BatchNorm1d


def test_a_users_own_module_with_ghost_batches_is_none_of_our_business():
    class TheirGhost(nn.Module):
        virtual_batch_size = 4

    model = convert(nn.Sequential(TheirGhost(), gammabeta.BatchNorm1d(3)), "torch")
    assert type(model[1]) is nn.BatchNorm1d


def test_an_unknown_target_is_refused():
    with pytest.raises(GammabetaError, match="to is 'keras', but must be gammabeta or torch"):
        convert(nn.BatchNorm1d(3), "keras")


def test_a_model_without_batch_norm_is_returned_with_an_empty_report():
    done = convert(nn.Linear(3, 3))
    assert str(done.gammabeta_report) == ""


def test_a_converted_model_still_trains_with_its_optimizer():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    convert(model, inplace=True)
    before = held(model)
    model(randn(6, 3)).backward(randn(6, 3, seed=1))
    optimizer.step()
    assert all(not torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_converted_model_can_be_copied_and_saved(tmp_path):
    model = convert(nn.Sequential(fill(nn.BatchNorm1d(3))))
    torch.save(model, tmp_path / "m.pt")
    loaded = torch.load(tmp_path / "m.pt", weights_only=False)
    assert type(loaded[0]) is gammabeta.BatchNorm1d
    torch.testing.assert_close(copy.deepcopy(loaded)(randn(6, 3)), model(randn(6, 3)))
