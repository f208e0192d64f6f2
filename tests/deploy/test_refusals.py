"""What ``export`` refuses, in one line that says why, and without leaving a file."""

from __future__ import annotations

import builtins
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deploy_helpers import noted
from gammabeta import GammabetaError
from gammabeta.data import Normalization
from gammabeta.deploy import Metadata, export
from norm_helpers import randn


def images(count=3, size=8):
    return randn(count, 3, size, size, seed=3, dtype=torch.float32)


class Calling(nn.Module):
    """A model of one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def batch_statistics(x):
    return F.batch_norm(x, None, None, training=True)


MODELS = {
    "no statistics": (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        "no running statistics in 1 .*track_running_stats=True and gammabeta.recalibrate",
    ),
    "functional batch norm": (
        nn.Sequential(nn.Conv2d(3, 4, 3), Calling(batch_statistics)),
        "1 normalises with its batch's statistics.*training=self.training",
    ),
    "functional dropout": (
        nn.Sequential(nn.Conv2d(3, 4, 3), Calling(F.dropout)),
        "draws random numbers in eval mode.*training=self.training",
    ),
    "half precision": (nn.Conv2d(3, 4, 3).bfloat16(), "weight is bfloat16.*model.float()"),
    "lazy": (nn.LazyConv2d(4, 3), "lazy layers: call it once"),
    "fixed batch": (Calling(lambda x: x.reshape(3, 192)), "fails on inputs of shape .1, 3, 8, 8."),
    "data-dependent": (
        Calling(lambda x: x if x.sum() > 0 else -x),
        "cannot be recorded for any batch size",
    ),
    "not a number": (Calling(lambda x: (x - 9).log()), "NaN or infinity"),
    "no tensor": (Calling(lambda x: len(x)), "returns no tensor"),
    "no such operator": (Calling(lambda x: torch.linalg.eigvals(x).real), "written as ONNX"),
}


@pytest.mark.parametrize("kind", list(MODELS))
@pytest.mark.parametrize("fold", [True, False], ids=["folded", "with batch norms"])
def test_a_model_that_is_none_to_export_is_refused(kind, fold, tmp_path):
    model, message = MODELS[kind]
    before = noted(model) if kind not in {"lazy", "half precision"} else None
    with pytest.raises(GammabetaError, match=message) as caught:
        export(model, tmp_path / "model.onnx", images(), fold=fold)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert before is None or noted(model) == before


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("model", {}, r"model: the name must end in .onnx \(ONNX\) or .pt2"),
        ("model.ONNX", {}, "must end in .onnx"),
        ("model.pth", {}, "must end in .onnx"),
        ("absent/model.onnx", {}, "there is no folder .*absent; make it first"),
        ("model.pt2", {"int8": images()}, "int8 is for .onnx files"),
        ("model.onnx", {"int8": []}, "int8 needs samples to calibrate with"),
        ("model.onnx", {"with_preprocessing": True}, "needs metadata with a normalization"),
        ("model.onnx", {"metadata": Metadata(classes=("a", "b"))}, "names 2 classes, but .*4"),
        ("model.onnx", {"metadata": Metadata(image_size=9)}, "images of 9 pixels, but"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_argument_is_refused(name, options, message, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten())
    with pytest.raises(GammabetaError, match=message):
        export(model, tmp_path / name, images(), **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.ones(0, 3), "the batch first"),
        (torch.tensor(1.0), "the batch first"),
        ((), "the batch first"),
        ([[1.0]], "the batch first"),
        ((torch.ones(2, 3), torch.ones(3, 3)), "hold 2, 3 samples"),
        (torch.ones(2, 4), "the model fails on inputs of shape .2, 4."),
    ],
    ids=["empty", "scalar", "none", "list", "unequal", "wrong shape"],
)
def test_a_wrong_example_is_refused(example, message, tmp_path):
    with pytest.raises(GammabetaError, match=message):
        export(nn.Linear(3, 2), tmp_path / "model.onnx", example)
    assert list(tmp_path.iterdir()) == []


def test_float_images_are_no_example_for_a_file_that_takes_bytes(tmp_path):
    with pytest.raises(GammabetaError, match="example of uint8"):
        export(nn.Flatten(), tmp_path / "model.onnx", images(), with_preprocessing=True,
               metadata=Metadata(normalization=Normalization()))  # fmt: skip


def test_a_data_set_of_ones_own_is_not_named_in_a_file():
    with pytest.raises(GammabetaError, match="data is '/home/me/photos', but must be"):
        Metadata(data="/home/me/photos")


@pytest.mark.parametrize("kind", ["file", "folder", "broken link"])
def test_what_exists_is_never_overwritten(kind, tmp_path):
    target = tmp_path / "model.onnx"
    {"file": lambda: target.write_bytes(b"mine"), "folder": target.mkdir,
     "broken link": lambda: target.symlink_to("absent")}[kind]()  # fmt: skip
    with pytest.raises(GammabetaError, match="already exists and is not overwritten; choose"):
        export(nn.Linear(3, 2), target, torch.ones(2, 3))
    assert kind != "file" or target.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path):
    target = tmp_path / "model.pt2"

    class Writing(nn.Linear):
        def forward(self, x):
            target.write_bytes(b"mine")
            return super().forward(x)

    with pytest.raises(GammabetaError, match="already exists"):
        export(Writing(3, 2), target, torch.ones(2, 3))
    assert target.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_the_command_that_installs_it_is_named(package, tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **options):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **options)

    for name in [n for n in sys.modules if n.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(builtins, "__import__", missing)
    message = rf"{package} is not installed; pip install '.\[export\]' in a clone"
    with pytest.raises(GammabetaError, match=message):
        export(nn.Linear(3, 2), tmp_path / "model.onnx", torch.ones(2, 3))
    export(nn.Linear(3, 2), tmp_path / "model.pt2", torch.ones(2, 3))
