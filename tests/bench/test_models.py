"""Models by name: the reference network is ours in torch's layers; wrong names are explained."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from gammabeta import GammabetaError, Net
from gammabeta.bench.jobs import Settings, plan
from gammabeta.bench.models import TorchNet, build


def test_the_torch_net_computes_what_ours_computes():
    theirs, ours = build("net", 16), Net(image_size=16)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(4, 3, 16, 16)
    for mode in (True, False):
        torch.testing.assert_close(theirs.train(mode)(images), ours.train(mode)(images))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_the_torch_net_has_torchs_layers_alone():
    kinds = {type(module) for module in TorchNet().children()}
    assert kinds == {nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d}


def test_weights_depend_on_the_seed_alone_and_the_generator_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    first, second, other = build("net", 8), build("net", 8), build("net", 8, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.fc2.weight, second.fc2.weight)
    assert not torch.equal(first.fc2.weight, other.fc2.weight)


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "timm:test_resnet"])
def test_a_librarys_model_is_built_in_training_mode(name):
    pytest.importorskip(name.partition(":")[0])
    assert build(name, 64).training


def test_a_model_with_auxiliary_outputs_is_built_without_them():
    pytest.importorskip("torchvision")
    model = build("torchvision:googlenet", 32)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 1000)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", "model is 'resnet18', but must be net, torchvision:NAME or timm:NAME"),
        ("torchvision", "must be net"),
        ("jax:resnet", "must be net"),
        ("torchvision:resnet81", "no model 'resnet81'; did you mean resnet18"),
        ("timm:xyzzy", "no model 'xyzzy'; it has"),
    ],
)
def test_an_unknown_name_is_refused_with_a_hint(name, message):
    library = name.partition(":")[0]
    if library in {"torchvision", "timm"}:
        pytest.importorskip(library)
    with pytest.raises(GammabetaError, match=message):
        build(name, 32)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_missing_library_says_what_to_install(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(GammabetaError, match=f"pip install {library}"):
        build(f"{library}:resnet18", 32)


@pytest.mark.parametrize("size", [0, 4, 33])
def test_an_image_size_that_does_not_fit_the_net_is_refused(size):
    with pytest.raises(GammabetaError, match=f"image_size is {size}"):
        build("net", size)


def test_a_model_on_which_torch_may_crash_is_refused_before_it_runs():
    with pytest.raises(GammabetaError, match=r"repvgg_a0 .*stem\.conv.*torch may crash"):
        plan(Settings(model="timm:repvgg_a0", batch_size=2, image_size=32))
