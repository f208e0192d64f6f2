"""What folding leaves, each with its reason, and that what it leaves computes what it did."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gammabeta as gb
from gammabeta import GammabetaError, fold
from gammabeta.surgery.folding.affine import ChannelAffine
from norm_helpers import fill, randn
from surgery_helpers import images, near


def build(model):
    for module in model.modules():
        if "running_var" in module._buffers and module._buffers["running_var"] is not None:
            fill(module)
    return model.double().eval()


class Model(nn.Module):
    """Some layers by name, and a forward that is a function of the model and the input."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.how = forward

    def forward(self, x):
        return self.how(self, x)


def conv(**options):
    return nn.Conv2d(3, 3, 3, **{"padding": 1} | options)


def pair(forward, **layers):
    return build(Model(forward, **{"conv": conv(), "bn": nn.BatchNorm2d(3)} | layers))


def simple(m, x):
    return m.bn(m.conv(x))


def outcome(model, x=None, verified=True):
    """Fold, compare, and return the report's lines."""
    x = images() if x is None else x
    folded = fold(model, x if verified else None)
    with torch.no_grad():
        near(folded(x), model(x), 1e-12, "output")
    return str(folded.gammabeta_report).splitlines()[: -1 if verified else None], folded


AFFINE = "done  bn: a scale and a shift a channel (ChannelAffine)"


def kept(reason):
    return [AFFINE, f"left  bn: not merged into {reason}"]


class Twice(nn.Module):
    """A parametrization."""

    def forward(self, w):
        return 2 * w


class Sharper(nn.Conv2d):
    """A convolution whose result is not linear in its weight."""

    def forward(self, x):
        return F.conv2d(x, self.weight / self.weight.norm(), self.bias, padding=1)


class Named(nn.Conv2d):
    """A subclass that computes what its parent does."""

    note = "mine"


def shared_weight():
    model = pair(simple, other=conv())
    model.other.weight = model.conv.weight
    return model


def hooked(name):
    model = pair(simple)
    getattr(model, name).register_forward_hook(lambda *_: None)
    return model


def parametrized(name):
    model = pair(simple)
    nn.utils.parametrize.register_parametrization(getattr(model, name), "weight", Twice())
    return model


NOT_MERGED = {
    "used twice": (
        lambda: pair(lambda m, x: m.bn(y := m.conv(x)) + y),
        "conv (Conv2d): its output is used 2 times",
    ),
    "written in place": (
        lambda: pair(lambda m, x: (y := m.conv(x), y.add_(1), m.bn(y))[2]),
        "conv (Conv2d): its output is used 2 times",
    ),
    "returned too": (
        lambda: pair(lambda m, x: torch.cat([y := m.conv(x), m.bn(y)])),
        "conv (Conv2d): its output is used 2 times",
    ),
    "called twice": (
        lambda: pair(lambda m, x: m.bn(m.conv(m.conv(x)))),
        "conv (Conv2d): it is called at 2 places",
    ),
    "norm called twice": (
        lambda: pair(lambda m, x: m.bn(F.relu(m.bn(m.conv(x))))),
        "conv (Conv2d): the batch norm is called at 2 places, not all beside this layer",
    ),
    "tied weight": (
        shared_weight,
        "conv (Conv2d): its weight is shared: conv.weight and other.weight are one parameter",
    ),
    "hooks": (
        lambda: hooked("conv"),
        "conv (Conv2d): it has hooks, which expect its own input and output",
    ),
    "parametrised": (
        lambda: parametrized("conv"),
        "conv (ParametrizedConv2d): it is parametrised: remove_parametrizations would make it "
        "plain",
    ),
    "unknown subclass": (
        lambda: pair(simple, conv=Sharper(3, 3, 3)),
        "conv (Sharper): Sharper may do more than its parent class",
    ),
    "weight read by the forward": (
        lambda: pair(lambda m, x: simple(m, x) + m.conv.weight.mean()),
        "conv (Conv2d): a forward reads its weight or bias itself",
    ),
    "not finite": (
        lambda: (m := pair(simple), m.conv.weight.data[0].fill_(torch.inf))[0],
        "conv (Conv2d): its weights are not finite",
    ),
    "zero padding after": (
        lambda: pair(lambda m, x: m.conv(m.bn(x))),
        "conv (Conv2d): it pads with zeros, where the batch norm's shift would be missing",
    ),
    "same padding after": (
        lambda: pair(lambda m, x: m.conv(m.bn(x)), conv=conv(padding="same")),
        "conv (Conv2d): it pads with zeros, where the batch norm's shift would be missing",
    ),
    "transposed after": (
        lambda: pair(lambda m, x: m.conv(m.bn(x)), conv=nn.ConvTranspose2d(3, 3, 3)),
        "conv (ConvTranspose2d): a transposed convolution adds up fewer values at its borders",
    ),
    "two readers after": (
        lambda: pair(lambda m, x: m.conv(y := m.bn(x)) + y.sum(), conv=conv(padding=0)),
        "conv (Conv2d): the batch norm's output is used 2 times",
    ),
    "input overwritten after": (
        lambda: pair(
            lambda m, x: (h := m.bn(z := x + 1), z.mul_(2), m.conv(h))[2], conv=conv(padding=0)
        ),
        "conv (Conv2d): the batch norm's input may be overwritten before",
    ),
    "input overwritten by a module": (
        lambda: pair(
            lambda m, x: (h := m.bn(z := x + 1), m.relu(z), m.conv(h))[2],
            conv=conv(padding=0),
            relu=nn.ReLU(inplace=True),
        ),
        "conv (Conv2d): the batch norm's input may be overwritten before",
    ),
    "flattened into": (
        lambda: pair(
            lambda m, x: m.conv(m.bn(x).flatten(1).unsqueeze(1).unflatten(2, (3, -1))[:, :, 0]),
            conv=nn.Conv1d(1, 2, 1),
        ),
        None,
    ),
}


@pytest.mark.parametrize("case", NOT_MERGED)
def test_what_cannot_be_merged_becomes_an_affine_map_and_says_why(case):
    make, reason = NOT_MERGED[case]
    model = make()
    if case == "not finite":
        assert str(fold(model).gammabeta_report).splitlines()[:2] == kept(reason)
        return
    lines, folded = outcome(model)
    assert lines == (kept(reason) if reason else [AFFINE])
    assert isinstance(folded.bn, ChannelAffine)


def eager_norm(**options):
    return nn.BatchNorm2d(3, **options)


class Custom(nn.BatchNorm2d):
    """A batch norm that does more."""

    def forward(self, x):
        return 2 * super().forward(x)


def branching(m, x):
    y = m.bn(m.conv(x))
    return y if y.sum() > 0 else -y


def looking(m, x):
    return m.bn(m.conv(x)) * m.bn.eps


def training():
    model = pair(simple)
    model.bn.train()
    return model


def with_values(**values):
    model = pair(simple)
    for name, value in values.items():
        getattr(model.bn, name).data.fill_(value)
    return model


class FrozenBatchNorm2d(nn.Module):
    """A frozen batch norm that keeps its eps to itself."""

    def __init__(self):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(3))

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


STAYS = {
    "training": (training, "is in training mode: call model.eval() first"),
    "no statistics": (
        lambda: pair(simple, bn=eager_norm(track_running_stats=False)),
        "keeps no running statistics, so it normalises by each batch's own",
    ),
    "hooks": (
        lambda: hooked("bn"),
        "has hooks or a forward of its own, which expect a batch norm: remove them first",
    ),
    "parametrised": (
        lambda: parametrized("bn"),
        "is parametrised: call torch.nn.utils.parametrize.remove_parametrizations first",
    ),
    "subclass": (lambda: pair(simple, bn=Custom(3)), "Custom may do more than a batch norm"),
    "unknown frozen": (
        lambda: pair(simple, bn=FrozenBatchNorm2d()),
        "FrozenBatchNorm2d may do more than a batch norm",
    ),
    "not traceable": (
        lambda: pair(branching),
        "Model's forward, which calls it, cannot be traced: fx stops at: symbolically traced "
        "variables cannot be used as inputs to control flow",
    ),
    "not called": (lambda: pair(lambda m, x: m.conv(x)), "the traced forward does not call it"),
    "looked into": (lambda: pair(looking), "the forward that calls it looks into it"),
    "read": (
        lambda: pair(lambda m, x: simple(m, x) + m.bn.running_mean.sum()),
        "the forward that calls it looks into it",
    ),
    "called by name": (
        lambda: pair(lambda m, x: m.bn(input=m.conv(x))),
        "is called with other arguments than one tensor",
    ),
    "negative": (lambda: with_values(running_var=-1e-9), "has a negative running_var"),
    "infinite": (
        lambda: with_values(weight=torch.inf),
        "has values that are not finite, or eps and running_var are 0",
    ),
    "nan": (
        lambda: with_values(running_mean=torch.nan),
        "has values that are not finite, or eps and running_var are 0",
    ),
}


@pytest.mark.parametrize("case", STAYS)
def test_what_cannot_be_touched_stays_and_says_why(case):
    make, reason = STAYS[case]
    model = make()
    x = images()
    folded = fold(model, x)
    assert str(folded.gammabeta_report).splitlines()[0] == f"left  bn: {reason}"
    assert not folded.gammabeta_report.done
    assert type(folded.bn) is type(model.bn) or case == "parametrised"
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("example", [None, images()], ids=["alone", "verified"])
def test_lazy_layers_are_refused(example):
    model = nn.Sequential(nn.LazyConv2d(3, 3), nn.LazyBatchNorm2d()).eval()
    with pytest.raises(GammabetaError, match="lazy layers: call it once, then fold it"):
        fold(model, example)


def test_values_on_the_meta_device_stay():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to("meta").eval()
    report = fold(model).gammabeta_report
    assert str(report) == "left  1: is on the meta device, without values"


def test_a_norm_over_another_axis_than_the_linear_layers_is_not_merged():
    model = build(Model(lambda m, x: m.bn(m.fc(x)), fc=nn.Linear(4, 3), bn=nn.BatchNorm2d(3)))
    lines, _ = outcome(model, randn(2, 3, 5, 4, dtype=torch.float64))
    assert lines == kept(
        "fc (Linear): its features are the last axis, and BatchNorm2d normalises the second of four"
    )


def test_a_norm_of_another_width_is_not_merged():
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(3), nn.Linear(10, 2)

        def forward(self, x):
            return self.fc(torch.flatten(self.bn(self.conv(x)), 1))

    report = fold(build(Wrong())).gammabeta_report
    assert [e.what for e in report.left] == [
        "not merged into conv (Conv2d): it has 4 channels there, and the batch norm 3",
        "not merged into fc (Linear): 3 channels cannot become its 10 features",
    ]


def test_a_subclass_that_computes_what_its_parent_does_takes_the_norm():
    lines, _ = outcome(pair(simple, conv=Named(3, 3, 3)))
    assert lines == ["done  bn: merged into conv (Named)"]


def test_timms_padding_convolution_takes_the_norm_after_it_alone():
    layers = pytest.importorskip("timm.layers")
    same = layers.Conv2dSame(3, 3, 3, stride=2)
    assert outcome(pair(simple, conv=same))[0] == ["done  bn: merged into conv (Conv2dSame)"]
    same = layers.Conv2dSame(3, 3, 3, stride=2)
    lines, _ = outcome(pair(lambda m, x: m.conv(m.bn(x)), conv=same))
    assert lines == kept(
        "conv (Conv2dSame): it pads with zeros, where the batch norm's shift would be missing"
    )


def test_weights_that_half_precision_cannot_hold_are_not_merged():
    for gamma, why in ((1e6, "large"), (1e-7, "small")):
        model = pair(simple)
        model.conv.half()
        model.bn.float()
        with torch.no_grad():
            model.bn.weight.fill_(gamma)
        report = fold(model).gammabeta_report
        assert [e.what for e in report.left] == [
            f"not merged into conv (Conv2d): the folded weights are too {why} for torch.float16"
        ]


def test_a_pair_that_is_called_at_two_places_folds_in_both():
    lines, _ = outcome(pair(lambda m, x: simple(m, F.relu(simple(m, x)))))
    assert lines == ["done  bn: merged into conv (Conv2d)"]


@pytest.mark.parametrize("off", ["eval", "rate", "function", "method"])
def test_what_does_nothing_is_looked_through(off):
    between = {
        "eval": lambda m, y: m.drop(m.identity(y)),
        "rate": lambda m, y: m.drop(m.identity(y)),
        "function": lambda m, y: F.dropout(y, 0.5, m.training),
        "method": lambda _, y: y.contiguous(),
    }[off]
    model = pair(
        lambda m, x: m.bn(between(m, m.conv(x))),
        drop=nn.Dropout(0.0 if off == "rate" else 0.5),
        identity=nn.Identity(),
    )
    model.drop.train(off == "rate")
    assert outcome(model)[0] == ["done  bn: merged into conv (Conv2d)"]


def test_dropout_that_drops_is_not_looked_through():
    model = pair(lambda m, x: m.bn(m.drop(m.conv(x))), drop=nn.Dropout(0.5))
    model.drop.train()
    folded = fold(model, images())
    assert isinstance(folded.bn, ChannelAffine)
    assert not folded.gammabeta_report.left
    assert "random numbers are drawn" in str(folded.gammabeta_report)


class Inner(nn.Module):
    """A convolution in a module without batch norm."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(F.relu(x))


@pytest.mark.parametrize("inner", [Inner, lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 1))])
def test_a_pair_may_cross_the_borders_of_modules(inner):
    model = pair(simple, conv=inner())
    name = "conv.conv" if isinstance(model.conv, Inner) else "conv.1"
    assert outcome(model)[0] == [f"done  bn: merged into {name} (Conv2d)"]


def test_a_hook_on_a_module_between_keeps_what_it_sees():
    seen = []
    model = pair(simple, conv=Inner())
    model.conv.register_forward_hook(lambda *args: seen.append(args[-1].clone()))
    lines, folded = outcome(model)
    assert lines == [AFFINE]
    with torch.no_grad():
        seen.clear()
        model(images()), folded(images())
    assert torch.equal(*seen)


def test_one_forward_that_cannot_be_traced_costs_only_what_crosses_it():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(conv(), nn.BatchNorm2d(3), nn.ReLU())
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x):
            y = self.bn(self.block(x))
            return y if y.sum() > 0 else -y

    stem = nn.Sequential(conv(), nn.BatchNorm2d(3))
    model = build(nn.Sequential(stem, Odd(), conv(), nn.BatchNorm2d(3)))
    lines, folded = outcome(model)
    assert lines == [
        "done  0.1: merged into 0.0 (Conv2d)",
        "done  1.block.1: merged into 1.block.0 (Conv2d)",
        "done  3: merged into 2 (Conv2d)",
        "left  1.bn: Odd's forward, which calls it, cannot be traced: fx stops at: symbolically "
        "traced variables cannot be used as inputs to control flow",
    ]
    assert type(folded[1]) is Odd


def test_a_pair_inside_a_module_with_hooks_is_folded():
    model = build(nn.Sequential(nn.Sequential(conv(), nn.BatchNorm2d(3)), nn.ReLU()))
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    lines, folded = outcome(model)
    assert lines == ["done  0.1: merged into 0.0 (Conv2d)"]
    calls.clear()
    folded(images())
    assert calls == [1]


def test_a_layer_that_an_untraceable_forward_may_call_too_is_left():
    class Odd(nn.Module):
        def __init__(self, conv):
            super().__init__()
            self.conv, self.bn = conv, nn.BatchNorm2d(3)

        def forward(self, x):
            y = self.conv(x)
            return y if y.sum() > 0 else self.bn(y)

    first = conv()
    model = build(nn.Sequential(nn.Sequential(first, nn.BatchNorm2d(3)), Odd(first)))
    lines, _ = outcome(model)
    assert lines[0] == "done  0.1: a scale and a shift a channel (ChannelAffine)"
    assert lines[1].startswith("left  0.1: not merged into 0.0 (Conv2d): Odd's forward")


def test_an_optional_argument_that_changes_the_way_counts():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = conv(), nn.BatchNorm2d(3)

        def forward(self, x, mask=None):
            y = self.conv(x)
            if mask is not None:
                y = y * mask
            return self.bn(y)

    model = build(Optional())
    folded = fold(model, images())
    with torch.no_grad():
        for arguments in ((images(),), (images(), images())):
            near(folded(*arguments), model(*arguments), 1e-12, "output")


def test_a_shared_batch_norm_is_exchanged_at_every_path():
    bn = nn.BatchNorm2d(3)
    model = build(nn.Sequential(conv(), bn, nn.ReLU(), conv(), bn))
    lines, folded = outcome(model)
    assert lines[0] == "done  1: a scale and a shift a channel (ChannelAffine)"
    assert folded[1] is folded[4]
    shared = build(
        nn.Sequential(layer := nn.Sequential(conv(), nn.BatchNorm2d(3)), nn.ReLU(), layer)
    )
    lines, folded = outcome(shared)
    assert lines == ["done  0.1: merged into 0.0 (Conv2d)"]
    assert folded[0] is folded[2]


def test_a_parameter_that_is_a_view_of_the_folded_one_keeps_its_values():
    model = pair(simple)
    model.view = nn.Parameter(model.conv.weight.detach()[0])
    before = model.view.detach().clone()
    assert torch.equal(fold(model).view, before)


def test_frozen_layers_fold():
    model = gb.freeze(pair(simple).train(), affine=True)
    model.eval()
    assert outcome(model)[0] == ["done  bn: merged into conv (Conv2d)"]


def test_a_model_without_batch_norm_says_so():
    lines, _ = outcome(build(nn.Sequential(conv())), verified=False)
    assert lines == ["left  : the model holds no batch norm"]


def test_a_model_that_cannot_be_copied_is_refused():
    class Locked(nn.Module):
        def __deepcopy__(self, memo):
            raise TypeError("locked")

    with pytest.raises(GammabetaError, match="Locked cannot be copied: locked"):
        fold(Locked())
