"""Measuring counts the same whatever the batch, and leaves the model as it was."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from gammabeta.data import Normalization, Split
from gammabeta.training.evaluate import Evaluation, eval_mode, evaluate
from training_helpers import digits, trained_run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return trained_run(tmp_path_factory.getbasetemp()).load_model()


def measure(model, dataset, **options):
    return evaluate(model, dataset.test, dataset.normalization, **options)


def test_the_batch_size_does_not_change_a_count(model):
    results = [measure(model, digits(16), batch_size=n) for n in (1, 7, 128, 500)]
    assert results[0].accuracy > 0.8, "this test needs a trained model"
    for result in results[1:]:
        assert np.array_equal(result.confusion, results[0].confusion)
        assert result.loss == pytest.approx(results[0].loss, rel=1e-5)


def test_confusion_and_loss_are_those_of_a_plain_loop(model):
    test = digits(16).test
    images = (torch.from_numpy(test.images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        logits = copy.deepcopy(model).eval()(images)
    labels = torch.from_numpy(test.labels)
    result = measure(model, digits(16))
    expected = np.zeros((10, 10), np.int64)
    np.add.at(expected, (test.labels, logits.argmax(1).numpy()), 1)
    assert np.array_equal(result.confusion, expected)
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item())
    assert (result.correct, result.total) == (np.trace(expected), 360)
    assert result.accuracy == np.trace(expected) / 360


def test_rows_are_true_classes_and_an_absent_class_has_no_accuracy():
    result = Evaluation(0.5, np.array([[3, 1, 0], [0, 2, 2], [0, 0, 0]]))
    assert (result.correct, result.total, result.accuracy) == (5, 8, 5 / 8)
    assert result.class_accuracy == [0.75, 0.5, None]


def everything(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    grads = {k: p.grad for k, p in model.named_parameters()}
    return copy.deepcopy((tensors, grads, torch.get_rng_state(), np.random.get_state()[1]))  # noqa: NPY002 - that it stays is the test


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


def training_model_with_a_frozen_part(model):
    twin = copy.deepcopy(model).train()
    twin.bn2.eval()
    twin.conv1.requires_grad_(requires_grad=False)
    twin(torch.randn(4, 3, 16, 16)).square().sum().backward()
    return twin


def test_nothing_of_the_model_or_the_random_state_is_changed(model):
    twin = training_model_with_a_frozen_part(model)
    before, was = everything(twin), modes(twin)
    measure(twin, digits(16))
    assert modes(twin) == was
    assert not was["bn2"]
    assert was["bn1"]
    torch.testing.assert_close(everything(twin), before, rtol=0, atol=0)
    assert twin.conv2.weight.grad is not None
    assert twin.fc2.weight.requires_grad
    assert not twin.conv1.weight.requires_grad


def test_a_training_goes_on_after_measuring(model):
    twin = copy.deepcopy(model).train()
    logits = twin(torch.randn(4, 3, 16, 16))
    measure(twin, small_of_16())
    logits.square().sum().backward()
    assert twin.conv1.weight.grad.abs().max() > 0


def small_of_16():
    whole = digits(16)
    test = Split(whole.test.images[:9], whole.test.labels[:9])
    return type(whole)(whole.name, whole.train, test, whole.classes)


def test_an_interruption_gives_the_modes_back(model):
    twin = training_model_with_a_frozen_part(model)
    was = modes(twin)
    seen = []

    def stop(done, total):
        seen.append((done, total))
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(twin, digits(16), batch_size=50, on_batch=stop)
    assert seen == [(50, 360), (100, 360)]
    assert modes(twin) == was
    assert not torch.is_inference_mode_enabled()


def test_eval_mode_gives_back_what_was_set_inside():
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    model[1].eval()
    with eval_mode(model):
        assert set(modes(model).values()) == {False}
        model[1].train()
    assert modes(model) == {"": True, "0": True, "1": False}


def test_a_broken_model_is_measured_as_it_is(model):
    twin = copy.deepcopy(model)
    nn.init.constant_(twin.fc2.bias, math.nan)
    result = measure(twin, digits(16))
    assert math.isnan(result.loss)
    assert result.total == 360


def test_the_measurement_is_in_float32(model):
    seen = []
    twin = copy.deepcopy(model)
    twin.fc1.register_forward_hook(lambda _module, _given, out: seen.append(out.dtype))
    measure(twin, small_of_16())
    assert seen == [torch.float32]


def test_the_normalization_is_applied(model):
    whole = digits(16)
    other = evaluate(model, whole.test, Normalization((0.9,) * 3, (0.1,) * 3))
    assert other.loss != measure(model, whole).loss
