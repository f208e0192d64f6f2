"""``open_onnx``: an exported file in the place of a network, and every other file refused."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import nn

from deploy_helpers import SIZE, about_digits, normalized, raw_bytes, trained
from gammabeta import GammabetaError
from gammabeta.deploy import export, open_onnx
from gammabeta.training.evaluate import evaluate
from norm_helpers import randn
from training_helpers import digits


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return trained(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module", params=[False, True], ids=["scaled", "bytes"])
def file(net, request, tmp_path_factory):
    """The digits' network as a file of each kind of input."""
    example = raw_bytes() if request.param else normalized()
    path = tmp_path_factory.mktemp("session") / "net.onnx"
    export(net, path, example, metadata=about_digits(), with_preprocessing=request.param)
    return path


def test_it_counts_as_the_model_does(net, file):
    dataset = digits(SIZE)
    model = open_onnx(file, threads=1)
    wanted = evaluate(net, dataset.test, dataset.normalization)
    got = evaluate(model, dataset.test, model.normalization)
    assert (got.confusion == wanted.confusion).all()
    assert got.loss == pytest.approx(wanted.loss, rel=1e-5)


def test_it_knows_what_the_run_knew(file):
    model = open_onnx(file)
    assert model.classes == digits(SIZE).classes
    assert (model.image_size, model.labelled.data) == (SIZE, "digits")
    assert model.labelled.normalization == digits(SIZE).normalization


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_the_runtimes(threads, file):
    assert open_onnx(file, threads).session.get_session_options().intra_op_num_threads == threads


def edited(file, tmp_path, change):
    proto = onnx.load(file)
    change(proto)
    path = tmp_path / "edited.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def drop(*names):
    def change(proto):
        kept = [entry for entry in proto.metadata_props if entry.key not in names]
        del proto.metadata_props[:]
        proto.metadata_props.extend(kept)

    return change


def put(name, value):
    def change(proto):
        drop(name)(proto)
        proto.metadata_props.add(key=name, value=value)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("classes"), "has no classes in its metadata; write the file with `gammabeta export"),
        (drop("classes", "mean", "std", "image_size", "preprocessing"),
         "has no classes, mean, std, image_size, preprocessing in its metadata"),
        (put("classes", "[1, 2]"), "damaged metadata: classes: is"),
        (put("classes", "[" * 100_000), "damaged metadata: classes: is"),
        (put("mean", "[true, 0.5, 0.5]"), "damaged metadata: scaling: is"),
        (put("classes", "no json"), "damaged metadata"),
        (put("classes", '["a", "b"]'), "no classifier of 16x16 images into 2 classes"),
        (put("mean", "[0.5]"), "damaged metadata"),
        (put("std", "[0.5, 0.0, 0.5]"), "damaged metadata"),
        (put("std", "[0.5, NaN, 0.5]"), "damaged metadata"),
        (put("image_size", "-1"), "damaged metadata: image_size is -1"),
        (put("image_size", "32"), "no classifier of 32x32 images"),
        (put("preprocessing", "maybe"), "damaged metadata"),
    ],
    ids=range(13),
)  # fmt: skip
def test_what_the_file_fails_to_say_is_named(change, message, file, tmp_path):
    path = edited(file, tmp_path, change)
    with pytest.raises(GammabetaError, match=message) as caught:
        open_onnx(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_an_unknown_data_set_is_no_data_set(file, tmp_path):
    assert open_onnx(edited(file, tmp_path, put("data", "/etc"))).labelled.data is None


@pytest.mark.parametrize("content", [b"", b"no model", "cut short"], ids=["empty", "text", "cut"])
def test_a_damaged_file_is_refused(content, file, tmp_path):
    path = tmp_path / "damaged.onnx"
    whole = file.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content == "cut short" else content)
    with pytest.raises(GammabetaError, match=r"damaged\.onnx: is not a whole ONNX file"):
        open_onnx(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(GammabetaError, match="No such file"):
        open_onnx(tmp_path / "absent.onnx")
    with pytest.raises(GammabetaError, match="is a folder, but a file was expected"):
        open_onnx(tmp_path)


@pytest.mark.parametrize("place", ["initializer", "constant", "subgraph", "function"])
def test_no_other_file_is_opened_for_weights(place, file, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * 64)

    def point_outside(proto):
        tensor = onnx.TensorProto(name="w", data_type=1, dims=[16], data_location=1)
        tensor.external_data.add(key="location", value="secret")
        node = onnx.helper.make_node("Constant", [], ["w"])
        node.attribute.append(onnx.AttributeProto(name="value", type=4, t=tensor))
        inner = onnx.GraphProto(initializer=[tensor])
        outer = onnx.helper.make_node("If", ["c"], ["z"], then_branch=inner)
        function = onnx.FunctionProto(name="f", domain="d", node=[node])
        {
            "initializer": lambda: proto.graph.initializer.append(tensor),
            "constant": lambda: proto.graph.node.append(node),
            "subgraph": lambda: proto.graph.node.append(outer),
            "function": lambda: proto.functions.append(function),
        }[place]()

    path = edited(file, tmp_path, point_outside)
    with pytest.raises(GammabetaError, match="keeps its weights in other files, which are not"):
        open_onnx(path)


def test_a_file_that_the_runtime_refuses_is_one_line(file, tmp_path):
    def unknown(proto):
        proto.graph.node[0].op_type = "NoSuchOperator"

    path = edited(file, tmp_path, unknown)
    with pytest.raises(GammabetaError, match="onnxruntime refuses the file") as caught:
        open_onnx(path)
    assert "\n" not in str(caught.value)


def test_an_exported_model_that_is_no_classifier_is_told_what_it_lacks(tmp_path):
    path = tmp_path / "other.onnx"
    export(nn.Linear(3, 2), path, randn(2, 3, seed=1, dtype=torch.float32))
    with pytest.raises(GammabetaError, match="has no classes, mean, std, image_size"):
        open_onnx(path)
