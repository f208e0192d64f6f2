"""int8: a quarter of the size, nearly the same answers, and nothing else about the file changed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from deploy_helpers import SIZE, about_digits, normalized, op_types, raw_bytes, run_onnx, trained
from gammabeta import GammabetaError
from gammabeta.data.loader import Loader
from gammabeta.deploy import export, open_onnx
from gammabeta.training.evaluate import evaluate
from norm_helpers import randn
from training_helpers import digits, slice_of


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return trained(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def small(net, tmp_path_factory):
    """The digits' network in eight bits, and what was measured on the way."""
    return export(net, tmp_path_factory.mktemp("int8") / "small.onnx", normalized(100),
                  metadata=about_digits(), int8=normalized(300, "train"))  # fmt: skip


def test_a_quarter_of_the_size_costs_less_than_a_point(net, small):
    dataset = digits(SIZE)
    before = evaluate(net, dataset.test, dataset.normalization)
    model = open_onnx(small.path)
    after = evaluate(model, dataset.test, model.normalization)
    assert after.accuracy >= before.accuracy - 0.01
    assert small.size_bytes < 0.27 * small.int8.float_size_bytes


def test_what_was_measured_is_told(small):
    assert small.int8.calibration_images == 300
    assert small.int8.classified == 100
    assert small.int8.same >= 97
    assert 0 < small.int8.noise < 0.1
    assert small.checked.same == 100
    assert "int8 (5.7 MB before): noise" in str(small)
    assert small.to_dict()["int8"]["calibration_images"] == 300


def test_weights_have_a_scale_a_channel_and_seven_bits(small):
    proto = onnx.load(small.path)
    arrays = {w.name: onnx.numpy_helper.to_array(w) for w in proto.graph.initializer}
    weights = [a for a in arrays.values() if a.dtype == np.int8 and a.ndim > 1]
    assert len(weights) == 5
    assert 0 < max(int(np.abs(w.astype(int)).max()) for w in weights) <= 64
    scales = [arrays[n.input[1]] for n in proto.graph.node
              if n.op_type == "DequantizeLinear" and n.input[0] in arrays
              and arrays[n.input[0]].dtype == np.int8]  # fmt: skip
    assert {s.shape for s in scales} >= {(64,), (128,), (256,), (1024,), (10,)}
    activations = {arrays[n.input[2]].dtype for n in proto.graph.node
                   if n.op_type == "QuantizeLinear"}  # fmt: skip
    assert activations == {np.dtype(np.uint8)}


def test_the_outputs_are_not_rounded_to_256_steps(small):
    proto = onnx.load(small.path)
    made = {name: node.op_type for node in proto.graph.node for name in node.output}
    assert made["logits"] == "Gemm"
    values = np.unique(run_onnx(small.path, normalized(100))[0])
    assert len(values) > 900


def test_the_file_is_standard_onnx_of_any_batch_size(small):
    proto = onnx.load(small.path)
    assert [opset.domain for opset in proto.opset_import] == [""]
    onnx.checker.check_model(proto, full_check=True)
    for count in (1, 3, 7):
        assert run_onnx(small.path, normalized(count))[0].shape == (count, 10)
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    assert (entries["precision"], entries["data"]) == ("int8", "digits")


def test_the_same_call_gives_the_same_bytes(net, small, tmp_path):
    again = export(net, tmp_path / "again.onnx", normalized(100), metadata=about_digits(),
                   int8=normalized(300, "train"))  # fmt: skip
    assert again.path.read_bytes() == small.path.read_bytes()


def test_calibration_may_be_a_loaders_epoch_and_the_file_may_take_bytes(net, tmp_path):
    dataset = digits(SIZE)
    pairs = Loader(slice_of(dataset.train, 200), 64, dataset.normalization).epoch(0)
    done = export(net, tmp_path / "a.onnx", normalized(50), int8=pairs)
    assert (done.int8.calibration_images, done.int8.same > 45) == (200, True)
    done = export(net, tmp_path / "b.onnx", raw_bytes(50), metadata=about_digits(),
                  with_preprocessing=True, int8=raw_bytes(100))  # fmt: skip
    assert done.int8.same > 45
    assert "QuantizeLinear" in op_types(done.path)


def test_a_calibration_on_other_data_is_found_out(net, tmp_path):
    with pytest.raises(GammabetaError, match=r"changes the outputs by .* Calibrate with real"):
        export(net, tmp_path / "a.onnx", normalized(50), int8=normalized(50) * 1e-3)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_weights_is_refused(tmp_path):
    x = randn(4, 3, seed=3, dtype=torch.float32)
    with pytest.raises(GammabetaError, match="no convolution or linear layer to quantize"):
        export(nn.Tanh(), tmp_path / "a.onnx", x, int8=x, fold=False)
    assert list(tmp_path.iterdir()) == []
