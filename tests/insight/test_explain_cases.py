"""Models and batches out of the ordinary: what is said of them, and that nothing is touched."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import gammabeta
from gammabeta import equations as eq
from gammabeta.errors import GammabetaError
from gammabeta.insight.explain import explain
from norm_helpers import fill, randn
from trace_helpers import BrokenError, state


def conv_net(*norms):
    """Return two convolutions with the given norms between, and a classifier."""
    first, second = norms
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), first, nn.ReLU(), nn.Conv2d(4, 4, 3), second,
        nn.ReLU6(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, 5),
    )  # fmt: skip


def images(n=6):
    return randn(n, 3, 8, 8)


def told(model, *args, **options):
    """Return an explanation's dictionary, having been through JSON."""
    return json.loads(explain(model, *args, **options).to_json())


class Counter:
    """Counts calls, and raises at one of them. Not a part of the model, so nothing resets it."""

    def __init__(self):
        self.calls, self.at = {"forward": 0, "backward": 0}, None

    def __call__(self, way):
        self.calls[way] += 1
        if self.at == (way, self.calls[way]):
            raise BrokenError


class Counted(nn.Module):
    """Passes its input on, and counts."""

    def __init__(self, counter):
        super().__init__()
        self.counter = counter

    def forward(self, x):
        self.counter("forward")
        x = x * 1
        if x.requires_grad:
            x.register_hook(lambda _: self.counter("backward"))
        return x


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_nothing_is_touched_whichever_pass_fails(way):
    torch.manual_seed(0)
    counter = Counter()
    norms = (nn.BatchNorm2d(4), gammabeta.BatchNormAct2d(4))
    model = nn.Sequential(conv_net(*norms), Counted(counter))
    model(images(4)).square().sum().backward()
    counter.__init__()
    explain(model, images(4), population=[images(2)])
    total = counter.calls[way]
    for at in range(1, total + 1):
        counter.__init__()
        counter.at = (way, at)
        before = state(model)
        with pytest.raises(BrokenError):
            explain(model, images(4), population=[images(2)])
        assert state(model) == before
    assert total == {"forward": 2 + 1 + 1 + 2 + 24, "backward": 2}[way]


@pytest.mark.parametrize("name", ["timm", "Net", "accelerated"])
def test_explaining_leaves_no_trace(name):
    model = {
        "timm": lambda: timm.create_model("mobilenetv3_small_050", num_classes=4),
        "Net": lambda: gammabeta.Net(4, 8),
        "accelerated": lambda: gammabeta.accelerate(
            conv_net(nn.BatchNorm2d(4), nn.BatchNorm2d(4)), images()
        ),
    }[name]()
    model(images()).square().sum().backward()
    model.eval()
    x = images()
    before, bits = state(model), x.clone()
    explain(model, x, population=[images(3)])
    assert state(model) == before
    assert torch.equal(x, bits)
    assert (x.grad, x.requires_grad) == (None, False)


def test_the_same_call_gives_the_same_numbers():
    model = conv_net(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    first, second = (told(model, images()) for _ in range(2))
    del first["created"], second["created"]
    assert first == second


def test_a_model_without_batch_norm_says_so():
    data = told(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), images())
    assert data["limits"] == ["no-batch-norm"]
    assert (data["layers"], data["modes"], data["gradients"]) == ([], None, None)
    assert data["model"]["parameters"] == 579


def test_one_image_has_statistics_over_pixels_where_there_are_any():
    torch.manual_seed(0)
    model = gammabeta.Net(4, 16)
    data = told(model, images(1).repeat(1, 1, 2, 2))
    assert data["limits"][:2] == ["one-image", "one-value"]
    by = {layer["path"]: layer for layer in data["layers"]}
    assert [by[p]["statistics"] for p in ("bn1", "bn2", "bn3", "bn4")] == [
        "batch", "batch", "batch", "running",
    ]  # fmt: skip
    assert by["bn1"]["values"] == 256
    assert by["bn1"]["noise"]["mean_measured"] is None
    assert by["bn1"]["channels"][0]["backward"]["check"]["digits"] >= 4
    told_of = by["bn4"]["channels"][0]
    assert (told_of["mean"], told_of["var"], told_of["count"]) == (0.0, 1.0, 1)
    assert told_of["backward"]["mean"] == [0.0]
    assert (data["modes"], data["gradients"]) == (None, None)


def test_one_value_without_running_statistics_cannot_be_explained():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(GammabetaError, match="1 has no running statistics and one value a channel"):
        explain(model, randn(1, 3))


def test_a_frozen_layer_is_told_with_the_statistics_that_it_uses():
    model = conv_net(fill(nn.BatchNorm2d(4)), fill(gammabeta.BatchNorm2d(4)))
    gammabeta.freeze(model, affine=True)
    data = told(model, images())
    assert [layer["frozen"] for layer in data["layers"]] == [True, True]
    assert data["modes"]["parts_at"] is None
    for layer, place in zip(data["layers"], (1, 4), strict=True):
        assert layer["per_channel"]["grad_weight"] is None
        for c in layer["channels"]:
            norm = model[place]
            assert c["mean"] == float(norm.running_mean[c["index"]])
            assert c["running"]["mean_after"] == c["running"]["mean_before"]
            assert c["running"]["momentum"] == 0
            assert c["check"]["digits"] >= 5
            assert c["backward"]["check"]["digits"] >= 5
            scale = c["gamma"] / c["std"]
            np.testing.assert_allclose(c["backward"]["jacobian"], np.eye(8) * scale, rtol=1e-6)


def test_a_model_that_needs_no_gradient_has_one_at_its_layers_all_the_same():
    model = conv_net(nn.BatchNorm2d(4), nn.BatchNorm2d(4)).requires_grad_(False)
    data = told(model, images())
    assert data["gradients"] is None
    assert data["layers"][0]["per_channel"]["grad_weight"] is None
    assert data["layers"][0]["channels"][0]["backward"]["check"]["digits"] >= 4


def test_layers_without_running_statistics_or_parameters_are_told():
    model = conv_net(
        nn.BatchNorm2d(4, track_running_stats=False), nn.BatchNorm2d(4, affine=False, eps=0.1)
    )
    first, second = told(model, images())["layers"]
    assert first["tracks"] is False
    assert first["per_channel"]["running_mean"] is None
    assert first["channels"][0]["running"] is None
    assert second["per_channel"]["weight"] is None
    assert (second["channels"][0]["gamma"], second["channels"][0]["beta"]) == (1.0, 0.0)
    assert second["eps"] == 0.1


def test_activations_are_found_with_what_they_kill():
    model = conv_net(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([-1e3, 0.0, 1e3, 0.0]))
        model[4].bias.fill_(1e3)
    first, second = told(model, images())["layers"]
    assert (first["activation"], second["activation"]) == ("relu", "relu6")
    assert first["per_channel"]["dead"][0] == 1.0
    assert first["per_channel"]["dead"][2] == 0.0
    assert 0.2 < first["per_channel"]["dead"][1] < 0.8
    assert first["per_channel"]["saturated"] is None
    assert second["per_channel"]["saturated"] == [1.0] * 4
    assert first["channels"][0]["values"]["z"] == [0.0] * 8


class Functional(nn.Module):
    """Activations as functions, one of them after a sum, one out of reach."""

    def __init__(self):
        super().__init__()
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, x):
        y = F.leaky_relu(self.bn1(x), 0.3)
        y = F.relu(self.bn2(y) + x)
        return torch.sigmoid(self.bn3(y))


def test_functional_activations_are_found_by_data_flow():
    layers = told(Functional(), images())["layers"]
    assert [layer["activation"] for layer in layers] == ["leaky_relu", "relu", None]
    assert [layer["adds"] for layer in layers] == [False, True, False]
    assert layers[0]["per_channel"]["dead"] is not None
    assert layers[1]["per_channel"]["dead"] is None  # what is added is not known
    assert layers[1]["channels"][0]["values"]["z"] is None


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = gammabeta.BatchNormAct2d(3)

    def forward(self, x):
        return self.bn(x * 2, x)


def test_what_a_fused_layer_adds_is_part_of_its_activation():
    c = told(Residual(), images())["layers"][0]["channels"][0]
    sums = np.add(c["values"]["y"], c["values"]["residual"])
    assert c["values"]["z"] == np.maximum(sums, 0).tolist()
    x = images().double()
    z = eq.batch_norm(x * 2) + x.numpy()
    dead = told(Residual(), images())["layers"][0]["per_channel"]["dead"]
    np.testing.assert_allclose(dead, (z <= 0).mean(axis=(0, 2, 3)), atol=1e-3)


class Stream(nn.Module):
    """A batch norm whose activation works in place, on an input that others read."""

    def __init__(self):
        super().__init__()
        self.bn, self.head = timm.layers.BatchNormAct2d(3), nn.Linear(3, 4)

    def forward(self, x):
        x = x - 1
        return self.head((self.bn(x) + x).mean((2, 3)))


def test_an_activation_in_place_writes_into_no_stream_where_batch_norm_is_left_out():
    model, labels = Stream(), torch.arange(6) % 4
    x = images() - 1
    expected = F.cross_entropy(model.head((x.relu() + x).mean((2, 3))), labels)
    data = told(model, images(), labels)
    assert data["gradients"]["loss_without"] == pytest.approx(expected.item(), rel=1e-5)


def test_the_modes_differ_in_batch_norm_alone():
    model = conv_net(fill(nn.BatchNorm2d(4)), fill(nn.BatchNorm2d(4)))
    modes = told(model, images())["modes"]
    model.eval()
    model[1].train(), model[4].train()
    np.testing.assert_allclose(modes["logits_train"], model(images()).detach(), rtol=1e-5)


def test_ghost_batches_are_told_by_their_first_part():
    model = nn.Sequential(gammabeta.BatchNorm2d(3, virtual_batch_size=4))
    x = images(9)
    data = told(model, x)
    layer = data["layers"][0]
    assert "ghost-batches" in data["limits"]
    assert (layer["virtual_batch_size"], layer["values"]) == (4, 256)
    mean, _ = eq.batch_statistics(x[:4])
    assert [c["mean"] for c in layer["channels"]] == mean.tolist()
    assert all(c["check"]["digits"] >= 5 for c in layer["channels"])
    assert all(c["backward"]["check"]["digits"] >= 4 for c in layer["channels"])
    assert layer["channels"][0]["running"] is None


class Odd(nn.Module):
    """A shared layer, an unreached one, a renorm, and several outputs."""

    def __init__(self):
        super().__init__()
        self.bn, self.spare = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.renorm = gammabeta.BatchRenorm2d(3)

    def forward(self, x):
        y = self.renorm(self.bn(self.bn(x)))
        return {"count": torch.tensor(3), "out": (y.mean((2, 3)), y)}


def test_what_is_shared_unreached_or_of_another_formula_is_said():
    data = told(Odd(), images(), labels=torch.tensor([0, 1, 2, 0, 1, 2]))
    assert data["limits"] == ["batch-renorm", "unreached-layers", "shared-layers"]
    assert data["model"]["unreached"] == ["spare"]
    assert data["layers"][0]["calls"] == 2
    assert data["data"]["target"] == "labels"
    assert np.shape(data["modes"]["logits_eval"]) == (6, 3)


def test_the_callers_own_loss_is_used():
    model = conv_net(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    data = told(model, images(), loss=lambda y, _: y.square().mean())
    model.train()
    torch.manual_seed(0)
    expected = model(images()).square().mean()
    assert data["data"]["target"] == "given"
    assert data["gradients"]["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_large_model_stays_below_a_megabyte():
    text = explain(timm.create_model("densenet121"), randn(2, 3, 64, 64)).to_json()
    assert len(text.encode()) < 1_000_000
    data = json.loads(text)
    assert {"layers-folded", "channels-folded", "classes-folded"} <= {*data["limits"]}
    assert len(data["layers"]) == data["model"]["batch_norms"]
    assert sum(bool(layer["channels"]) for layer in data["layers"]) == 64


def test_many_layers_are_folded():
    blocks = [nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(170)]
    data = told(nn.Sequential(*blocks), images(2))
    assert (len(data["layers"]), data["model"]["batch_norms"]) == (160, 170)
    assert "layers-folded" in data["limits"]
    assert (data["layers"][0]["path"], data["layers"][-1]["path"]) == ("0.1", "169.1")


def test_numbers_that_are_not_finite_are_null():
    x = images()
    x[0, 0, 0, 0] = float("nan")
    with np.errstate(all="ignore"):
        data = told(nn.Sequential(nn.BatchNorm2d(3)), x)
    means = data["layers"][0]["per_channel"]["batch_mean"]
    assert means[0] is None
    assert means[1] is not None


@pytest.mark.parametrize(
    ("batch", "labels", "says"),
    [
        (torch.zeros(0, 3, 8, 8), None, "N of 1 or more"),
        (torch.zeros(8), None, "must be a tensor"),
        ([1, 2], None, "not int"),
        ((images(), torch.zeros(6), 3), None, "a pair of images and labels"),
        (images(), torch.zeros(5, dtype=torch.long), r"one an image, not torch.int64 \(5,\)"),
        (images(), torch.zeros(6), "class indices"),
        (images(), torch.full((6,), 5), "run from 5 to 5, but the model has 5 classes"),
    ],
)
def test_a_wrong_call_is_refused_with_what_to_do(batch, labels, says):
    with pytest.raises(GammabetaError, match=says):
        explain(conv_net(nn.BatchNorm2d(4), nn.BatchNorm2d(4)), batch, labels)


def test_a_pair_is_a_batch_and_classes_are_named():
    model = conv_net(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    explanation = explain(
        model, (images(), torch.arange(6) % 5), classes="abcde", name="mine", data_name="noise"
    )
    explanation.command = "gammabeta explain"
    data = explanation.to_dict()
    assert (data["model"]["name"], data["data"]["name"]) == ("mine", "noise")
    assert data["data"]["classes"] == ["a", "b", "c", "d", "e"]
    assert data["data"]["labels"] == [0, 1, 2, 3, 4, 0]
    assert data["command"] == "gammabeta explain"
    assert repr(explanation) == "Explanation(mine, 2 batch norms)"


def test_a_compiled_model_is_the_model_inside():
    model = conv_net(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    compiled = torch.compile(model, backend="eager")
    compiled(images())
    assert [layer["path"] for layer in explain(compiled, images()).layers] == ["1", "4"]
