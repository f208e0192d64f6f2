"""Moments: exact whatever the split, the order, the dtype, the distance from zero, the process."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tracemalloc
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gammabeta import moments
from gammabeta.errors import GammabetaError
from gammabeta.moments import Moments

SRC = Path(__file__).parents[1] / "src"


def values(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape) * 3 + 10


def exact(channel):
    """Return count, mean and M2 in exact rational arithmetic, rounded once."""
    numbers = [Fraction(float(v)) for v in np.ravel(channel)]
    mean = sum(numbers) / len(numbers)
    return len(numbers), float(mean), float(sum((v - mean) ** 2 for v in numbers))


def assert_same(got, want, ulps=64):
    assert got.count == want.count
    np.testing.assert_array_max_ulp(got.mean, want.mean, ulps)
    np.testing.assert_array_max_ulp(got.m2, want.m2, ulps)


def parts_of(x, cuts):
    edges = sorted({0, len(x), *(cut % (len(x) + 1) for cut in cuts)})
    return [Moments.of(x[a:b]) for a, b in pairwise(edges)]


@pytest.mark.parametrize("shape", [(8, 4), (1, 1), (5, 3, 7), (4, 3, 5, 7), (2, 3, 2, 3, 2)])
def test_of_agrees_with_numpy(shape):
    x = values(shape)
    axes = (0, *range(2, x.ndim))
    got = Moments.of(x)
    assert got.count == x.size // shape[1]
    np.testing.assert_allclose(got.mean, x.mean(axes), rtol=1e-14)
    np.testing.assert_allclose(got.var, x.var(axes), rtol=1e-13, atol=1e-28)


@pytest.mark.parametrize(
    "x",
    [
        values((500, 2)) * 1e-6 + 1e8,
        values((500, 2)) - 10 + 1e8,
        (values((500, 2)).astype(np.float32) * np.float32(1e-2) + np.float32(1e4)),
        values((500, 2)) * 1e-150,
    ],
    ids=["1e8 and 1e-6", "1e8 and 1", "1e4 and 1e-2 in float32", "tiny"],
)
def test_data_far_from_zero_keep_their_variance(x):
    got = Moments.of(x)
    for channel in range(2):
        count, mean, m2 = exact(x[:, channel])
        assert got.count == count
        assert got.mean[channel] == pytest.approx(mean, rel=3e-16)
        assert got.m2[channel] == pytest.approx(m2, rel=1e-13)


def test_blocks_far_from_zero_merge_without_loss(monkeypatch):
    monkeypatch.setattr(moments, "BLOCK", 8)
    x = values((500, 2)) - 10 + 1e8
    _, mean, m2 = exact(x[:, 0])
    assert Moments.of(x).mean[0] == pytest.approx(mean, rel=3e-16)
    assert Moments.of(x).m2[0] == pytest.approx(m2, rel=1e-8)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 9), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_the_block_size_does_not_matter(n, channels, width, block):
    x = values((n, channels, width))
    whole = Moments.of(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "BLOCK", block)
        assert_same(Moments.of(x), whole)


@given(st.lists(st.integers(0, 1000), max_size=12), st.integers(0, 20), st.randoms())
@settings(max_examples=60, deadline=None)
def test_any_split_in_any_order_and_association_gives_the_same(cuts, seed, random):
    x = values((60, 3), seed)
    parts = parts_of(x, cuts)
    random.shuffle(parts)
    one_by_one = sum(parts, Moments.empty(3))
    while len(parts) > 1:
        i = random.randrange(len(parts) - 1)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    for merged in (one_by_one, parts[0]):
        assert_same(merged, Moments.of(x))


@pytest.mark.parametrize("count", [1, 2, 3, 8, 13])
def test_merge_all_agrees_with_the_whole(count):
    x = values((26, 3))
    parts = [Moments.of(part) for part in np.array_split(x, count)]
    assert_same(Moments.merge_all(iter(parts)), Moments.of(x))


def test_a_merge_by_hand():
    # 1 2 3 and 7 9: means 2 and 8, M2 2 and 2; delta 6, and 36 * 3 * 2 / 5 = 43.2 more.
    got = Moments(3, np.array([2.0]), np.array([2.0])) + Moments(
        2, np.array([8.0]), np.array([2.0])
    )
    assert got.count == 5
    assert got.mean == pytest.approx(4.4)
    assert got.m2 == pytest.approx(47.2)


def test_equal_values_have_no_variance_however_they_are_merged():
    parts = [Moments.of(np.full((n, 1), 0.1)) for n in (1, 3, 7)]
    merged = Moments.merge_all(parts)
    assert merged.mean == 0.1
    assert merged.m2 == 0


def test_the_empty_set_is_neutral():
    some, none = Moments.of(values((4, 3))), Moments.of(np.empty((0, 3, 2)))
    assert none.count == 0
    assert (some + none) is some
    assert (none + some) is some
    assert (none + Moments.empty(3)).count == 0


def test_sums_agree_with_fsum():
    x = values((1000, 1), 5) * 10.0 ** np.random.default_rng(1).integers(-8, 8, (1000, 1))
    mean = math.fsum(x.ravel()) / 1000
    assert Moments.of(x).mean[0] == pytest.approx(mean, rel=1e-13)
    assert Moments.of(x).m2[0] == pytest.approx(math.fsum((x.ravel() - mean) ** 2), rel=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "strided", "expanded", "grad"])
def test_tensors_of_every_dtype_and_layout_are_measured_as_their_float64_copy(dtype, layout):
    x = torch.tensor(values((4, 3, 6, 6)), dtype=dtype)
    x = {
        "contiguous": x,
        "channels last": x.to(memory_format=torch.channels_last),
        "strided": x[::2, :, 1:, ::3],
        "expanded": x[:1].expand(4, -1, -1, -1),
        "grad": x.clone().requires_grad_(),
    }[layout]
    want = Moments.of(x.detach().double().contiguous().numpy())
    assert_same(Moments.of(x), want, ulps=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_shows_in_its_channel_only(bad, monkeypatch):
    monkeypatch.setattr(moments, "BLOCK", 4)
    x = values((6, 2, 3))
    x[4, 1, 2] = bad
    got = Moments.of(x)
    for statistic in (got.mean, got.m2, got.var, got.unbiased_var):
        assert np.isfinite(statistic[0])
        assert not np.isfinite(statistic[1])


def test_variances():
    got = Moments.of(np.array([[1.0], [3.0]]))
    assert got.var == 1
    assert got.unbiased_var == 2


def test_variances_of_too_few_values_are_nan():
    assert Moments.of(np.array([[5.0]])).var == 0
    assert np.isnan(Moments.of(np.array([[5.0]])).unbiased_var)
    assert np.isnan(Moments.empty(1).var)
    assert np.isnan(Moments.empty(1).unbiased_var)


@pytest.mark.parametrize("part", [Moments.of(values((5, 3))), Moments.empty(2)], ids=["some", "no"])
def test_vectors_bring_back_the_same_bits(part):
    vector = part.to_vector()
    assert vector.shape == (2 * part.mean.size + 1,)
    back = Moments.from_vector(vector)
    assert_same(back, part, ulps=0)
    vector[:] = 0
    assert_same(back, part, ulps=0)  # a receive buffer may be written again


CHILD = """
import json, sys
import numpy as np
from gammabeta.moments import Moments
start, stop = map(int, sys.argv[1:])
x = np.random.default_rng(0).standard_normal((100, 3, 4)) + 1e6
print(json.dumps(Moments.of(x[start:stop]).to_vector().tolist()))
assert "torch" not in sys.modules
"""


def test_two_processes_merge_their_vectors_exactly():
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, *bounds],
            stdout=subprocess.PIPE,
            env=environment,
        )
        for bounds in (("0", "37"), ("37", "100"))
    ]
    vectors = [np.array(json.loads(child.communicate()[0])) for child in started]
    assert [child.returncode for child in started] == [0, 0]
    merged = Moments.merge_all(map(Moments.from_vector, vectors))
    x = np.random.default_rng(0).standard_normal((100, 3, 4)) + 1e6
    for channel in range(3):
        count, mean, m2 = exact(x[:, channel])
        assert merged.count == count
        assert merged.mean[channel] == pytest.approx(mean, rel=3e-16)
        assert merged.m2[channel] == pytest.approx(m2, rel=1e-9)


def test_a_large_array_is_never_copied_to_float64_as_a_whole():
    x = np.ones((1, 2, 4_000_000), dtype=np.float32)
    tracemalloc.start()
    try:
        Moments.of(x)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < x.nbytes / 8


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Moments.of(np.ones(3)), r"shape \(N, C, ...\), not \(3,\)"),
        (lambda: Moments.empty(2) + Moments.empty(3), "2 and 3 channels"),
        (lambda: Moments.merge_all([]), r"begin with Moments.empty\(C\)"),
        (lambda: Moments.from_vector(np.ones(4)), r"\(2C \+ 1,\), not \(4,\)"),
        (lambda: Moments(1, np.ones(2), np.ones(3)), r"not \(2,\) and \(3,\)"),
    ],
    ids=["one axis", "two widths", "no parts", "an even vector", "two shapes"],
)
def test_misuse_is_refused_with_its_values_in_the_message(wrong, message):
    with pytest.raises(GammabetaError, match=message):
        wrong()


def test_the_comparison_catches_the_cancelling_formula():
    x = values((500, 1)) + 1e8
    naive = Moments(500, x.mean(0), (x**2).sum(0) - 500 * x.mean(0) ** 2)
    with pytest.raises(AssertionError):
        assert_same(naive, Moments.of(x))
