"""The compiled CPU kernels against batch norm written out in float64, with random cotangents."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import gammabeta
from gammabeta import batch_norm
from kernel_helpers import BF16, DTYPES, F32, LAYOUTS, MODES, TOLERANCES, fused, inputs_of, laid
from norm_helpers import (
    ACTIVATIONS,
    assert_matches,
    assert_same,
    data,
    fill,
    randn,
    reference,
    running,
    with_gradients,
)

# Pairs of everything rather than all of it: each line is three loops to compile.
MATRIX = [
    *[(F32, "rows", case, False) for case in ("none", "relu", "gelu", "silu", "leaky_relu-slope")],
    *[(F32, "rows", case, True) for case in ("relu", "relu6")],
    *[(F32, "planes", case, False) for case in ("relu", "hardswish")],
    *[(F32, "planes", case, True) for case in ("relu", "silu", "gelu-tanh")],
    *[(BF16, "rows", case, False) for case in ("relu", "gelu")],
    *[(BF16, "planes", case, False) for case in ("relu",)],
    *[(BF16, "rows", case, True) for case in ("hardswish",)],
    *[(BF16, "planes", case, True) for case in ("leaky_relu",)],
]
IN_BOTH_MODES = [
    *[(*line, True) for line in MATRIX],
    *[(*line, False) for line in MATRIX if line[2] == "relu"],
]


@pytest.mark.parametrize(
    ("dtype", "layout", "case", "residual", "training"), IN_BOTH_MODES, ids=str
)
@pytest.mark.parametrize("shape", [(37, 20), (3, 21, 5, 9)], ids=str)
def test_every_combination_matches_the_oracle(dtype, layout, case, residual, shape, training):
    options, act = ACTIVATIONS[case]
    stats = None if training else running(shape[1])
    assert_matches(
        fused(layout, stats=stats, **options),
        lambda **t: reference(**t, act=act, stats=stats),
        inputs_of(shape, dtype, residual=residual),
        **TOLERANCES[dtype],
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(2, 70), st.integers(1, 140))
    | st.tuples(st.integers(2, 9), st.integers(1, 70), st.integers(1, 90))
    | st.tuples(st.integers(1, 5), *[st.integers(1, 40)] * 3)
    | st.tuples(*[st.integers(1, 7)] * 5),
    layout=st.sampled_from(["planes", "rows"]),
    dtype=st.sampled_from([F32, BF16]),
    offset=st.integers(0, 3),
)
def test_any_shape_and_place_in_memory(shape, layout, dtype, offset):
    """``offset`` moves x off the boundaries at which vectors like to start."""
    inputs = inputs_of(shape, dtype)
    if inputs["x"].numel() <= 2 * shape[1]:  # two values a channel: dx cancels to nothing
        inputs["x"] = inputs["x"].double().mul(3).to(dtype)
    if inputs["x"].numel() == shape[1]:
        return

    def subject(x, weight, bias):
        whole = laid(x, layout)
        moved = torch.empty(x.numel() + offset, dtype=dtype)[offset:]
        moved = moved.as_strided(whole.shape, whole.stride(), offset)
        return fused(layout, activation="relu")(moved.copy_(whole), weight, bias)

    tolerances = {F32: {"rtol": 1e-3, "atol": 2e-4}, BF16: {"rtol": 2**-7, "atol": 2**-7}}
    assert_matches(subject, lambda **t: reference(**t, act=F.relu), inputs, **tolerances[dtype])


@pytest.mark.parametrize("shape", [(300, 700), (3, 5, 60000), (9, 64, 33, 31)], ids=str)
@LAYOUTS
def test_many_blocks_are_combined(shape, layout):
    x = data(shape)["x"] + torch.linspace(0, 5, shape[-1])
    inputs = {**inputs_of(shape, F32), "x": x}
    assert_matches(
        fused(layout, activation="relu"), lambda **t: reference(**t, act=F.relu), inputs,
        rtol=1e-4, atol=2e-5,
    )  # fmt: skip


@pytest.mark.parametrize("vectors", [F32, BF16], ids=["float32", "bfloat16"])
def test_parameters_of_bfloat16_data_may_be_of_either_dtype(vectors):
    inputs = inputs_of((9, 20, 4, 5), BF16, vectors=vectors)
    got = with_gradients(fused("rows", activation="relu"), inputs)
    assert got["dweight"].dtype == got["dbias"].dtype == vectors
    want = with_gradients(
        lambda **t: reference(**t, act=F.relu), {name: t.double() for name, t in inputs.items()}
    )
    if vectors == F32:  # only data are rounded, and dy to bfloat16
        torch.testing.assert_close(got["dbias"].double(), want["dbias"], rtol=2e-2, atol=2e-1)


@pytest.mark.parametrize("given", [("weight",), ("bias",), ()], ids=["γ", "β", "none"])
@pytest.mark.parametrize("pool", [None, 2])
@MODES
def test_affine_parameters_may_be_absent(given, pool, training):
    inputs = {n: t for n, t in inputs_of((5, 19, 6, 4), F32).items() if n in {"x", *given}}
    stats = None if training else running(19)
    assert_matches(
        fused("rows", activation="relu", pool=pool, stats=stats),
        lambda **t: reference(**t, act=F.relu, pool=pool, stats=stats),
        inputs,
        **TOLERANCES[F32],
    )


@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "residual"])
@LAYOUTS
@MODES
def test_what_is_frozen_changes_no_other_gradient(wanted, layout, training):
    inputs = inputs_of((5, 20, 4, 6), F32, residual=True)
    run = fused(layout, activation="relu", stats=None if training else running(20))
    everything = with_gradients(run, inputs)
    rest = {name: t for name, t in inputs.items() if name != wanted}
    alone = with_gradients(lambda **t: run(**t, **rest), {wanted: inputs[wanted]})
    assert_same(alone, {name: everything[name] for name in ("y", f"d{wanted}")})


@pytest.mark.parametrize("pool", [None, 2])
@LAYOUTS
def test_ghost_batches_are_batches_of_their_own(layout, pool):
    inputs = inputs_of((11, 20, 4, 6), F32, residual=pool is None)
    subject = fused(layout, activation="relu", pool=pool, virtual_batch_size=4)

    def apart(**t):
        vectors = {n: t.pop(n) for n in ("weight", "bias")}
        split = [tensor.split(4) for tensor in t.values()]
        parts = [dict(zip(t, part, strict=True)) for part in zip(*split, strict=True)]
        ys = [reference(**part, **vectors, act=F.relu, pool=pool) for part in parts]
        return torch.cat(ys)

    assert_matches(subject, apart, inputs, **TOLERANCES[F32])


@DTYPES
@LAYOUTS
def test_running_statistics_are_those_of_the_data(dtype, layout):
    x = laid(data((6, 20, 5, 7), dtype)["x"], layout)
    mean, var = running(20)
    want_mean, want_var = mean.double().clone(), var.double().clone()
    F.batch_norm(x.double(), want_mean, want_var, training=True, momentum=0.3)
    batch_norm(x, mean, var, training=True, momentum=0.3, backend="numba")
    torch.testing.assert_close(mean.double(), want_mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var.double(), want_var, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("far", [1e4, 1e6])
@pytest.mark.parametrize("pool", [None, 2])
@LAYOUTS
def test_a_far_mean_keeps_its_variance(far, pool, layout):
    inputs = inputs_of((16, 20, 8, 8), F32)
    inputs["x"] = inputs["x"] * 0.7 + far
    assert_matches(
        fused(layout, activation="relu", pool=pool),
        lambda **t: reference(**t, act=F.relu, pool=pool),
        inputs,
        rtol=1e-4,
        atol=2e-5,
    )


@pytest.mark.parametrize("d", [1, 2, 3])
@MODES
def test_the_layers_compute_through_the_kernels(d, training):
    kind = getattr(gammabeta, f"BatchNormAct{d}d")
    shape = (6, 20, 4, 5, 3)[: d + 2]
    layers = [fill(kind(20, backend=b)).train(training) for b in ("numba", "eager")]
    inputs = {"input": randn(*shape), "residual": randn(*shape, seed=2)}
    got, want = (with_gradients(layer, inputs) for layer in layers)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(layers[0].state_dict(), layers[1].state_dict())
