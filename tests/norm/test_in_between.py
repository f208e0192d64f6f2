"""What may be done to tensors between forward and backward: what torch allows, and no less."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gammabeta import BatchNormAct1d, batch_norm
from kernel_helpers import BF16, LAYOUTS, MODES, inputs_of, laid
from norm_helpers import ACTIVATIONS, assert_same, fill, randn, running

SHAPE = (4, 20, 6, 6)
CHANGES = {
    "counted": lambda t: t.mul_(-2).add_(1),
    "uncounted": lambda t: t.data.mul_(-2).add_(1),
}
EVERY_CHANGE = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)


def changed(tensor, change):
    with torch.no_grad():
        change(tensor)


def leaves_of(layout, *, residual, dtype=torch.float32):
    made = inputs_of(SHAPE, dtype, residual=residual)
    made = {n: laid(v, layout) if v.dim() == 4 else v for n, v in made.items()}
    return {n: v.requires_grad_() for n, v in made.items()}


def gradients(
    layout, options, stats, *, between, derived=False, twice=False, residual=False,
    dtype=torch.float32,
):  # fmt: skip
    """Ours, with something done between forward and backward."""
    t = leaves_of(layout, residual=residual, dtype=dtype)
    bias = t["bias"] * 1.0 if derived else t["bias"]
    given = (None, None) if stats is None else [s.clone() for s in stats]
    y = batch_norm(
        t["x"], *given, t["weight"], bias, stats is None,
        residual=t.get("residual"), backend="numba", **options,
    )  # fmt: skip
    between(bias=bias, y=y, weight=t["weight"], residual=t.get("residual"), stats=given)
    dy = randn(*y.shape, seed=3).to(dtype)
    wanted = list(t.values())
    if not twice:
        return dict(zip(t, torch.autograd.grad(y, wanted, dy), strict=True))
    first = torch.autograd.grad(y, wanted, dy, create_graph=True)
    total = sum((g * randn(*g.shape, seed=20 + i)).sum() for i, g in enumerate(first))
    second = torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)
    return dict(zip(t, second, strict=True))


@EVERY_CHANGE
@pytest.mark.parametrize("case", ["none", "relu", "silu", "gelu"])
@LAYOUTS
@MODES
@pytest.mark.parametrize("derived", [False, True], ids=["leaf", "derived"])
@pytest.mark.parametrize("twice", [False, True], ids=["first", "second"])
def test_beta_may_be_changed(layout, case, training, derived, twice, change):
    options = ACTIVATIONS[case][0]
    stats = None if training else running(20)
    how = {"derived": derived, "twice": twice}
    got = gradients(layout, options, stats, between=lambda bias, **_: changed(bias, change), **how)
    assert_same(got, gradients(layout, options, stats, between=lambda **_: None, **how))


@pytest.mark.parametrize("case", ["none", "relu", "relu6", "leaky_relu"])
@LAYOUTS
def test_a_residual_before_a_mask_may_be_changed(layout, case):
    options = ACTIVATIONS[case][0]
    got = gradients(
        layout, options, None, residual=True,
        between=lambda residual, **_: changed(residual, CHANGES["counted"]),
    )  # fmt: skip
    assert_same(got, gradients(layout, options, None, residual=True, between=lambda **_: None))


@LAYOUTS
@pytest.mark.parametrize("case", ["none", "silu"])
def test_running_statistics_may_be_changed(layout, case):
    def between(stats, **_):
        for statistic in stats:
            statistic.add_(1)

    options = ACTIVATIONS[case][0]
    got = gradients(layout, options, running(20), between=between)
    assert_same(got, gradients(layout, options, running(20), between=lambda **_: None))


@EVERY_CHANGE
@pytest.mark.parametrize("case", ["none", "relu"])
@pytest.mark.parametrize("pool", [2, 3])
@LAYOUTS
@MODES
@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
def test_a_pooled_output_may_be_changed(layout, training, case, pool, change, dtype):
    options = ACTIVATIONS[case][0] | {"pool": pool}
    stats = None if training else running(20)
    how = {"dtype": dtype}
    got = gradients(layout, options, stats, between=lambda y, **_: changed(y, change), **how)
    assert_same(got, gradients(layout, options, stats, between=lambda **_: None, **how))


@pytest.mark.parametrize(("name", "case"), [("weight", "none"), ("residual", "silu")])
@LAYOUTS
def test_what_backward_needs_may_not(layout, name, case):
    def between(**tensors):
        changed(tensors[name], CHANGES["counted"])

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(layout, ACTIVATIONS[case][0], None, residual=True, between=between)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("vectors", [torch.float32, BF16], ids=str)
def test_beta_may_be_changed_after_a_compiled_forward(backend, vectors):
    torch._dynamo.reset()
    x, dy = randn(8, 3).to(vectors), randn(8, 3, seed=1).to(vectors)
    found = []
    for change in (False, True):
        layer = fill(BatchNormAct1d(3, activation="silu", backend="numba", dtype=vectors))
        leaf = x.clone().requires_grad_()
        y = torch.compile(layer, backend=backend)(leaf)
        if change:
            changed(layer.bn.bias, CHANGES["counted"])
        y.backward(dy)
        assert layer.bn.bias.grad.dtype == vectors
        found.append({"x": leaf.grad, **{n: p.grad for n, p in layer.named_parameters()}})
    assert_same(found[1], found[0])


def negative(t):
    """The same values, in memory that holds them negated."""
    return torch._neg_view(-t)


def zeros(t):
    return torch._efficientzerotensor(t.shape)


@pytest.mark.parametrize("name", ["x", "weight", "bias", "residual", "dy"])
@pytest.mark.parametrize("odd", [negative, zeros])
@LAYOUTS
@MODES
@pytest.mark.parametrize("direct", [False, True], ids=["door", "operator"])
def test_memory_that_does_not_hold_the_values_is_resolved(name, odd, layout, training, direct):
    t = leaves_of(layout, residual=True)
    stats = (None, None) if training else running(20)
    dy = randn(*SHAPE, seed=3)

    def run(convert):
        def at(n, v):
            return convert(v) if n == name else v

        x, weight, bias, residual = (at(n, v) for n, v in t.items())
        if direct:
            options = 1e-5, "relu", 0.01, 0
            y = torch.ops.gammabeta.batch_norm(x, weight, bias, residual, *stats, *options)[0]
        else:
            y = batch_norm(x, *stats, weight, bias, training, residual=residual, activation="relu")
        grads = torch.autograd.grad(y, list(t.values()), at("dy", dy), allow_unused=True)
        return {"y": y, **dict(zip(t, grads, strict=True))}

    got = run(odd)
    want = run(lambda v: odd(v) + torch.zeros(v.shape))
    got, want = ({n: v for n, v in d.items() if v is not None} for d in (got, want))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_running_statistics_in_negative_memory_are_moved():
    x, stats = randn(*SHAPE), running(20)
    odd = [negative(s) for s in stats]
    batch_norm(x, *odd, training=True)
    F.batch_norm(x, *stats, training=True)
    torch.testing.assert_close([s.clone() for s in odd], list(stats))
