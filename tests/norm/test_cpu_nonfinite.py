"""One NaN or infinity in any tensor ends up in the same places as with torch's own sequence."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from kernel_helpers import BF16, F32, LAYOUTS, MODES, fused, inputs_of, laid
from norm_helpers import ACTIVATIONS, POOLS, assert_same, generator, randn, running

VALUES = pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
PLACE = (1, 2, 0, 1)
CASES = [
    *[("planes", case, None, False) for case in ("relu", "hardswish")],
    *[("planes", case, None, True) for case in ("relu", "silu", "gelu-tanh")],
    *[("rows", case, None, False) for case in ("none", "relu", "gelu", "silu", "leaky_relu-slope")],
    *[("rows", case, None, True) for case in ("relu", "relu6")],
    *[("rows", "relu", pool, False) for pool in POOLS],
]


def torchs_own(layout, stats, case, pool):
    def run(x, weight, bias, residual=None):
        mean, var = (None, None) if stats is None else stats
        y = F.batch_norm(laid(x, layout), mean, var, weight, bias, stats is None)
        y = ACTIVATIONS[case][1](y if residual is None else y + laid(residual, layout))
        return y if pool is None else F.max_pool2d(y, *POOLS[pool])

    return run


def everything(function, inputs, dy):
    leaves = {name: t.clone().requires_grad_() for name, t in inputs.items()}
    y = function(**leaves)
    grads = torch.autograd.grad(y, list(leaves.values()), dy)
    return {"y": y.detach(), **{f"d{n}": g for n, g in zip(leaves, grads, strict=True)}}


@pytest.mark.parametrize(("layout", "case", "pool", "residual"), CASES, ids=str)
@pytest.mark.parametrize("where", ["x", "weight", "bias", "residual", "dy", "mean", "var"])
@VALUES
@MODES
def test_it_spreads_as_in_torch(layout, case, pool, residual, where, value, training):
    if (where == "residual" and not residual) or (where in {"mean", "var"} and training):
        return
    if where == "var" and value == -math.inf:
        return  # the root of less than nothing
    inputs = inputs_of((3, 4, 6, 5), residual=residual)
    tensors = dict(zip(("mean", "var"), running(4), strict=True), **inputs)
    size = (6, 5) if pool is None else {2: (3, 2), 3: (3, 3)}[pool]
    tensors["dy"] = torch.randn(3, 4, *size, generator=generator(3))
    target = tensors[where]
    target[PLACE if target.dim() == 4 else 2] = value
    stats = None if training else (tensors["mean"], tensors["var"])
    subject = fused(layout, stats=stats, pool=pool, **ACTIVATIONS[case][0])
    got = everything(subject, inputs, tensors["dy"])
    want = everything(torchs_own(layout, stats, case, pool), inputs, tensors["dy"])
    for name, tensor in got.items():
        ours, theirs = ~tensor.isfinite(), ~want[name].isfinite()
        if where == "weight" and math.isinf(value):
            # torch's own layouts differ: an infinite γ makes infinities that cancel to NaN.
            by_channel = ours.transpose(0, 1) if ours.dim() > 1 else ours
            assert not by_channel[[0, 1, 3]].any()
            continue
        if pool and not training:
            # Of what no window took, nothing is computed here; torch computes 0·∞.
            if name == "dweight" and where in {"x", "mean"} and math.isinf(value):
                continue
            if name == "dx":
                ours, theirs = (flags.sum((0, 2, 3)) > 0 for flags in (ours, theirs))
        assert torch.equal(ours, theirs), f"{name}: {ours.nonzero()}, torch: {theirs.nonzero()}"


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("later", [1e30, math.nan], ids=str)
def test_nan_wins_its_window_whatever_follows(pool, later):
    x = torch.zeros(2, 16, 4, 4)
    x[0, 3, 0, 0], x[0, 3, 1, 1] = math.nan, later
    stats, dy = (torch.zeros(16), torch.ones(16)), randn(2, 16, 2, 2)
    got = everything(fused("rows", stats=stats, pool=pool, activation="relu"), {"x": x}, dy)

    def sequence(x):
        return F.max_pool2d(F.relu(F.batch_norm(laid(x, "rows"), *stats)), *POOLS[pool])

    assert got["y"][0, 3, 0, 0].isnan()
    assert_same(got, everything(sequence, {"x": x}, dy))


@LAYOUTS
def test_rounding_to_bfloat16_is_torchs(layout):
    """With statistics that change nothing and float32 γ, y is one rounding of an exact product."""
    codes = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16)
    x = laid(codes.view(BF16).view(4, 32, 512), layout)
    x = torch.where(x.abs() < 2.0**-110, 0.0, x).to(BF16)  # a product with γ stays normal
    weight = 1 + torch.arange(32) * 2.0**-13  # its low bits make ties, and almost ties
    stats = torch.zeros(32), torch.full((32,), 0.75)
    y = fused(layout, stats=stats, activation="relu", eps=0.25)(x, weight)
    want = (x.float() * weight.view(-1, 1)).relu().to(BF16)
    assert torch.equal(y.isnan(), want.isnan())
    assert torch.equal(y.nan_to_num(7.0), want.nan_to_num(7.0))


@LAYOUTS
def test_ties_between_bfloat16_values_go_to_the_even_one(layout):
    odd, even = torch.tensor([1 + 3 * 2.0**-7, 1 + 2 * 2.0**-7], dtype=F32)
    x = torch.stack([odd, even]).to(BF16).view(2, 1).expand(2, 16).contiguous().unsqueeze(-1)
    stats = torch.zeros(16), torch.full((16,), 0.75)
    bias = torch.full((16,), 2.0**-8)  # half of the last place
    y = fused(layout, stats=stats, activation="relu", eps=0.25)(x, None, bias)
    want = torch.tensor([1 + 4 * 2.0**-7, 1 + 2 * 2.0**-7])
    torch.testing.assert_close(y[:, 0, 0].float(), want, rtol=0, atol=0)
