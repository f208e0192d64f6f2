"""Models of torchvision and timm compute after ``fold`` what they computed before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

from gammabeta import fold
from gammabeta.bench.models import build
from norm_helpers import generator
from surgery_helpers import images, near

# Of each: batch norms merged, those that became a scale and a shift, and those left.
ZOO = {
    "torchvision:resnet18": (20, 0, 0),
    "torchvision:mobilenet_v2": (52, 0, 0),
    "torchvision:mobilenet_v3_small": (34, 0, 0),
    "torchvision:densenet121": (59, 62, 0),
    "torchvision:googlenet": (57, 0, 0),
    "torchvision:shufflenet_v2_x0_5": (56, 0, 0),
    "torchvision:mnasnet0_5": (52, 0, 0),
    "torchvision:efficientnet_b0": (49, 0, 0),
    "torchvision:regnet_y_400mf": (53, 0, 0),
    "torchvision:squeezenet1_1": (0, 0, 0),
    "timm:resnet26t": (31, 0, 0),
    "timm:resnetv2_50": (32, 17, 0),
    "timm:efficientnet_lite0": (49, 0, 0),
    "timm:tf_efficientnet_b0": (49, 0, 0),
    "timm:mobilenetv3_small_100": (34, 0, 0),
    "timm:repvgg_a0": (44, 17, 0),
    "timm:hrnet_w18_small": (89, 0, 2),
    "timm:dla34": (37, 0, 0),
    "timm:dpn48b": (33, 21, 0),
    "timm:resnest14d": (23, 0, 0),
    "net": (4, 0, 0),
}


def awake(model):
    """Give every batch norm statistics, γ and β with which a wrong fold shows."""
    source = generator(1)

    def uniform(like, low, high):
        values = torch.rand(like.shape, generator=source, dtype=torch.float64)
        return (low + (high - low) * values).to(like.dtype)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                sign = torch.where(uniform(module.weight, 0, 1) < 0.2, -1.0, 1.0)
                module.weight.copy_(sign * uniform(module.weight, 0.5, 1.5))
                module.bias.copy_(uniform(module.bias, -0.5, 0.5))
                module.running_mean.copy_(uniform(module.bias, -0.5, 0.5))
                module.running_var.copy_(uniform(module.bias, 0.5, 1.5))
    return model.eval()


def counts(folded):
    report = folded.gammabeta_report
    named = dict(folded.named_modules())
    kept = sum(isinstance(m, nn.modules.batchnorm._NormBase) for m in named.values())
    return report.merged, report.affine, kept


@pytest.mark.parametrize("name", ZOO)
def test_a_known_model_computes_what_it_did(name):
    model = awake(build(name, 64)).double()
    folded, x = fold(model), images(size=64)
    assert counts(folded) == ZOO[name]
    assert type(folded) is type(model)
    assert [n for n, _ in model.named_children()] == [n for n, _ in folded.named_children()]
    with torch.no_grad():
        near(folded(x), model(x), 1e-9, "output")


@pytest.mark.parametrize(
    "name", ["torchvision:mobilenet_v3_small", "timm:resnet26t", "timm:dpn48b", "net"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_known_model_is_within_its_bound(name, dtype):
    model, x = awake(build(name, 64)).to(dtype), images(size=64, dtype=dtype)
    verified = fold(model, x).gammabeta_report.verified
    assert verified.how == "on example_inputs"
    assert verified.error <= verified.bound


def test_a_model_of_frozen_batch_norms_folds():
    frozen = torchvision.ops.FrozenBatchNorm2d
    model = torchvision.models.resnet18(norm_layer=frozen).double().eval()
    source = generator(2)
    for module in model.modules():
        if isinstance(module, frozen):
            for name, buffer in module.named_buffers():
                values = torch.rand(buffer.shape, generator=source, dtype=torch.float64)
                buffer.copy_(values + 0.5 if name == "running_var" else values - 0.2)
    folded, x = fold(model), images(size=64)
    assert folded.gammabeta_report.merged == 20
    with torch.no_grad():
        near(folded(x), model(x), 1e-9, "output")
