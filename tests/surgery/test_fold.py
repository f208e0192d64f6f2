"""Folding is exact, for every layer and batch norm that it knows, and leaves the model alone."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import gammabeta as gb
from gammabeta import equations as eq
from gammabeta.norm.renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from gammabeta.surgery.fold import fold
from gammabeta.surgery.folding.affine import Activate, ChannelAffine
from gammabeta.surgery.folding.weights import unit
from norm_helpers import fill, randn
from surgery_helpers import images, near

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIZES = {1: (9,), 2: (7, 8), 3: (5, 6, 7)}
WIDE = torch.float64


def filled(model, seed=3):
    """Give every batch norm statistics, γ (of both signs) and β that are not the defaults."""
    for module in model.modules():
        if "running_var" in module._buffers:
            fill(module, seed)
    return model


def sequence(*layers, dtype=WIDE):
    return filled(nn.Sequential(*layers).to(dtype)).eval()


def assert_same(folded, model, x, bound=1e-12):
    with torch.no_grad():
        near(folded(x), model(x), bound, "output")


def whats(model):
    return [f"{e.path}: {e.what}" for e in model.gammabeta_report.done]


def lefts(model):
    return [f"{e.path}: {e.what}" for e in model.gammabeta_report.left]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dilation", [1, 2], ids=["dense", "dilated"])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kinds", [CONVS, TRANSPOSED], ids=["conv", "transposed"])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_a_norm_goes_into_the_convolution_before_it(d, kinds, groups, dilation, bias):
    options = {"stride": 2, "padding": 1, "groups": groups, "dilation": dilation, "bias": bias}
    model = sequence(kinds[d](4, 8, 3, **options), NORMS[d](8))
    folded = fold(model)
    assert type(folded[1]) is nn.Identity
    assert whats(folded) == [f"1: merged into 0 ({kinds[d].__name__})"]
    assert_same(folded, model, randn(2, 4, *SIZES[d], dtype=WIDE))


@pytest.mark.parametrize("padding", [0, "valid", "same"])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_a_norm_goes_into_the_convolution_after_it_where_that_is_exact(d, groups, mode, padding):
    conv = CONVS[d](4, 6, 3, padding=padding, padding_mode=mode, groups=groups, dilation=2)
    model = sequence(NORMS[d](4), nn.ReLU(), NORMS[d](4), conv)
    folded = fold(model)
    exact = padding != "same" or mode != "zeros"
    assert isinstance(folded[2], nn.Identity if exact else ChannelAffine)
    assert ("merged into 3" in whats(folded)[1]) == exact
    assert len(lefts(folded)) == (0 if exact else 1)
    assert_same(folded, model, randn(2, 4, *SIZES[d], dtype=WIDE))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_norm_goes_into_the_linear_layer_on_either_side(bias):
    before = sequence(nn.Linear(5, 7, bias=bias), nn.BatchNorm1d(7))
    after = sequence(nn.BatchNorm1d(5), nn.Linear(5, 7, bias=bias))
    assert whats(fold(before)) == ["1: merged into 0 (Linear)"]
    assert whats(fold(after)) == ["0: merged into 1 (Linear), which follows"]
    for model in (before, after):
        assert_same(fold(model), model, randn(3, 5, dtype=WIDE))


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d, (3, 4, 5)),
        (nn.BatchNorm2d, (3, 4, 2, 3)),
        (nn.BatchNorm3d, (2, 4, 1, 2, 3)),
    ],
    ids=["1d", "2d", "3d"],
)
@pytest.mark.parametrize("how", ["module", "function", "method", "view", "reshape"])
def test_a_norm_goes_through_a_flattening_into_a_linear_layer(norm, shape, how):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.fc = norm(4), nn.Linear(randn(*shape).flatten(1).shape[1], 3)
            self.flatten = nn.Flatten()

        def forward(self, x):
            y = self.bn(x)
            ways = {
                "module": lambda: self.flatten(y),
                "function": lambda: torch.flatten(y, start_dim=1),
                "method": lambda: y.flatten(1),
                "view": lambda: y.view(y.size(0), -1),
                "reshape": lambda: y.reshape(x.shape[0], -1),
            }
            return self.fc(ways[how]())

    model = filled(Flat().double()).eval()
    folded = fold(model)
    assert whats(folded) == ["bn: merged into fc (Linear), which follows"]
    assert_same(folded, model, randn(*shape, dtype=WIDE))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("before", [True, False], ids=["norm first", "norm last"])
def test_weights_are_the_oracles_rounded_once(dtype, before):
    conv, bn = nn.Conv2d(4, 4, 3, dtype=dtype), fill(nn.BatchNorm2d(4, dtype=dtype)).eval()
    names = ("running_mean", "running_var", "weight", "bias")
    stats = [getattr(bn, name).detach().double().numpy() for name in names]
    own = [v.detach().double().numpy() for v in (conv.weight, conv.bias)]
    equation = eq.fold_into_next if before else eq.fold_linear
    layers = [bn, conv] if before else [conv, bn]
    folded = fold(nn.Sequential(*layers).eval())[1 if before else 0]
    bound = max(unit(dtype), 1e-15)
    for got, want in zip((folded.weight, folded.bias), equation(*own, *stats), strict=True):
        assert got.dtype == dtype
        near(got.double(), torch.from_numpy(want), bound, "weight or bias")


def test_gamma_of_zero_and_below_and_means_far_away():
    model = sequence(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    with torch.no_grad():
        for bn in (model[1], model[3]):
            bn.weight.copy_(torch.tensor([0.0, -1.0, 2.0, -0.0]))
            bn.running_mean.copy_(torch.tensor([1e6, -1e6, 0.0, 1e3]))
            bn.running_var.copy_(torch.tensor([1e-12, 1.0, 0.0, 1e8]))
    assert_same(fold(model), model, images())


@pytest.mark.parametrize("missing", ["affine", "bias"])
def test_missing_gamma_and_beta_count_as_one_and_zero(missing):
    bn = nn.BatchNorm2d(4, **{missing: False})
    model = sequence(nn.Conv2d(3, 4, 3, bias=False), bn, nn.ReLU(), copy.deepcopy(bn))
    assert_same(fold(model), model, images())


def test_chains_fold_completely_and_in_order():
    model = sequence(
        *(nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Dropout2d(0.5)),
        *(nn.BatchNorm2d(4), nn.Identity(), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)),
    )
    filled(model[4], 5)
    filled(model[6], 9)
    filled(model[1], 11)
    folded = fold(model)
    assert not any(isinstance(m, nn.BatchNorm2d | ChannelAffine) for m in folded.modules())
    assert [what.split(" ", 1)[1] for what in whats(folded)] == [
        *["merged into 2 (Conv2d), which follows"] * 2,
        *["merged into 2 (Conv2d)"] * 2,
    ]
    assert_same(folded, model, images())


RENORMS = {1: BatchRenorm1d, 2: BatchRenorm2d, 3: BatchRenorm3d}


@pytest.mark.parametrize("home", ["torch", "gammabeta", "ghost", "renorm", "sync"])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_every_kind_of_norm_is_known(home, d):
    make = {
        "torch": lambda c: NORMS[d](c),
        "gammabeta": lambda c: getattr(gb, f"BatchNorm{d}d")(c),
        "ghost": lambda c: getattr(gb, f"BatchNorm{d}d")(c, virtual_batch_size=2),
        "renorm": lambda c: RENORMS[d](c),
        "sync": lambda c: nn.SyncBatchNorm(c),
    }[home]
    model = sequence(CONVS[d](3, 4, 2), make(4), nn.ReLU(), make(4))
    folded = fold(model)
    assert [type(folded[i]) for i in (1, 3)] == [nn.Identity, ChannelAffine]
    assert_same(folded, model, randn(2, 3, *SIZES[d], dtype=WIDE))


def test_frozen_norms_are_known_by_their_buffers():
    frozen = pytest.importorskip("torchvision").ops.FrozenBatchNorm2d
    model = sequence(nn.Conv2d(3, 4, 3), frozen(4), nn.ReLU(), frozen(4))
    folded = fold(model)
    assert [type(folded[i]) for i in (1, 3)] == [nn.Identity, ChannelAffine]
    assert not any(p.requires_grad for p in folded[3].parameters())
    assert_same(folded, model, images())


@pytest.mark.parametrize("name", ["BatchNormAct2d", "FrozenBatchNormAct2d"])
def test_timms_norms_keep_their_activation(name):
    kind = getattr(pytest.importorskip("timm.layers.norm_act"), name)
    model = sequence(nn.Conv2d(3, 4, 3), kind(4), kind(4), kind(4, apply_act=False))
    folded = fold(model)
    assert [type(folded[i]) for i in (1, 2)] == [nn.Sequential] * 2
    assert type(folded[1].act) is nn.ReLU
    assert isinstance(folded[2].affine, ChannelAffine)
    assert isinstance(folded[3], ChannelAffine)
    assert_same(folded, model, images())


@pytest.mark.parametrize("pool", [None, 2])
@pytest.mark.parametrize("activation", ["relu", "gelu", None])
def test_a_norm_with_activation_keeps_what_it_does_besides(activation, pool):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.bn1 = gb.BatchNormAct2d(3, activation=activation, pool=pool)
            self.bn2 = gb.BatchNormAct2d(3, activation=activation)

        def forward(self, x):
            y = self.bn1(self.conv(x), residual=x)
            return self.bn2(y, y)

    model = filled(Block().double()).eval()
    folded = fold(model, images())
    assert isinstance(folded.bn1, Activate)
    assert folded.bn1.affine is None
    assert isinstance(folded.bn2.affine, ChannelAffine)
    assert_same(folded, model, images())


def test_a_batch_norm_alone_becomes_scale_and_shift():
    model = filled(nn.BatchNorm2d(3).double()).eval()
    folded = fold(model, images())
    assert isinstance(folded, ChannelAffine)
    assert_same(folded, model, images())


@pytest.mark.parametrize("fused", [False, True], ids=["as it is", "accelerated"])
def test_the_tutorials_network_folds_completely(fused):
    from gammabeta.bench.models import TorchNet

    for model in (gb.Net().double(), TorchNet().double()):
        model = filled(model).eval()
        expected = copy.deepcopy(model)
        if fused:
            gb.accelerate(model)
        folded = fold(model, images(size=32))
        assert folded.gammabeta_report.merged == 4
        assert not folded.gammabeta_report.left
        assert type(folded) is type(expected)
        assert_same(folded, expected, images(size=32))


@given(
    channels=st.integers(1, 3),
    groups=st.integers(1, 3),
    width=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    transposed=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_any_shape_folds_exactly(
    channels, groups, width, kernel, stride, padding, transposed, seed
):
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    conv = kind(
        channels * groups, width * groups, kernel, stride=stride, padding=padding, groups=groups
    )
    norms = nn.BatchNorm2d(channels * groups), nn.BatchNorm2d(width * groups)
    model = nn.Sequential(norms[0], conv, norms[1]).double().eval()
    for bn in norms:
        fill(bn, seed)
    folded = fold(model)
    assert isinstance(folded[2], nn.Identity)
    assert isinstance(folded[0], ChannelAffine if padding or transposed else nn.Identity)
    assert_same(folded, model, randn(2, channels * groups, 7, 5, seed=seed, dtype=WIDE), 1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_scale_and_shift_are_as_near_as_the_batch_norm(dtype, last):
    x = randn(4, 6, 5, 7, dtype=dtype)
    x = x.to(memory_format=torch.channels_last) if last else x
    bn = fill(nn.BatchNorm2d(6)).eval()
    folded = fold(bn)
    exact = fold(copy.deepcopy(bn).double())
    with torch.no_grad():
        y, want, theirs = folded(x), exact(x.double()), bn(x)
    assert (y.dtype, y.stride()) == (theirs.dtype, theirs.stride())
    noise = float((theirs.double() - want).abs().max())
    assert float((y.double() - want).abs().max()) <= noise + 4 * unit(dtype) * float(
        want.abs().max()
    )


@pytest.mark.parametrize(
    "shape", [(4, 3), (4, 3, 5), (2, 3, 2, 2), (2, 3, 1, 2, 3), (0, 3, 2), (2, 3, 0)]
)
def test_scale_and_shift_take_any_rank_and_give_gradients(shape):
    layer = ChannelAffine(randn(3, dtype=WIDE), randn(3, seed=1, dtype=WIDE))
    x = randn(*shape, dtype=WIDE).requires_grad_()
    spread = (-1, *[1] * (len(shape) - 2))
    want = x * layer.weight.view(spread) + layer.bias.view(spread)
    torch.testing.assert_close(layer(x), want)
    inputs = (x, layer.weight, layer.bias)
    dy = randn(*shape, seed=2, dtype=WIDE)
    got = torch.autograd.grad(layer(x), inputs, dy)
    torch.testing.assert_close(got, torch.autograd.grad(want, inputs, dy))


def test_another_number_of_channels_is_refused():
    layer = ChannelAffine(torch.ones(3), torch.zeros(3))
    for shape in ((2, 1, 4, 4), (2, 4, 4, 4), (2, 1)):
        with pytest.raises((RuntimeError, ValueError), match="3"):
            layer(torch.ones(shape))


def test_what_parameters_are_stays():
    conv = nn.Conv2d(3, 4, 3, bias=False).to(memory_format=torch.channels_last)
    model = sequence(
        conv,
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.BatchNorm2d(4),
        dtype=torch.float32,
    )
    model[0].weight.requires_grad_(False)
    model[5].weight.requires_grad_(False)
    folded = fold(model)
    assert folded[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not folded[0].weight.requires_grad
    assert not folded[0].bias.requires_grad
    assert folded[2].weight.requires_grad
    assert [p.requires_grad for p in folded[5].parameters()] == [False, True]
    assert all(type(p) is nn.Parameter and p.is_leaf for p in folded.parameters())


def snapshot(model):
    """All there is to a model: tensors and their identity, modes, classes, hooks, attributes."""
    tensors = [(n, t, t.clone(), t._version) for n, t in model.state_dict(keep_vars=True).items()]
    modules = [
        (
            n,
            m,
            type(m),
            m.training,
            {k: dict(v) if isinstance(v, dict) else v for k, v in vars(m).items()},
        )
        for n, m in model.named_modules()
    ]
    return tensors, modules


def assert_untouched(model, before):
    tensors, modules = before
    now = model.state_dict(keep_vars=True)
    assert list(now) == [name for name, *_ in tensors]
    for name, tensor, value, version in tensors:
        assert now[name] is tensor
        assert tensor._version == version
        assert torch.equal(tensor, value)
    after = snapshot(model)[1]
    assert [(n, id(m), kind, mode) for n, m, kind, mode, _ in modules] == [
        (n, id(m), kind, mode) for n, m, kind, mode, _ in after
    ]
    for (*_, mine), (*_, theirs) in zip(modules, after, strict=True):
        assert mine.keys() == theirs.keys()
        assert all(mine[k] is theirs[k] or mine[k] == theirs[k] for k in mine)


def mixed():
    """Modes of both kinds, a hook, a rewritten forward."""
    model = sequence(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        nn.BatchNorm2d(4),
    )
    gb.accelerate(model)
    model[2].register_forward_hook(lambda *_: None)
    model[4].train()
    model[5].train()
    return model


@pytest.mark.parametrize("example", [None, images()], ids=["alone", "verified"])
def test_the_model_is_left_as_it_was(example):
    model = mixed()
    before, rng = snapshot(model), torch.get_rng_state()
    folded = fold(model, example)
    assert_untouched(model, before)
    assert torch.equal(torch.get_rng_state(), rng)
    memory = {p.data_ptr() for p in model.state_dict().values()}
    assert not memory & {p.data_ptr() for p in folded.state_dict().values()}
    assert [m.training for m in folded.modules()] == [m.training for m in model.modules()]
    assert torch.equal(folded[4].running_mean, model[4].running_mean)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_model_is_left_as_it_was_when_any_call_fails(monkeypatch, error):
    """Of all calls of modules that folding makes, the n-th raises, for every n."""
    model, x = mixed(), images()
    before, original, ended = snapshot(model), nn.Module.__call__, []
    for n in range(99):
        calls = iter(range(999))

        def fails(self, *args, calls=calls, n=n, **kwargs):
            if next(calls) == n:
                raise error("stop")
            return original(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(nn.Module, "__call__", fails)
            try:
                fold(model, x)
                ended.append("done")
            except (gb.GammabetaError, error) as raised:
                ended.append(type(raised).__name__)
        assert_untouched(model, before)
        if next(calls) <= n:
            break
    assert len(ended) > 20
    assert ended[-1] == "done"
    assert error.__name__ in ended


def test_a_folded_model_is_an_ordinary_model(tmp_path):
    model = filled(gb.Net()).eval()
    folded, x = fold(model), images(size=32, dtype=torch.float32)
    with torch.no_grad():
        want = folded(x)
        others = [copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))]  # noqa: S301
        fresh = fold(gb.Net().eval())
        fresh.load_state_dict(folded.state_dict())
        torch.save(folded, tmp_path / "model.pt")
        others += [fresh, torch.load(tmp_path / "model.pt", weights_only=False)]
        for other in others:
            assert torch.equal(other(x), want)
    assert not any("running" in key or "_zero" in key for key in folded.state_dict())
    assert str(folded.gammabeta_report) == str(others[0].gammabeta_report)


def test_folding_again_changes_nothing():
    model = sequence(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    once = fold(model)
    again = fold(once, images())
    assert not again.gammabeta_report.done
    assert all(
        torch.equal(a, b) for a, b in zip(once.parameters(), again.parameters(), strict=True)
    )


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_no_batch_norm_is_left_in_an_exported_graph(last):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)
            )

        def forward(self, x):
            return self.body(x)

    model = filled(Both()).eval()
    folded, x = fold(model), images(dtype=torch.float32)
    x = x.to(memory_format=torch.channels_last) if last else x
    for strict in (True, False):
        program = torch.export.export(folded, (x,), strict=strict)
        assert not any("batch_norm" in str(node.target) for node in program.graph.nodes)
        assert_same(program.module(), model, x, 1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is on its way out
        assert "batch_norm" not in str(torch.jit.trace(folded, x).inlined_graph)
    graph = torch.fx.symbolic_trace(folded)
    assert_same(graph, model, x, 1e-5)


def test_a_folded_net_exports():
    model = filled(gb.Net()).eval()
    x = images(size=32, dtype=torch.float32)
    program = torch.export.export(fold(model), (x,))
    assert not any("batch_norm" in str(node.target) for node in program.graph.nodes)
    assert_same(program.module(), model, x, 1e-5)


def test_a_folded_model_can_be_trained_further():
    model = sequence(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    folded = fold(model)
    F.mse_loss(folded(images()), torch.zeros(2, 4, 6, 6, dtype=WIDE)).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in folded.parameters())


def test_the_report_says_what_each_norm_became():
    torch.manual_seed(0)
    model = sequence(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)),
        *(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(4)),
    )
    model[6].train()
    report = fold(model, images()).gammabeta_report
    lines = str(report).splitlines()
    assert lines[:4] == [
        "done  1: merged into 0 (Conv2d)",
        "done  3: a scale and a shift a channel (ChannelAffine)",
        "left  3: not merged into 4 (Conv2d): it pads with zeros, where the batch norm's shift "
        "would be missing",
        "left  6: is in training mode: call model.eval() first",
    ]
    assert lines[4].startswith("verified: largest difference ")
    assert (report.merged, report.affine) == (1, 1)
    assert 0 <= report.verified.error <= report.verified.bound < 1e-12
    assert np.isfinite(report.verified.bound)
