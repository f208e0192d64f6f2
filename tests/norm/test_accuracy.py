"""How near float64 the results are: never worse than torch's, and right where torch is wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gammabeta import BatchNorm1d, BatchNorm2d, BatchNorm3d
from norm_helpers import randn, reference

MEANS = [0.0, 1.0, 100.0, 1e4, 1e6]
STDS = [1e-2, 1.0, 100.0]
LAYOUTS = {
    "NC": ((512, 6), torch.contiguous_format),
    "NCL": ((64, 6, 33), torch.contiguous_format),
    "NCHW": ((16, 6, 16, 15), torch.contiguous_format),
    "NHWC": ((16, 6, 16, 15), torch.channels_last),
    "NDHWC": ((4, 6, 4, 16, 15), torch.channels_last_3d),
}
PAIRS = {
    2: (BatchNorm1d, nn.BatchNorm1d),
    3: (BatchNorm1d, nn.BatchNorm1d),
    4: (BatchNorm2d, nn.BatchNorm2d),
    5: (BatchNorm3d, nn.BatchNorm3d),
}
GRID = [
    pytest.mark.parametrize("std", STDS, ids="std={}".format),
    pytest.mark.parametrize("mean", MEANS, ids="mean={:g}".format),
    pytest.mark.parametrize("layout", LAYOUTS),
]
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)


def grid(test):
    for mark in GRID:
        test = mark(test)
    return test


def batch(layout, mean, std, dtype):
    """Data as they are after rounding, so that every error is the layer's."""
    shape, memory = LAYOUTS[layout]
    x = randn(*shape, dtype=torch.float64) * std + mean
    return x.to(dtype).contiguous(memory_format=memory)


def run(kind, x, training):
    """Output, input gradient and statistics, of a layer whose statistics fit the data."""
    wide = x.double()
    axes = [0, *range(2, x.dim())]
    layer = kind(x.shape[1], momentum=1.0, dtype=x.dtype if x.dtype == torch.float64 else None)
    if not training:
        var, mean = torch.var_mean(wide, axes)
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(var)
        layer.eval()
    leaf = x.detach().requires_grad_()
    y = layer(leaf)
    dy = randn(*x.shape, seed=1, dtype=y.dtype)
    (dx,) = torch.autograd.grad(y, leaf, dy)
    return {"y": y.detach(), "dx": dx, "mean": layer.running_mean, "var": layer.running_var}


def exact(x, got, training):
    """The same from float64, with the very statistics that the layer holds in evaluation."""
    leaf = x.detach().double().requires_grad_()
    stats = None if training else (got["mean"].double(), got["var"].double())
    y = reference(leaf, stats=stats)
    dy = randn(*x.shape, seed=1, dtype=x.dtype).double()
    (dx,) = torch.autograd.grad(y, leaf, dy)
    var, mean = torch.var_mean(x.double(), [0, *range(2, x.dim())])
    return {"y": y.detach(), "dx": dx, "mean": mean, "var": var}


def errors(x, kind, training):
    """The largest error of each result, relative to its size; the mean's to the data's."""
    got = run(kind, x, training)
    want = exact(x, got, training)
    sizes = {name: float(t.abs().max()) for name, t in want.items()}
    sizes["mean"] += sizes["var"] ** 0.5
    return {
        name: float((got[name].double() - want[name]).abs().max()) / sizes[name]
        for name in (want if training else ("y", "dx"))
    }


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@DTYPES
@grid
def test_no_result_is_less_accurate_than_torchs(layout, mean, std, dtype, training):
    x = batch(layout, mean, std, dtype)
    if not x.isfinite().all() or (x.double().var() < (std / 2) ** 2):
        x = batch(layout, min(mean, 8 * std), std, dtype)  # what the format can still hold
    ours, theirs = (errors(x, kind, training) for kind in PAIRS[x.dim()])
    ulp = torch.finfo(dtype).eps
    for name, error in ours.items():
        assert error <= 1.5 * theirs[name] + 16 * ulp, (name, ours, theirs)


@grid
def test_float32_statistics_are_right_wherever_the_data_are(layout, mean, std):
    x = batch(layout, mean, std, torch.float32)
    if x.double().var() < (std / 2) ** 2:
        x = x + randn(*x.shape, seed=3).sign() * (x.abs().max() * 2e-7)  # not a constant
    measured = errors(x, PAIRS[x.dim()][0], training=True)
    assert measured["mean"] < 1e-6
    assert measured["var"] < 5e-5
    assert measured["y"] < 5e-5


def test_torchs_variance_is_wrong_far_from_zero_in_channels_last():
    # Without this, the test above would prove nothing that torch cannot do.
    x = batch("NHWC", 1e6, 1.0, torch.float32)
    assert errors(x, nn.BatchNorm2d, training=True)["var"] > 100
    assert errors(x, BatchNorm2d, training=True)["var"] < 5e-5


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_constant_far_channel_gives_the_bias(training):
    layer = BatchNorm2d(2, momentum=1.0).train(training)
    layer.running_mean.fill_(1e6)
    x = torch.full((4, 2, 3, 3), 1e6).contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer(x), torch.zeros(4, 2, 3, 3))


def test_a_first_sample_unlike_the_rest_misleads_nobody():
    x = batch("NHWC", 0.0, 1.0, torch.float32)
    x[0] = 1e6
    ours, theirs = (errors(x, kind, training=True) for kind in PAIRS[4])
    assert all(ours[name] <= 1.5 * theirs[name] + 1e-6 for name in ours), (ours, theirs)


def test_channels_of_different_distance_are_each_right():
    offsets = torch.tensor([0.0, 1e6, -1e6, 3.0, 1e3, -0.5]).view(1, 6, 1, 1)
    x = (batch("NHWC", 0.0, 1.0, torch.float64) + offsets).float()
    x = x.contiguous(memory_format=torch.channels_last)
    got = run(BatchNorm2d, x, training=True)
    want = exact(x, got, training=True)
    torch.testing.assert_close(got["var"].double(), want["var"], rtol=5e-5, atol=0)
    torch.testing.assert_close(got["y"].double(), want["y"], rtol=1e-4, atol=1e-4)
