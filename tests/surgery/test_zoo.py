"""Models of torchvision and timm compute after ``accelerate`` what they computed before."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision

from gammabeta import Net, accelerate, convert
from gammabeta.bench.models import TorchNet
from surgery_helpers import assert_twins, images, twin

T = torchvision.models
# How many batch norms each has, and how many are fused with what follows them.
ZOO = {
    "resnet18": (lambda: T.resnet18(), 20, 17),
    "resnet50": (lambda: T.resnet50(), 53, 49),
    "mobilenet_v2": (lambda: T.mobilenet_v2(), 52, 45),
    "mobilenet_v3_small": (lambda: T.mobilenet_v3_small(), 34, 29),
    "densenet121": (lambda: T.densenet121(), 121, 121),
    "vgg11_bn": (lambda: T.vgg11_bn().features, 8, 8),
    "googlenet": (lambda: T.googlenet(aux_logits=False, init_weights=False), 57, 57),
    "shufflenet_v2_x0_5": (lambda: T.shufflenet_v2_x0_5(), 56, 37),
    "mnasnet0_5": (lambda: T.mnasnet0_5(), 52, 45),
    "efficientnet_b0": (lambda: T.efficientnet_b0(), 49, 42),
    "regnet_y_400mf": (lambda: T.regnet_y_400mf(), 53, 49),
    "squeezenet1_1": (lambda: T.squeezenet1_1(), 0, 0),
    "timm resnet26t": (lambda: timm.create_model("resnet26t"), 31, 27),
    "timm resnetv2_50": (lambda: timm.create_model("resnetv2_50"), 49, 49),
    "timm efficientnet_lite0": (lambda: timm.create_model("efficientnet_lite0"), 49, 42),
    "timm mobilenetv3_small_100": (lambda: timm.create_model("mobilenetv3_small_100"), 34, 29),
    "timm repvgg_a0": (lambda: timm.create_model("repvgg_a0"), 61, 22),
    "timm hrnet_w18_small": (lambda: timm.create_model("hrnet_w18_small"), 91, 73),
    "timm dla34": (lambda: timm.create_model("dla34"), 37, 33),
    "timm dpn48b": (lambda: timm.create_model("dpn48b"), 54, 54),
    "timm convnext_atto": (lambda: timm.create_model("convnext_atto"), 0, 0),
    "the tutorial's network": (lambda: TorchNet(image_size=64), 4, 4),
    "Net": (lambda: Net(image_size=64), 4, 4),
}


@pytest.mark.parametrize("name", ZOO)
def test_a_known_model_computes_what_it_did(name):
    make, norms, fused = ZOO[name]
    torch.manual_seed(0)
    model = make().double()
    reference, keys = twin(model), list(model.state_dict())
    assert accelerate(model) is model
    assert sum(key.endswith("running_mean") for key in keys) == norms
    assert list(model.state_dict()) == keys
    assert [n for n, _ in model.named_modules()] == [n for n, _ in reference.named_modules()]
    assert_twins(model, reference, images(size=64))
    assert sum(e.what.startswith("fused") for e in model.gammabeta_report.done) == fused


@pytest.mark.parametrize(
    "name", ["resnet18", "timm mobilenetv3_small_100", "the tutorial's network"]
)
def test_a_known_model_comes_back(name):
    model = ZOO[name][0]()
    original = twin(model)
    accelerate(model)
    back = convert(model, to="torch", inplace=True)
    assert [type(m) for m in back.modules()] == [type(m) for m in original.modules()]
