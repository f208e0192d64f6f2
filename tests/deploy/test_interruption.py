"""Whatever fails, and whenever: the folder is empty, and the model as it was."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from deploy_helpers import noted
from gammabeta import GammabetaError
from gammabeta.deploy import export, onnx_file, pt2_file
from gammabeta.deploy import job as jobs
from gammabeta.deploy.export import export as _export
from gammabeta.surgery import fold
from gammabeta.training import checkpoint
from norm_helpers import randn

MODULE = __import__("sys").modules[_export.__module__]
STAGES = {
    "copy": (MODULE, "evaluating"),
    "expectation": (MODULE, "expect"),
    "fold": (fold, "fold"),
    "recording": (MODULE, "capture"),
    "translation": (onnx_file, "translate"),
    "metadata": (onnx_file, "label"),
    "ONNX's checker": (onnx.checker, "check_model"),
    "write": (jobs, "write_atomically"),
    "session": (jobs, "open_session"),
    "run": (jobs, "run_session"),
    "comparison": (jobs, "compare"),
    "flush": (os, "fsync"),
    "rename": (Path, "replace"),
}
INT8 = {"quantizer": (jobs, "quantize"), "judgement": (jobs, "judge")}
PT2 = {"archive": (pt2_file, "archive"), "loading": (torch.export, "load")}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))


@pytest.fixture
def images():
    return randn(9, 3, 8, 8, seed=3, dtype=torch.float32)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("stage", [*STAGES, *INT8, *PT2])
def test_a_failure_at_any_stage_leaves_nothing(stage, error, model, images, tmp_path, monkeypatch):
    owner, name = (STAGES | INT8 | PT2)[stage]
    reached = []

    def fail(*args, **options):
        reached.append(stage)
        raise error("stopped here")

    elsewhere = tmp_path / "tmp"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    folder = tmp_path / "folder"
    folder.mkdir()
    before = noted(model)
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises((error, GammabetaError)):
        export(
            model,
            folder / ("model.pt2" if stage in PT2 else "model.onnx"),
            images,
            int8=images if stage in INT8 else None,
        )
    monkeypatch.undo()
    assert reached
    assert list(folder.iterdir()) == []
    assert list(elsewhere.iterdir()) == []
    assert noted(model) == before


def test_after_an_interruption_the_same_call_succeeds(model, images, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "compare", stop)
    with pytest.raises(KeyboardInterrupt):
        export(model, tmp_path / "model.onnx", images)
    monkeypatch.undo()
    done = export(model, tmp_path / "model.onnx", images)
    assert list(tmp_path.iterdir()) == [done.path]


def test_int8_leaves_the_quantized_file_alone(model, images, tmp_path, monkeypatch):
    elsewhere = tmp_path / "tmp"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    done = export(model, tmp_path / "model.onnx", images, int8=images)
    assert sorted(tmp_path.iterdir()) == [done.path, elsewhere]
    assert list(elsewhere.iterdir()) == []


def test_a_full_disk_is_an_error_that_says_so(model, images, tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(GammabetaError, match=r"No space left on device.*Free some space"):
        export(model, tmp_path / "model.onnx", images)
    assert list(tmp_path.iterdir()) == []


def test_the_bytes_on_the_disk_are_those_that_are_verified(model, images, tmp_path, monkeypatch):
    """Damage between writing and running is seen, since the file is read back."""
    real = checkpoint.write_atomically

    def damaging(path, write):
        def both(file):
            class Damaged:
                name = file.name
                write = staticmethod(lambda content: file.write(content[:-200]))
                flush = file.flush

            write(Damaged)

        real(path, both)

    monkeypatch.setattr(jobs, "write_atomically", damaging)
    with pytest.raises(GammabetaError):
        export(model, tmp_path / "model.onnx", images)
    assert list(tmp_path.iterdir()) == []
