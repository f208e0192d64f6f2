"""Tools that know torch's batch norm and not ours are right or fail, and never silently wrong."""

from __future__ import annotations

import importlib.util
import warnings

import pytest
import torch
from torch import nn
from torch.fx.experimental import optimization
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim import swa_utils

import gammabeta
from norm_helpers import assert_same, fill, randn

NORMS = {
    "torch": lambda: nn.BatchNorm2d(3),
    "plain": lambda: gammabeta.BatchNorm2d(3),
    "act": lambda: gammabeta.BatchNormAct2d(3, activation="silu"),
}
OURS = pytest.mark.parametrize("make", [NORMS["plain"], NORMS["act"]], ids=["plain", "act"])
X = randn(4, 3, 6, 6)


def model(make):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 3, 3), fill(make()), nn.Conv2d(3, 2, 1)).eval()


@pytest.mark.parametrize("momentum", [0.1, None])
@OURS
def test_update_bn_recomputes_what_it_does_for_torch(make, momentum):
    batches = [randn(4, 3, 6, 6, seed=s) + s for s in range(3)]
    ours, theirs = model(make), model(NORMS["torch"])
    for m in (ours, theirs):
        norm = getattr(m[1], "bn", m[1])
        norm.momentum = momentum
        swa_utils.update_bn(batches, m)
        assert norm.momentum == momentum
        assert not m.training
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))
    assert ours.state_dict()["1.num_batches_tracked"] == 3


def test_averaged_models_average_statistics_too():
    source = model(NORMS["act"])
    averaged = swa_utils.AveragedModel(source, use_buffers=True)
    for seed in range(2):
        fill(source, seed)
        averaged.update_parameters(source)
    state = [fill(model(NORMS["act"]), seed).state_dict() for seed in range(2)]
    expected = {k: (state[0][k] + state[1][k]) / 2 for k in state[0] if "tracked" not in k}
    got = averaged.module.state_dict()
    torch.testing.assert_close({k: got[k] for k in expected}, expected)


@OURS
def test_convert_sync_batchnorm_keeps_output_and_keys(make):
    subject = model(make)
    keys, expected = list(subject.state_dict()), subject(X)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(subject)
    assert any(isinstance(m, nn.SyncBatchNorm) for m in synced.modules())
    assert list(synced.state_dict()) == keys
    torch.testing.assert_close(synced.eval()(X), expected)


def test_fusing_conv_and_batch_norm_is_right_for_the_plain_layer():
    subject = model(NORMS["plain"])
    fused = fuse_conv_bn_eval(subject[0], subject[1])
    torch.testing.assert_close(fused(X), subject[:2](X))


def test_fusing_conv_and_activated_batch_norm_is_a_clear_error():
    subject = model(NORMS["act"])
    with pytest.raises(AttributeError, match=r"BatchNormAct2d.*no attribute 'running_mean'"):
        fuse_conv_bn_eval(subject[0], subject[1])


@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)
def test_fx_fusing_keeps_the_output(make):
    subject = model(make)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations
        fused = optimization.fuse(subject)
    torch.testing.assert_close(fused(X), subject(X))


@OURS
def test_functional_patching_of_running_statistics_works(make):
    from torch.func import replace_all_batch_norm_modules_

    subject = replace_all_batch_norm_modules_(model(make)).train()
    norm = getattr(subject[1], "bn", subject[1])
    assert norm.running_mean is None
    y = torch.func.vmap(subject, randomness="error")(X.unsqueeze(1).expand(-1, 2, -1, -1, -1))
    torch.testing.assert_close(y[0], subject(X[:1].expand(2, -1, -1, -1)))


@OURS
def test_pruning_the_weight_is_respected(make):
    from torch.nn.utils import prune

    subject = model(make)
    prune.custom_from_mask(getattr(subject[1], "bn", subject[1]), "weight", torch.tensor([1, 0, 1]))
    twin = model(make)
    with torch.no_grad():
        getattr(twin[1], "bn", twin[1]).weight[1] = 0
    torch.testing.assert_close(subject(X), twin(X))


@OURS
def test_a_module_swapped_to_half_precision_and_back_is_the_same(make):
    subject = model(make)
    before = {n: t.to(torch.bfloat16).float() for n, t in subject.state_dict().items()}
    subject = subject.to(torch.bfloat16).float()
    got = {n: t.float() for n, t in subject.state_dict().items()}
    assert_same(got, before)


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
@OURS
def test_timms_freezing_keeps_the_output(make):
    from timm.layers import freeze_batch_norm_2d

    subject = model(make)
    expected = subject(X)
    torch.testing.assert_close(freeze_batch_norm_2d(subject).train()(X), expected)


def test_distributed_checkpoint_finds_every_key():
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    subject = model(NORMS["act"])
    assert_same(get_model_state_dict(subject), dict(subject.state_dict()))
