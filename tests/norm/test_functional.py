"""The functional batch norm against a float64 oracle and against torch's own."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from gammabeta import GammabetaError, batch_norm, batch_norm_and_stats
from norm_helpers import (
    ACTIVATIONS,
    SHAPES,
    TOLERANCES,
    assert_matches,
    assert_same,
    data,
    randn,
    reference,
    running,
    with_gradients,
)

EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
EVERY_DTYPE = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
EVERY_ACTIVATION = pytest.mark.parametrize("case", ACTIVATIONS)
OF_ACTIVATION = ("activation", "negative_slope", "approximate")
MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def call(training, channels, dtype=torch.float32, **options):
    """The subject and the oracle in one mode."""
    stats = None if training else running(channels, dtype)
    given = running(channels, dtype)

    def subject(x, weight=None, bias=None, residual=None):
        return batch_norm(x, *given, weight, bias, training, residual=residual, **options)

    chosen = {n: options[n] for n in OF_ACTIVATION if n in options} or {"activation": None}
    act = next(function for known, function in ACTIVATIONS.values() if known == chosen)

    def expected(x, weight=None, bias=None, residual=None):
        pool = options.get("pool")
        return reference(x, weight, bias, residual, stats=stats, act=act, pool=pool)

    return subject, expected


@MODES
@EVERY_DTYPE
@EVERY_SHAPE
def test_output_and_gradients_match_the_oracle(shape, dtype, training):
    assert_matches(*call(training, shape[1], dtype), data(shape, dtype))


@MODES
@EVERY_ACTIVATION
@pytest.mark.parametrize("shape", [(8, 4), (4, 3, 5, 7)], ids=str)
def test_activation_after_a_residual_matches_the_oracle(shape, case, training):
    inputs = {**data(shape, torch.float64), "residual": randn(*shape, seed=5, dtype=torch.float64)}
    assert_matches(*call(training, shape[1], torch.float64, **ACTIVATIONS[case][0]), inputs)


@pytest.mark.parametrize("given", ["x", "x weight", "x bias"], ids=str)
@MODES
def test_weight_and_bias_may_be_missing(given, training):
    inputs = {n: t for n, t in data((4, 3, 5, 7)).items() if n in given.split()}
    assert_matches(*call(training, 3), inputs)


@MODES
@EVERY_ACTIVATION
@pytest.mark.parametrize("pool", [2, 3])
def test_pooling_matches_the_oracle(pool, case, training):
    options = {"pool": pool, **ACTIVATIONS[case][0]}
    inputs = {
        **data((3, 2, 7, 6), torch.float64),
        "residual": randn(3, 2, 7, 6, seed=5, dtype=torch.float64),
    }
    assert_matches(*call(training, 2, torch.float64, **options), inputs)


@EVERY_ACTIVATION
@pytest.mark.parametrize(
    ("pool", "size"), list(itertools.product([2, 3], [(4, 6), (7, 5), (3, 3)])), ids=str
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_eager_pooling_is_torchs_own_sequence_to_the_bit_also_where_values_tie(
    case, pool, size, layout
):
    options, act = ACTIVATIONS[case]
    x = (randn(2, 3, *size) * 1.5).round().contiguous(memory_format=layout)
    inputs = {"x": x, "weight": torch.tensor([8.0, -8.0, 0.0]), "bias": torch.tensor([1.0, 2.0, 7])}
    kernel, stride, padding = (2, 2, 0) if pool == 2 else (3, 2, 1)

    def unfused(x, weight, bias):
        y = act(F.batch_norm(x, None, None, weight, bias, True))
        return F.max_pool2d(y, kernel, stride, padding)

    def fused(x, weight, bias):
        return batch_norm(x, None, None, weight, bias, True, pool=pool, backend="eager", **options)

    assert_same(with_gradients(fused, inputs), with_gradients(unfused, inputs))


@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0, torch.tensor(0.3)], ids=str)
@EVERY_SHAPE
def test_running_statistics_follow_torch(shape, momentum):
    x = data(shape)["x"]
    ours, theirs = running(shape[1]), running(shape[1])
    batch_norm(x, *ours, training=True, momentum=momentum)
    F.batch_norm(x, *theirs, training=True, momentum=float(momentum))
    torch.testing.assert_close(ours, theirs)


def test_a_momentum_tensor_may_have_another_dtype_than_the_statistics():
    x, stats = data((8, 4), torch.float64)["x"], running(4, torch.float64)
    batch_norm(x, *stats, training=True, momentum=torch.tensor(0.25))
    expected = running(4, torch.float64)
    F.batch_norm(x, *expected, training=True, momentum=0.25)
    torch.testing.assert_close(stats, expected)


@MODES
def test_statistics_can_be_returned_instead_of_written(training):
    x, given = data((8, 4))["x"], running(4)
    y, stats = batch_norm_and_stats(x, *given, training=training, momentum=0.3)
    written = running(4)
    expected = batch_norm(x, *written, training=training, momentum=0.3)
    torch.testing.assert_close((y, *stats), (expected, *written))
    assert_same(dict(enumerate(given)), dict(enumerate(running(4))))


def test_without_running_statistics_none_are_returned():
    y, stats = batch_norm_and_stats(randn(4, 3), None, None)
    assert stats is None
    torch.testing.assert_close(y, F.batch_norm(randn(4, 3), None, None, training=True))


def test_and_stats_takes_weight_and_bias_by_name():
    x, weight, bias = data((8, 4)).values()
    y, _ = batch_norm_and_stats(x, *running(4), weight=weight, bias=bias)
    torch.testing.assert_close(y, F.batch_norm(x, None, None, weight, bias, True))


def test_and_stats_does_not_drop_arguments_by_position():
    with pytest.raises(TypeError):
        batch_norm_and_stats(randn(8, 4), *running(4), None, None, True, 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "swish"}, "activation is 'swish'.*relu, relu6, leaky_relu"),
        ({"approximate": "erf"}, "approximate is 'erf'"),
        ({"pool": 4}, "pool is 4, but must be None, 2 or 3"),
        ({"backend": "cuda"}, "backend is 'cuda', but must be auto, eager"),
    ],
    ids=str,
)
def test_unknown_names_are_refused_with_the_known_ones(options, message):
    with pytest.raises(GammabetaError, match=message):
        batch_norm(randn(4, 3, 4, 4), None, None, training=True, **options)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 8), (2, 3, 4, 4, 4)], ids=str)
def test_pooling_needs_two_spatial_axes(shape):
    with pytest.raises((GammabetaError, RuntimeError, ValueError)):
        batch_norm(randn(*shape), None, None, training=True, pool=2)


@pytest.mark.parametrize("shape", [(4, 3, 1, 1), (3, 1, 1), (1, 3, 4, 4), (2, 4, 3, 4, 4)], ids=str)
@MODES
def test_a_residual_of_another_shape_is_refused(shape, training):
    with pytest.raises((GammabetaError, RuntimeError, ValueError)):
        batch_norm(randn(4, 3, 4, 4), *running(3), training=training, residual=randn(*shape))


@MODES
@pytest.mark.parametrize("name", ["mean", "var", "weight", "bias"])
def test_tensors_of_the_wrong_length_are_refused_in_torchs_words(name, training):
    x = randn(4, 3)
    tensors = {"mean": torch.zeros(3), "var": torch.ones(3), "weight": torch.ones(3)}
    tensors = {**tensors, "bias": torch.zeros(3), name: torch.ones(2)}
    with pytest.raises(RuntimeError) as theirs:
        F.batch_norm(x, *tensors.values(), training)
    with pytest.raises(RuntimeError) as ours:
        batch_norm(x, *tensors.values(), training)
    assert str(ours.value) == str(theirs.value)


@MODES
def test_data_of_one_channel_is_refused_however_far_the_running_mean_is(training):
    with pytest.raises(RuntimeError, match="should contain 1 elements not 3"):
        batch_norm(randn(4, 1), torch.full((3,), 1e4), torch.ones(3), training=training)


@MODES
def test_half_of_the_running_statistics_is_refused_as_in_torch(training):
    with pytest.raises((ValueError, RuntimeError)):
        batch_norm(randn(4, 3), torch.zeros(3), None, training=training)


def test_one_axis_is_refused():
    with pytest.raises(ValueError, match=r"at least 2D input \(got 1D input\)"):
        batch_norm(randn(4), None, None, training=True)
