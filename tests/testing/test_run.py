"""How a check is run: ranks, options, refusals, and what it leaves alone."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from gammabeta.errors import GammabetaError
from gammabeta.testing import check_batch_norm, names

OUTPUT = names()[0]


class NoMomentum(nn.Module):
    def __init__(self, num_features):
        super().__init__()
        self.inner = nn.BatchNorm2d(num_features)

    def forward(self, x):
        return self.inner(x)


class NoStatistics(nn.Module):
    def __init__(self, num_features):
        super().__init__()
        self.inner = nn.BatchNorm2d(num_features, track_running_stats=False)

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize(
    ("cls", "name", "reason"),
    [
        (NoMomentum, "momentum=None keeps the plain average over all batches", "no `momentum`"),
        (NoStatistics, "eval output uses the running statistics", "no running statistics"),
        (nn.BatchNorm2d, "the default activation follows the normalisation", "no activation"),
    ],
)
def test_what_does_not_concern_a_class_is_not_applicable(cls, name, reason):
    (result,) = check_batch_norm(cls, behaviours=[name]).results
    assert result.status == "not applicable"
    assert reason in result.reason


def test_an_activation_that_is_no_relu_is_not_judged():
    class Smooth(nn.BatchNorm2d):
        def __init__(self, num_features, activation="silu"):  # noqa: ARG002
            super().__init__(num_features)

    name = "the default activation follows the normalisation"
    (result,) = check_batch_norm(Smooth, behaviours=[name]).results
    assert result.reason == "its default activation is 'silu', not ReLU"


def test_a_module_that_holds_a_batch_norm_is_judged_like_one():
    assert check_batch_norm(NoMomentum, behaviours=[OUTPUT]).passed


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (nn.Bilinear, "makes no layer: TypeError"),
        (nn.PixelShuffle, "accepts no"),
        (int, "is int, expected a torch.nn.Module"),
        (nn.Embedding, "makes no layer: TypeError"),
    ],
)
def test_what_is_no_batch_norm_is_refused(cls, message):
    with pytest.raises(GammabetaError, match=message):
        check_batch_norm(cls)


def test_an_unknown_behaviour_is_refused():
    with pytest.raises(GammabetaError, match="no behaviour is named 'flies'"):
        check_batch_norm(nn.BatchNorm2d, behaviours=["flies"])


def test_make_builds_the_layers_and_cls_names_the_report():
    report = check_batch_norm(
        nn.BatchNorm2d, make=lambda c, **k: nn.BatchNorm3d(c, **k), behaviours=[OUTPUT]
    )
    assert report.subject == "torch.nn.modules.batchnorm.BatchNorm2d"
    assert report.passed


def test_an_exception_of_the_class_is_a_failure_with_its_input():
    class Breaks(nn.BatchNorm2d):
        def forward(self, x):
            if self.training:
                raise KeyError("lost")
            return super().forward(x)

    (failure,) = check_batch_norm(Breaks, behaviours=[OUTPUT]).failures
    assert failure.reason == "KeyError: 'lost'"
    assert failure.input == "(2, 1, 1, 1) float64 contiguous training"


def test_a_check_leaves_random_numbers_warnings_and_gradient_mode_alone():
    state, filters = torch.random.get_rng_state(), list(warnings.filters)
    with torch.no_grad():
        assert check_batch_norm(nn.BatchNorm2d, behaviours=names()[:3]).passed
    assert torch.equal(torch.random.get_rng_state(), state)
    assert warnings.filters == filters
