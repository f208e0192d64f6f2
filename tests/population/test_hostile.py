"""Interrupted anywhere, ``recalibrate`` leaves the model bitwise as it was, and nothing behind."""

from __future__ import annotations

import errno
import gc
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn

from gammabeta import GammabetaError, recalibrate
from population_helpers import (
    NETWORKS,
    assert_same,
    assert_untouched,
    everything,
    images,
    network,
    statistics,
    truth,
)
from surgery_helpers import twin


class BoomError(Exception):
    """Nobody catches it but the tests."""


def failing_after(count, error, run):
    """Return a function that runs ``run`` that many times and then raises."""
    calls = iter(range(count))

    def call(*args, **kwargs):
        if next(calls, None) is None:
            raise error
        return run(*args, **kwargs)

    return call


@pytest.mark.parametrize("error", [BoomError("here"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("name", ["plain", "residual", "dense", "Net"])
def test_an_exception_in_any_module_and_call_changes_nothing(name, sequential, error):
    model, x, failed = network(name).train(), images(), 0
    for module in model.modules():
        for count in (0, 1, 3):
            module.forward = failing_after(count, error, module.forward)
            before = everything(model)
            try:
                recalibrate(model, x.split(6), sequential=sequential)
            except type(error):
                failed += 1
                assert_untouched(before, model)
            del module.forward
    assert failed > 2 * len(list(model.children()))


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("good", [0, 1, 3])
def test_a_loader_that_fails_changes_nothing(good, sequential):
    def loader():
        yield from images().split(6)[:good]
        raise BoomError("the disk is gone")

    model = network("residual").train()
    before = everything(model)
    with pytest.raises(BoomError):
        recalibrate(model, loader(), sequential=sequential)
    assert_untouched(before, model)


@pytest.mark.parametrize("count", range(8))
def test_an_exception_while_writing_takes_back_what_was_written(monkeypatch, count):
    model, x = network("residual"), images()
    module = sys.modules["gammabeta.population.recalibrate"]
    copy_, write, calls = torch.Tensor.copy_, module._write, []

    def failing(self, value):
        calls.append(self)
        if len(calls) == count + 1:
            raise KeyboardInterrupt
        return copy_(self, value)

    def failing_write(changes):
        monkeypatch.setattr(torch.Tensor, "copy_", failing)
        write(changes)

    monkeypatch.setattr(module, "_write", failing_write)
    before = everything(model)
    with pytest.raises(KeyboardInterrupt):
        recalibrate(model, x.split(6))
    after = everything(model)
    assert len(calls) > count + 1  # it went on to put back
    for name, (_, _, value) in before["tensors"].items():
        assert torch.equal(after["tensors"][name][2], value), name


@pytest.mark.parametrize("name", NETWORKS)
def test_beyond_the_budget_activations_go_to_disk_and_the_bits_stay(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("gammabeta.population.parking._LEAST", 1)
    monkeypatch.setattr("gammabeta.population.parking._DISK_RATE", 1e12)  # never run again
    model, x = network(name), images()
    expected, before = twin(model), everything(model)
    recalibrate(expected, x.split(5))
    report = recalibrate(model, x.split(5), memory=0)
    assert report.spilled > 0
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[key]), key
    assert_untouched(before, model, but=("running_mean", "running_var"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_sooner_computed_again_is_not_kept(name, monkeypatch):
    monkeypatch.setattr("gammabeta.population.parking._LEAST", 1)
    monkeypatch.setattr("gammabeta.population.parking._DISK_RATE", 1e-9)
    model, x = network(name), images()
    expected = twin(model)
    recalibrate(expected, x.split(5))
    report = recalibrate(model, x.split(5), memory=0)
    assert report.spilled == 0
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[key]), key


def test_a_batch_whose_input_was_written_into_is_not_run_again(monkeypatch):
    monkeypatch.setattr("gammabeta.population.parking._LEAST", 1)
    monkeypatch.setattr("gammabeta.population.parking._DISK_RATE", 1e-9)
    model = nn.Sequential(nn.ReLU(inplace=True), network("plain")).double()
    expected = truth(model, images())
    report = recalibrate(model, [b.clone() for b in images().split(5)], memory=0)
    assert report.spilled > 0
    assert_same(statistics(model), expected)


def test_a_tensor_of_the_users_own_does_not_stay_on_disk(monkeypatch):
    class Masked(type(network("residual"))):
        def forward(self, x, mask):
            return super().forward(x * mask)

    monkeypatch.setattr("gammabeta.population.parking._LEAST", 1)
    monkeypatch.setattr("gammabeta.population.parking._DISK_RATE", 1e12)
    mask = torch.ones(3, 8, 8).double() * 2
    report = recalibrate(
        Masked().double(), images().split(6), forward=lambda m, b: m(b, mask), memory=0
    )
    assert report.spilled > mask.nbytes
    assert mask.untyped_storage().filename is None
    assert torch.equal(mask, torch.full_like(mask, 2))


def test_the_disk_space_is_free_again_after_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("gammabeta.population.parking._LEAST", 1)
    monkeypatch.setattr("gammabeta.population.parking._DISK_RATE", 1e12)
    model = network("residual")
    model.bn2.forward = failing_after(1, BoomError, model.bn2.forward)
    with suppress(BoomError):  # what the exception's frames hold is free with the exception
        recalibrate(model, images().split(6), memory=0)
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_a_full_disk_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("gammabeta.population.parking._LEAST", 1)
    monkeypatch.setattr("gammabeta.population.parking._DISK_RATE", 1e12)
    monkeypatch.setattr(os, "posix_fallocate", full)
    model = network("residual")
    before = everything(model)
    with pytest.raises(GammabetaError, match=r"no room for .*No space left on device.*TMPDIR"):
        recalibrate(model, images().split(6), memory=0)
    assert_untouched(before, model)
    assert list(tmp_path.iterdir()) == []


class Routed(nn.Module):
    """Dark images take a layer more; with ``crossed`` they take the two in the other order."""

    def __init__(self, crossed):
        super().__init__()
        self.a, self.b, self.crossed = nn.BatchNorm2d(3), nn.BatchNorm2d(3), crossed

    def forward(self, x):
        if x.mean() > 1:
            return self.b(self.a(x))
        return self.a(self.b(x)) if self.crossed else self.b(x)


def test_batches_may_take_different_ways():
    model = Routed(crossed=False).double()
    dark, light = images(8) - 3, images(8) + 3
    report = recalibrate(model, [light, dark])
    assert [c.values for c in report.changes] == [8 * 64, 16 * 64]
    through = torch.cat([model.eval().a(light), dark])
    torch.testing.assert_close(model.b.running_mean, through.mean((0, 2, 3)))
    torch.testing.assert_close(model.b.running_var, through.var((0, 2, 3)))


def test_layers_without_an_order_are_refused():
    model = Routed(crossed=True).double()
    before = everything(model)
    batches = [images(8) + 3, images(8) - 3]
    with pytest.raises(GammabetaError, match=r"batch 1: a is called after .*sequential=False"):
        recalibrate(model, batches)
    assert_untouched(before, model)
    assert len(recalibrate(model, batches, sequential=False).changes) == 2
