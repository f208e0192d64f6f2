"""What the suite says of real classes: ours, torch's, and others where they are installed."""

from __future__ import annotations

import pytest
from torch import nn

import gammabeta
from gammabeta.testing import check_batch_norm

OURS = (
    gammabeta.BatchNorm1d,
    gammabeta.BatchNorm2d,
    gammabeta.BatchNorm3d,
    gammabeta.BatchNormAct1d,
    gammabeta.BatchNormAct2d,
    gammabeta.BatchNormAct3d,
)
KNOWN_OF_TORCH = {
    "float32 with mean 1e4 and deviation 1e-2 keeps its variance within 1 %",
    "float32 with mean 1e6 and deviation 1 keeps its variance within 1 %",
    "activation checkpointing updates the statistics once",
    "buffers may be overwritten between two forwards and a backward",
    "torch.compile(fullgraph=True) with momentum=None changes nothing",
}


@pytest.mark.parametrize("cls", OURS)
def test_our_classes_keep_every_behaviour(cls):
    report = check_batch_norm(cls)
    assert report.passed, report


@pytest.mark.parametrize("cls", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
def test_torch_fails_no_behaviour_but_the_known_ones(cls):
    assert {result.name for result in check_batch_norm(cls).failures} <= KNOWN_OF_TORCH


def test_a_frozen_class_is_not_asked_to_train():
    ops = pytest.importorskip("torchvision.ops", reason="torchvision is not installed")
    report = check_batch_norm(ops.FrozenBatchNorm2d)
    idle = {r.name for r in report.results if r.reason == "it is frozen: it never trains"}
    assert "num_batches_tracked counts the training batches" in idle
    assert "eval output uses the running statistics" not in idle | {
        result.name for result in report.failures
    }


def test_timm_loses_its_activation_in_conversion_to_sync():
    layers = pytest.importorskip("timm.layers", reason="timm is not installed")
    name = "convert_sync_batchnorm keeps eval output, or raises"
    assert not check_batch_norm(layers.BatchNormAct2d, behaviours=[name]).passed
