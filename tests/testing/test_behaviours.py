"""Every behaviour can fail: a class with one mistake is caught by the behaviour it breaks."""

from __future__ import annotations

from pathlib import Path

import pytest

import conformance_subjects as subjects
from gammabeta.testing import check_batch_norm, names

OUTPUT = "training output is the definition's, with the biased variance"
GRADIENTS = "training gradients of x, γ and β are the definition's"
RUNNING = "running statistics move by momentum, with the unbiased variance"
AVERAGE = "momentum=None keeps the plain average over all batches"
TWO_FORWARDS = "buffers may be overwritten between two forwards and a backward"
LAYOUT = "memory layout does not change the result"
CAUGHT_BY = [
    (subjects.UnbiasedNormalisation, OUTPUT),
    (subjects.BatchAxisOnly, OUTPUT),
    (subjects.DetachedMean, GRADIENTS),
    (subjects.DetachedVariance, GRADIENTS),
    (subjects.GammaIgnoredInDx, GRADIENTS),
    (subjects.HalvedDbeta, GRADIENTS),
    (subjects.EvalUsesBatch, "eval output uses the running statistics"),
    (subjects.EvalGradientOfIdentity, "eval gradients hold the running statistics constant"),
    (subjects.WidensHalves, "bfloat16 and float16 data keep their dtype and only round once"),
    (subjects.IgnoresActivation, "the default activation follows the normalisation"),
    (subjects.EvalUpdates, "eval leaves every buffer bit-identical"),
    (subjects.BiasedRunningVariance, RUNNING),
    (subjects.SwappedMomentum, RUNNING),
    (subjects.MomentumOfConstruction, AVERAGE),
    (subjects.Uncounted, "num_batches_tracked counts the training batches"),
    (subjects.ReboundBuffers, "buffers are written in place"),
    (subjects.EmptyBatchResets, "a batch of no samples leaves the running statistics alone"),
    (
        subjects.MeanOfSquares,
        "float32 with mean 1e4 and deviation 1e-2 keeps its variance within 1 %",
    ),
    (subjects.MeanOfSquares, "float32 with mean 1e6 and deviation 1 keeps its variance within 1 %"),
    (subjects.MomentumOfConstruction, "torch.optim.swa_utils.update_bn recomputes its statistics"),
    (subjects.EpsOutsideRoot, "eps is added to the variance, inside the root"),
    (
        subjects.IgnoresOptions,
        "track_running_stats=False keeps none and uses the batch in eval",
    ),
    (subjects.IgnoresOptions, "affine=False has no γ and no β"),
    (subjects.IgnoresOptions, "bias=False has γ and no β"),
    (subjects.StridesMisread, LAYOUT),
    (subjects.SwallowedNaN, "NaN and infinity spread through their channel, as in torch.nn"),
    (subjects.AcceptsOneValue, "one value per channel in training raises ValueError"),
    (subjects.BroadcastsAnyRank, "an input of the wrong rank raises ValueError"),
    (subjects.HalvedDbeta, "gradcheck passes"),
    (subjects.StateInAGlobal, "gradgradcheck passes"),
    (subjects.GammaIgnoredInDx, "forward-mode derivatives are right, or refused"),
    (subjects.UpdatesTwice, "activation checkpointing updates the statistics once"),
    (subjects.StateInAGlobal, TWO_FORWARDS),
    (
        subjects.StateInAGlobal,
        "two Python threads with a layer each give the bits of a serial run",
    ),
    (subjects.BreaksGraphs, "torch.compile(fullgraph=True) changes nothing"),
    (subjects.ReadsCounter, "torch.compile(fullgraph=True) with momentum=None changes nothing"),
    (subjects.CopiesAreTheSame, "deepcopy gives an independent equal"),
    (subjects.PicklesForget, "pickle gives an independent equal"),
    (subjects.ExtraKey, "state_dict loads strictly into torch.nn's twin and back"),
    (subjects.SkipsHooks, "forward and backward hooks run, and may replace the output"),
    (subjects.ThroughNumpy, "torch.jit.trace keeps eval output"),
    (subjects.ThroughNumpy, "torch.export keeps eval output"),
    (subjects.ThroughNumpy, "torch.fx.symbolic_trace keeps eval output"),
    (subjects.WithRelu, "convert_sync_batchnorm keeps eval output, or raises"),
]


@pytest.mark.parametrize(
    ("cls", "name"), CAUGHT_BY, ids=[f"{cls.__name__}: {name}" for cls, name in CAUGHT_BY]
)
def test_a_mistake_is_caught_by_the_behaviour_that_it_breaks(cls, name):
    report = check_batch_norm(cls, dims=(4,), behaviours=[name])
    assert [result.name for result in report.failures] == [name]


def test_every_behaviour_is_seen_to_fail():
    assert {name for _, name in CAUGHT_BY} == set(names())


def test_the_class_without_a_mistake_fails_nothing_but_tracing_its_control_flow():
    report = check_batch_norm(subjects.Correct)
    assert [result.name for result in report.failures] == [
        "torch.fx.symbolic_trace keeps eval output"
    ]


def test_a_global_between_forward_and_backward_is_wrong_only_where_steps_overlap():
    report = check_batch_norm(subjects.StateInAGlobal, behaviours=[OUTPUT, GRADIENTS, TWO_FORWARDS])
    assert [result.name for result in report.failures] == [TWO_FORWARDS]


def test_misread_strides_name_the_layout_that_shows_them():
    (failure,) = check_batch_norm(subjects.StridesMisread, behaviours=[LAYOUT]).failures
    assert failure.input == "(4, 3, 3, 5) float32 channels_last training"


def test_a_relu_that_cannot_be_turned_off_is_expected():
    assert check_batch_norm(subjects.WithRelu, behaviours=[OUTPUT, GRADIENTS]).passed


def test_behaviours_read_as_sentences():
    assert len(names()) == len(set(names())) > 30
    assert not [name for name in names() if len(name.split()) < 2 or name.endswith(".")]


def test_the_page_has_a_row_for_each_behaviour():
    page = Path(__file__).parents[2] / "docs" / "conformance.md"
    rows = [
        line.split("|")[1].strip() for line in page.read_text("utf-8").splitlines() if "|" in line
    ]
    assert [row for row in rows if row in names()] == names()
