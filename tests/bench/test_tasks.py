"""All subjects do the same work: equal outputs, gradients and updates for the same weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gammabeta import GammabetaError
from gammabeta.bench.models import build
from gammabeta.bench.subjects import EAGER_NCHW, SUBJECTS, Block, Subject, compiler, named
from gammabeta.bench.tasks import MODES, block_task, check_model, random_images, step_task

EAGER = [subject for subject in SUBJECTS if not subject.compiled]
TOLERANCE = {"fp32": {"rtol": 1e-4, "atol": 1e-5}, "bf16": {"rtol": 0.05, "atol": 0.02}}
(NCHW,) = named(EAGER_NCHW)


def layout_of(tensor):
    last = tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "block",
    [Block((4, 8, 6, 6), pool=2), Block((3, 8, 5, 5)), Block((2, 8, 4, 4), activation=None)],
    ids=["pooled", "relu", "plain"],
)
def test_every_subject_gives_the_same_output_and_gradients(block, precision, mode):
    expected = block_task(NCHW, block, precision, mode).call()
    assert len(expected) == (4 if mode == "backward" else 1)
    for subject in EAGER:
        got = block_task(subject, block, precision, mode).call()
        for theirs, ours in zip(expected, got, strict=True):
            assert theirs.dtype == ours.dtype
            torch.testing.assert_close(ours, theirs, **TOLERANCE[precision])


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
def test_a_compiled_subject_gives_the_same_output_and_gradients():
    block = Block((2, 4, 4, 4), pool=2)
    expected = block_task(NCHW, block, "fp32").call()
    (compiled,) = named("torch.compile channels-last")
    got = block_task(compiled, block, "fp32").call()
    torch.testing.assert_close(got, expected, **TOLERANCE["fp32"])


@pytest.mark.parametrize("subject", EAGER, ids=lambda subject: subject.name)
def test_data_and_weights_are_in_the_subjects_layout(subject):
    task = block_task(subject, Block((2, 4, 6, 6)), "fp32")
    assert {layout_of(t) for t in task.resident() if t.dim() == 4} == {subject.layout}
    step = step_task(subject, build("net", 8), random_images(2, 8, torch.channels_last), "fp32")
    wide = [t for t in step.resident() if t.dim() == 4 and min(t.shape[1:3]) > 1]
    assert wide
    assert {layout_of(t) for t in wide} == {subject.layout}


@pytest.mark.parametrize("mode", MODES)
def test_only_training_moves_the_running_statistics(mode):
    made = []

    def remembered(block):
        made.append(block.with_torch())
        return made[0]

    subject = Subject("remembered", torch.contiguous_format, remembered)
    block_task(subject, Block((2, 4, 6, 6)), "fp32", mode).call()
    assert bool(made[0][0].num_batches_tracked) == (mode != "eval")


@pytest.mark.parametrize(
    ("name", "precision"), [("net", "fp32"), ("net", "bf16"), ("torchvision:resnet18", "fp32")]
)
def test_every_subject_takes_the_same_training_steps(name, precision):
    if name != "net":
        pytest.importorskip("torchvision")
    model, images = build(name, 32), random_images(6, 32, torch.contiguous_format)
    untouched = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = []
    for subject in EAGER:
        task = step_task(subject, model, images, precision)
        losses.append([task.call().loss for _ in range(3)])
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-4 if precision == "fp32" else 0.02)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, untouched[name]), "the given model was changed"


def test_a_step_moves_the_weights_that_it_holds():
    task = step_task(NCHW, build("net", 8), random_images(4, 8, torch.contiguous_format), "fp32")
    before = [t.clone() for t in task.resident()]
    task.call()
    after = list(task.resident())
    assert len(after) > len(before), "the optimizer's momentum is held from the first step on"
    assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=False))


def test_the_peak_of_a_step_is_at_least_weights_momentum_gradients_and_images():
    model, images = build("net", 8), random_images(4, 8, torch.contiguous_format)
    task = step_task(NCHW, model, images, "fp32")
    task.call()
    weights = sum(p.nbytes for p in model.parameters())
    peak = task.peak_bytes()
    assert 3 * weights + images.nbytes < peak < 3 * weights + 50 * 2**20
    task.call()
    assert task.peak_bytes() == peak, "it must not depend on what the step before has left"


class Breaks(nn.Module):
    """A classifier whose logits are NaN."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3 * 8 * 8, 10)

    def forward(self, x):
        return self.fc(x.flatten(1)) * math.nan


def test_a_step_without_a_finite_loss_is_an_error_since_nothing_was_computed_backward():
    task = step_task(NCHW, Breaks(), random_images(2, 8, torch.contiguous_format), "fp32")
    with pytest.raises(GammabetaError, match="loss of eager NCHW is nan"):
        task.call()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(5, 10), r"toy does not take images of shape \(2, 3, 8, 8\): mat1 and mat2"),
        (nn.Conv2d(3, 12, 8), r"toy returns \(2, 12, 1, 1\) in training"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 9)), "at least 10 classes"),
        (nn.LSTM(8, 10), "toy does not take images"),
    ],
)
def test_a_model_that_is_no_classifier_of_such_images_is_refused(model, message):
    with pytest.raises(GammabetaError, match=message):
        check_model(model, torch.randn(4, 3, 8, 8), "toy")
