"""``export``: what the file computes is what the model computes in eval mode, for any batch."""

from __future__ import annotations

import json
import zipfile

import onnx
import pytest
import torch
from torch import nn

import gammabeta
from deploy_helpers import (
    about_digits,
    expected,
    near,
    normalized,
    noted,
    op_types,
    run_onnx,
    run_pt2,
    trained,
    warmed,
)
from gammabeta.deploy import Metadata, export
from gammabeta.deploy.onnx_file import OPSET
from norm_helpers import randn


@pytest.fixture
def net(tmp_path_factory):
    return trained(tmp_path_factory.getbasetemp())


def images(count=4, size=32):
    return randn(count, 3, size, size, seed=3, dtype=torch.float32)


@pytest.mark.parametrize("fold", [True, False], ids=["folded", "with batch norms"])
def test_the_trained_net_names_the_same_digits_for_any_batch(fold, net, tmp_path):
    done = export(net, tmp_path / "net.onnx", normalized(), fold=fold)
    for count in (1, 3, 7, 40):
        near(run_onnx(done.path, normalized(count))[0], expected(net, normalized(count)))
    assert (done.checked.same, done.checked.classified) == (40, 40)
    assert 0 < done.checked.max_error <= done.checked.bound < 1e-3
    assert done.checked.batch_sizes == (40, 1, 3)
    assert done.size_bytes == done.path.stat().st_size


def test_folding_leaves_no_batch_norm_and_says_where_each_went(net, tmp_path):
    done = export(net, tmp_path / "net.onnx", normalized(3))
    assert "BatchNormalization" not in op_types(done.path)
    assert done.batch_norms == 0
    assert [entry.path for entry in done.fold.done] == ["bn1", "bn2", "bn3", "bn4"]


def test_without_folding_fused_layers_are_onnx_batch_norms_in_inference_form(net, tmp_path):
    done = export(net, tmp_path / "net.onnx", normalized(3), fold=False)
    assert op_types(done.path).count("BatchNormalization") == done.batch_norms == 4
    assert done.fold is None
    graph = onnx.load(done.path).graph
    attributes = [a for n in graph.node if n.op_type == "BatchNormalization" for a in n.attribute]
    assert not [a for a in attributes if a.name == "training_mode" and a.i]


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_the_model_is_left_to_the_bit_as_it_was(suffix, mode, net, tmp_path):
    net.train(mode)
    net.bn2.eval()
    net.conv1.register_forward_hook(lambda *_: None)
    before = noted(net)
    done = export(net, tmp_path / f"net{suffix}", normalized(5), metadata=about_digits())
    assert noted(net) == before
    run = run_pt2 if suffix == ".pt2" else lambda path, x: run_onnx(path, x)[0]
    near(run(done.path, normalized(3)), expected(net, normalized(3)))


@pytest.mark.parametrize("fold", [True, False], ids=["folded", "with batch norms"])
def test_an_archive_gives_what_the_model_gives(fold, net, tmp_path):
    done = export(net, tmp_path / "net.pt2", normalized(), fold=fold)
    for count in (1, 3, 7):
        near(run_pt2(done.path, normalized(count)), expected(net, normalized(count)))
    assert (done.opset, done.batch_norms) == (None, 0 if fold else 4)


@pytest.mark.parametrize(
    ("name", "fold"), [("resnet18", True), ("resnet18", False), ("mobilenet_v2", True)]
)
def test_torchvisions_models_are_exported_from_train_mode(name, fold, tmp_path):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model = warmed(getattr(models, name)(num_classes=7), images(8))
    done = export(model, tmp_path / "model.onnx", images(2), fold=fold)
    for count in (1, 3):
        near(run_onnx(done.path, images(count))[0], expected(model, images(count)), 1e-4)
    assert (done.batch_norms == 0) == fold
    assert (done.inputs, done.outputs) == (("images",), ("logits",))
    assert model.training


class Block(nn.Module):
    """A fused layer with a residual, of two inputs."""

    def __init__(self, **options):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = gammabeta.BatchNormAct2d(3, **options)

    def forward(self, x, residual):
        return self.bn(self.conv(x), residual)


@pytest.mark.parametrize("fold", [True, False], ids=["folded", "with batch norms"])
@pytest.mark.parametrize("options", [{}, {"activation": "gelu", "pool": 3}], ids=str)
def test_a_fused_layer_with_a_residual_has_two_inputs(options, fold, tmp_path):
    model = warmed(Block(**options), images(8, 8), images(8, 8))
    done = export(model, tmp_path / "block.onnx", (images(4, 8), images(4, 8)), fold=fold)
    assert done.inputs == ("input_0", "input_1")
    assert {node.domain for node in onnx.load(done.path).graph.node} == {""}
    for count in (1, 5):
        both = (images(count, 8), -images(count, 8))
        near(run_onnx(done.path, *both)[0], expected(model, *both))


def test_outputs_in_a_dictionary_are_numbered(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x):
            y = self.bn(x)
            return {"mean": y.mean((2, 3)), "whole": (y, None)}

    done = export(Two(), tmp_path / "two.onnx", images(4, 8))
    assert done.outputs == ("output_0", "output_1")
    assert [y.shape for y in run_onnx(done.path, images(2, 8))] == [(2, 3), (2, 3, 8, 8)]


@pytest.mark.parametrize("wrapped", ["accelerated", "compiled", "frozen", "parallel", "ghosts"])
def test_what_wraps_or_rewrites_a_model_is_understood(wrapped, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    model = warmed(model, images(8, 8))
    wanted = expected(model, images(3, 8))
    given = {
        "accelerated": gammabeta.accelerate,
        "compiled": torch.compile,
        "frozen": gammabeta.freeze,
        "parallel": nn.DataParallel,
        "ghosts": lambda m: gammabeta.convert(m, "gammabeta"),
    }[wrapped](model)
    if wrapped == "ghosts":
        given[1].virtual_batch_size = 2
    done = export(given, tmp_path / "model.onnx", images(3, 8), fold=False)
    assert done.batch_norms == 1
    near(run_onnx(done.path, images(3, 8))[0], wanted)


def test_a_single_sample_is_example_enough(net, tmp_path):
    done = export(net, tmp_path / "net.onnx", normalized(1))
    assert done.checked.batch_sizes == (1, 3)
    near(run_onnx(done.path, normalized(7))[0], expected(net, normalized(7)))


def test_more_samples_than_a_batch_holds_are_all_compared(net, tmp_path):
    done = export(net, tmp_path / "net.onnx", normalized(140))
    assert (done.checked.images, done.checked.classified) == (140, 140)
    assert done.checked.batch_sizes == (128, 12, 1, 3)


def test_metadata_of_onnx_are_plain_entries(net, tmp_path):
    done = export(net, tmp_path / "net.onnx", normalized(2), metadata=about_digits())
    proto = onnx.load(done.path)
    found = {entry.key: entry.value for entry in proto.metadata_props}
    assert found == {
        "gammabeta": gammabeta.__version__,
        "precision": "float32",
        "image_size": "16",
        "preprocessing": "outside",
        "input_type": "float32",
        "layout": "NCHW",
        "color": "RGB",
        "mean": "[0.5, 0.5, 0.5]",
        "std": "[0.5, 0.5, 0.5]",
        "classes": '["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]',
        "data": "digits",
    }
    assert (proto.producer_name, proto.producer_version) == ("gammabeta", gammabeta.__version__)
    assert [opset.version for opset in proto.opset_import] == [OPSET]
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_metadata_of_an_archive_are_one_json_object(net, tmp_path):
    done = export(net, tmp_path / "net.pt2", normalized(2), metadata=about_digits())
    extra = {"gammabeta.json": ""}
    with done.path.open("rb") as file:
        torch.export.load(file, extra_files=extra)
    found = json.loads(extra["gammabeta.json"])
    assert found["classes"] == list("0123456789")
    assert (found["mean"], found["image_size"], found["data"]) == ([0.5] * 3, 16, "digits")


def test_class_names_of_any_script_survive(tmp_path):
    names = ("猫", 'dog "x"')
    done = export(nn.Linear(3, 2), tmp_path / "m.onnx", torch.ones(2, 3),
                  metadata=Metadata(classes=names))  # fmt: skip
    entries = {e.key: e.value for e in onnx.load(done.path).metadata_props}
    assert tuple(json.loads(entries["classes"])) == names


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_neither_samples_nor_paths_of_this_machine_are_in_the_file(suffix, net, tmp_path):
    done = export(net, tmp_path / f"net{suffix}", normalized(2))
    contents = [done.path.read_bytes()]
    if suffix == ".pt2":
        with zipfile.ZipFile(done.path) as archive:
            contents = [archive.read(name) for name in archive.namelist()]
    sample = normalized(2)[0, 0].numpy().tobytes()
    for content in contents:
        for unwanted in (b"/gammabeta/", b"models.py", b"site-packages", sample):
            assert unwanted not in content


def test_a_path_may_be_text_and_the_result_is_json(net, tmp_path):
    done = export(net, str(tmp_path / "net.onnx"), normalized(2))
    document = json.loads(json.dumps(done.to_dict()))
    assert document["file"] == str(tmp_path / "net.onnx")
    assert document["folded"][0] == {"path": "bn1", "what": "merged into conv1 (Conv2d)"}
    assert "largest difference" in str(done)


def test_the_callers_modes_of_torch_do_not_matter(net, tmp_path):
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        done = export(net, tmp_path / "net.onnx", normalized(3))
    near(run_onnx(done.path, normalized(3))[0], expected(net, normalized(3)))
