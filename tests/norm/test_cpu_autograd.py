"""The compiled CPU kernels inside autograd: second derivatives, hooks, odd cotangents, memory."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gammabeta import BatchNorm2d, BatchNormAct2d, batch_norm
from kernel_helpers import BF16, DTYPES, LAYOUTS, MODES, fused, inputs_of, laid
from norm_helpers import ACTIVATIONS, assert_same, randn, reference, running, with_gradients

# layout, activation, pool, residual: loops that test_cpu.py compiles too.
CASES = [
    ("rows", "none", None, False),
    ("rows", "gelu", None, False),
    ("rows", "relu6", None, True),
    ("rows", "relu", 2, False),
    ("rows", "relu", 3, False),
    ("planes", "relu", None, False),
    ("planes", "relu", None, True),
    ("planes", "silu", None, True),
    ("planes", "gelu-tanh", None, True),
]
EACH = pytest.mark.parametrize(("layout", "case", "pool", "residual"), CASES, ids=str)
RELU = {"activation": "relu"}


def gradients(function, inputs, dy):
    return dict(
        zip(inputs, torch.autograd.grad(function(**inputs), inputs.values(), dy), strict=True)
    )


def leaves(inputs, dtype=torch.float32):
    return {name: t.to(dtype).detach().requires_grad_() for name, t in inputs.items()}


@EACH
@MODES
def test_second_derivatives_match_float64(layout, case, pool, residual, training):
    options, act = ACTIVATIONS[case]
    stats = None if training else running(20)
    inputs = inputs_of((4, 20, 6, 6), residual=residual)
    size = (6, 6) if pool is None else (3, 3)
    dy = randn(4, 20, *size, seed=11)

    def twice(function, dtype):
        t = {**leaves(inputs, dtype), "dy": dy.to(dtype).requires_grad_()}
        first = {n: v for n, v in t.items() if n != "dy"}
        y = function(**first)
        grads = torch.autograd.grad(y, first.values(), t["dy"], create_graph=True)
        weights = [randn(*g.shape, seed=20 + i).to(dtype) for i, g in enumerate(grads)]
        total = sum((g * w).sum() for g, w in zip(grads, weights, strict=True))
        found = torch.autograd.grad(total, t.values(), allow_unused=True)
        found = [
            torch.zeros_like(v) if g is None else g for v, g in zip(t.values(), found, strict=True)
        ]
        return dict(zip(t, found, strict=True))

    got = twice(fused(layout, stats=stats, pool=pool, **options), torch.float32)
    want = twice(lambda **t: reference(**t, act=act, pool=pool, stats=stats), torch.float64)
    for name, tensor in got.items():
        size = max(1.0, float(want[name].abs().max()))
        torch.testing.assert_close(
            tensor.double() / size, want[name] / size, rtol=1e-3, atol=1e-4,
            msg=lambda m, name=name: f"second derivative by {name}: {m}",
        )  # fmt: skip


@EACH
def test_a_graph_for_a_second_derivative_has_the_same_first(layout, case, pool, residual):
    inputs = leaves(inputs_of((4, 20, 6, 6), residual=residual))
    y = fused(layout, pool=pool, **ACTIVATIONS[case][0])(**inputs)
    dy = randn(*y.shape, seed=3)
    kept = torch.autograd.grad(y, inputs.values(), dy, create_graph=True)
    plain = torch.autograd.grad(y, inputs.values(), dy)
    torch.testing.assert_close(kept, plain, rtol=1e-4, atol=1e-4)


@EACH
def test_a_graph_can_be_walked_twice(layout, case, pool, residual):
    inputs = leaves(inputs_of((4, 20, 6, 6), residual=residual))
    y = fused(layout, pool=pool, **ACTIVATIONS[case][0])(**inputs)
    dy = randn(*y.shape, seed=3)
    first = torch.autograd.grad(y, inputs.values(), dy, retain_graph=True)
    second = torch.autograd.grad(y, inputs.values(), dy)
    assert_same(dict(zip(inputs, second, strict=True)), dict(zip(inputs, first, strict=False)))


COTANGENTS = {
    "expanded": lambda dy: dy[:, :, :1, :1].expand_as(dy),
    "strided": lambda dy: torch.stack([dy, dy], -1)[..., 0],
    "planes": lambda dy: dy.contiguous(),
    "rows": lambda dy: dy.contiguous(memory_format=torch.channels_last),
    "transposed": lambda dy: dy.transpose(2, 3).contiguous().transpose(2, 3),
}


@EACH
@pytest.mark.parametrize("kind", COTANGENTS)
def test_the_memory_of_the_cotangent_does_not_matter(layout, case, pool, residual, kind):
    inputs = leaves(inputs_of((4, 20, 6, 6), residual=residual))
    function = fused(layout, pool=pool, **ACTIVATIONS[case][0])
    dy = COTANGENTS[kind](randn(4, 20, *([6, 6] if pool is None else [3, 3]), seed=3))
    got = gradients(function, inputs, dy)
    assert_same(got, gradients(function, inputs, laid(dy, layout).clone()))


@LAYOUTS
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_the_residual_may_lie_otherwise_than_the_input(layout, activation):
    if (layout, activation) == ("rows", "silu"):
        activation = "relu6"
    inputs = inputs_of((4, 20, 6, 6), residual=True)
    other = "rows" if layout == "planes" else "planes"

    def run(x, weight, bias, residual, lie=other):
        return batch_norm(
            laid(x, layout), None, None, weight, bias, True,
            residual=laid(residual, lie), activation=activation, backend="numba",
        )  # fmt: skip

    got = with_gradients(run, inputs)
    assert_same(got, with_gradients(lambda **t: run(**t, lie=layout), inputs))


REPACKED = {
    "contiguous": (lambda t: t.contiguous(), lambda t: t),
    "channels-last": (
        lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t,
        lambda t: t,
    ),
    "copied": (lambda t: t.numpy(force=True).copy() if t.dtype != BF16 else t, torch.as_tensor),
}


@EACH
@pytest.mark.parametrize("kind", REPACKED)
def test_saved_tensors_may_come_back_in_other_memory(layout, case, pool, residual, kind):
    inputs = leaves(inputs_of((4, 20, 6, 6), residual=residual))
    function = fused(layout, pool=pool, **ACTIVATIONS[case][0])
    dy = randn(4, 20, *([6, 6] if pool is None else [3, 3]), seed=3)
    want = gradients(function, inputs, dy)
    with torch.autograd.graph.saved_tensors_hooks(*REPACKED[kind]):
        y = function(**inputs)
    got = dict(zip(inputs, torch.autograd.grad(y, inputs.values(), dy), strict=True))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@EACH
def test_saved_tensors_may_be_offloaded(layout, case, pool, residual):
    inputs = leaves(inputs_of((4, 20, 6, 6), residual=residual))
    function = fused(layout, pool=pool, **ACTIVATIONS[case][0])
    dy = randn(4, 20, *([6, 6] if pool is None else [3, 3]), seed=3)
    want = gradients(function, inputs, dy)
    with torch.autograd.graph.save_on_cpu():
        y = function(**inputs)
    assert_same(dict(zip(inputs, torch.autograd.grad(y, inputs.values(), dy), strict=True)), want)


@pytest.mark.parametrize("pool", [None, 2, 3])
def test_checkpointing_changes_nothing_and_counts_once(pool):
    x, dy = randn(4, 20, 6, 6), randn(4, 20, *([6, 6] if pool is None else [3, 3]), seed=3)
    layers = [BatchNormAct2d(20, pool=pool, backend="numba") for _ in range(2)]

    def run(layer, call):
        leaf = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        call(layer, leaf).backward(dy)
        return {"x": leaf.grad, "weight": layer.bn.weight.grad, **layer.state_dict()}

    plain = run(layers[0], lambda layer, t: layer(t))
    assert_same(run(layers[1], lambda layer, t: checkpoint(layer, t, use_reentrant=False)), plain)


@pytest.mark.parametrize("pool", [None, 2, 3])
@pytest.mark.parametrize("affine", [True, False])
def test_the_output_may_be_activated_in_place(pool, affine):
    inputs = leaves(inputs_of((4, 20, 6, 6)))
    rest = inputs if affine else {"x": inputs["x"]}

    def subject(**t):
        return fused("rows", pool=pool, **RELU)(**t).mul_(-1).add_(1).relu_()

    def expected(**t):
        y = reference(**t, act=F.relu, pool=pool)
        return (1 - y).relu()

    dy = randn(4, 20, *([6, 6] if pool is None else [3, 3]), seed=3)
    torch.testing.assert_close(
        gradients(subject, rest, dy), gradients(expected, rest, dy), rtol=1e-4, atol=1e-4
    )


def test_an_input_changed_in_place_is_an_error():
    x = randn(4, 20, 6, 6)
    y = fused("planes", **RELU)(x, randn(20).requires_grad_())
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(torch.ones_like(y))


@EACH
def test_many_cotangents_at_once(layout, case, pool, residual):
    inputs = leaves(inputs_of((4, 20, 6, 6), residual=residual))
    y = fused(layout, pool=pool, **ACTIVATIONS[case][0])(**inputs)
    dys = torch.stack([randn(*y.shape, seed=s) for s in (3, 4)])
    many = torch.autograd.grad(y, inputs.values(), dys, retain_graph=True, is_grads_batched=True)
    for i, dy in enumerate(dys):
        one = torch.autograd.grad(y, inputs.values(), dy, retain_graph=True)
        torch.testing.assert_close([g[i] for g in many], list(one), rtol=1e-4, atol=1e-4)


def saved_bytes(function, inputs):
    """What autograd keeps beside parameters, by storage."""
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = function(**inputs)
    return sum(seen.values()), y


@DTYPES
@pytest.mark.parametrize(
    ("layout", "case", "pool", "residual", "codes"),
    [
        ("rows", "relu", None, False, 0),
        ("rows", "relu", None, True, 1),
        ("planes", "relu", None, False, 0),
        ("rows", "relu", 2, False, 1),
    ],
)  # fmt: skip
def test_nothing_is_kept_but_the_input_a_byte_a_value_and_vectors(
    dtype, layout, case, pool, residual, codes
):
    if dtype == BF16 and residual:
        case = "leaky_relu" if layout == "planes" else "hardswish"
        codes = 4 if case == "hardswish" else 1
    inputs = inputs_of((8, 64, 16, 16), dtype, residual=residual)
    inputs = {n: laid(t, layout) if t.dim() == 4 else t for n, t in inputs.items()}
    kept, y = saved_bytes(fused(layout, pool=pool, **ACTIVATIONS[case][0]), leaves(inputs, dtype))
    values, width = inputs["x"].numel(), dtype.itemsize
    expected = values * width + 24 * 64 + 64 * 4  # x; mean, deviation and β in float64; γ
    if case == "hardswish":
        expected += values * width  # its derivative needs the residual's values
    elif codes:
        expected += y.numel()
    expected += y.numel() * width if pool else 0  # which the next layer keeps as well
    assert kept <= expected + 64


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("made_in", [True, False], ids=["inference-layer", "layer"])
def test_inference_mode_serves_pooled_layers(training, made_in):
    with torch.inference_mode(made_in):
        layer = BatchNormAct2d(16, pool=2).train(training)
    twin = BatchNormAct2d(16, pool=2, backend="eager").train(training)
    x = laid(randn(4, 16, 6, 6), "rows")
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), twin(x))
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())


def test_buffers_that_the_kernel_writes_are_seen_as_written():
    layer = BatchNorm2d(3, backend="numba")
    versions = {name: buffer._version for name, buffer in layer.named_buffers()}
    leaf = torch.ones(3, requires_grad=True)
    product = (leaf * layer.running_mean).sum()  # saves the buffer for backward
    layer(randn(4, 3, 5, 5))
    assert layer.num_batches_tracked == 1
    assert all(buffer._version > versions[name] for name, buffer in layer.named_buffers())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_a_refused_batch_is_not_counted():
    layer = BatchNorm2d(3)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(randn(1, 3, 1, 1))
    assert layer.num_batches_tracked == 0
    layer(randn(4, 3, 5, 5))
    assert layer.num_batches_tracked == 1
