"""A file that computes anything else is found out; rounding and ties are not held against it."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import nn

from deploy_helpers import noted
from gammabeta import GammabetaError
from gammabeta.deploy import export, onnx_file
from gammabeta.deploy import job as jobs
from gammabeta.deploy.verify import compare, expect
from norm_helpers import randn


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    ).eval()


@pytest.fixture
def images():
    return randn(9, 3, 8, 8, seed=3, dtype=torch.float32)


def scale_a_weight(proto, factor):
    weight = next(w for w in proto.graph.initializer if w.name == "4.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] = values.flat[0] * factor + (factor - 1)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))


@pytest.mark.parametrize("factor", [1.001, 2.0, float("nan")])
def test_a_file_with_a_wrong_weight_is_not_left(factor, model, images, tmp_path, monkeypatch):
    real = onnx_file.label

    def tampered(proto, entries):
        real(proto, entries)
        scale_a_weight(proto, factor)

    before = noted(model)
    monkeypatch.setattr(onnx_file, "label", tampered)
    with pytest.raises(GammabetaError, match=r"model.onnx: differs from the model by .* bound"):
        export(model, tmp_path / "model.onnx", images)
    assert list(tmp_path.iterdir()) == []
    assert noted(model) == before


def test_a_runtime_that_errs_only_at_one_batch_size_is_found_out(
    model, images, tmp_path, monkeypatch
):
    real = jobs.run_session

    def wrong_for_one(session, batch):
        outputs = real(session, batch)
        return [y + (0.1 if len(y) == 1 else 0) for y in outputs]

    monkeypatch.setattr(jobs, "run_session", wrong_for_one)
    with pytest.raises(GammabetaError, match=r"differs from the model by 0\.1"):
        export(model, tmp_path / "model.onnx", images)
    assert list(tmp_path.iterdir()) == []


def test_what_the_checker_refuses_is_not_written(model, images, tmp_path, monkeypatch):
    real = onnx_file.label

    def invalid(proto, entries):
        real(proto, entries)
        proto.graph.node[0].input[0] = "absent"

    monkeypatch.setattr(onnx_file, "label", invalid)
    with pytest.raises(GammabetaError, match="the ONNX file would be invalid"):
        export(model, tmp_path / "model.onnx", images)
    assert list(tmp_path.iterdir()) == []


def batch_norm_file(**attributes):
    """One batch norm of three channels, in ONNX's own terms."""
    names = [("x", [2, 3]), *((name, [3]) for name in "abcd"), ("y", [2, 3])]
    values = [onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in names]
    outputs = ["y", "mean", "var"] if attributes else ["y"]
    node = onnx.helper.make_node("BatchNormalization", list("xabcd"), outputs, "bn1", **attributes)
    graph = onnx.helper.make_graph([node], "g", values[:-1], values[-1:])
    opset = onnx.helper.make_opsetid("", 18)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)


def test_a_batch_norm_in_training_form_is_not_written():
    assert onnx_file.check(batch_norm_file()) == 1
    with pytest.raises(GammabetaError, match="bn1 is a batch norm in training mode"):
        onnx_file.check(batch_norm_file(training_mode=1))


def test_an_operator_that_only_some_runtimes_know_is_not_written():
    proto = batch_norm_file()
    proto.graph.node[0].domain, proto.graph.node[0].op_type = "gammabeta", "batch_norm"
    proto.opset_import.append(onnx.helper.make_opsetid("gammabeta", 1))
    with pytest.raises(GammabetaError, match="gammabeta::batch_norm is no ONNX operator"):
        onnx_file.check(proto)


def runner(model, change=lambda y: y):
    def run(batch):
        with torch.no_grad():
            return [change(model(*batch))]

    return run


def test_the_bound_follows_the_models_own_noise(model, images):
    expected = expect(model, model, (images,))
    with torch.no_grad():
        y, z = model(images), nn.Sequential(*model).double()(images.double())
    model.float()
    noise = float((y - z).abs().max())
    largest = float(y.abs().max())
    assert expected.bounds[0] == pytest.approx(8 * noise + largest / 2**20, rel=0.3)


@pytest.mark.parametrize("share", [0.9, 1.1])
def test_the_bound_is_where_the_refusal_begins(share, model, images):
    expected = expect(model, model, (images,))
    shift = share * expected.bounds[0]
    run = runner(model, lambda y: y.double() + shift)
    if share < 1:
        assert compare(expected, run, "f").max_error == pytest.approx(shift, rel=1e-3)
    else:
        with pytest.raises(GammabetaError, match="f: differs from the model"):
            compare(expected, run, "f")


def test_a_bound_is_never_more_than_a_hundredth(images):
    class Careless(nn.Module):
        """Computes another thing in float64."""

        def forward(self, x):
            y = x.flatten(1)[:, :5]
            return y if x.dtype == torch.float32 else -y

    expected = expect(Careless(), Careless(), (images,))
    assert expected.bounds[0] == pytest.approx(0.01 * float(images.flatten(1)[:, :5].abs().max()))


def test_a_model_that_insists_on_float32_has_a_bound_all_the_same(images):
    class Strict(nn.Module):
        def forward(self, x):
            if x.dtype != torch.float32:
                raise TypeError
            return x.flatten(1)

    expected = expect(Strict(), Strict(), (images,))
    assert expected.bounds[0] == pytest.approx(1e-4 * float(images.abs().max()))


def test_a_class_that_differs_within_the_bound_is_a_tie(images):
    class Tied(nn.Module):
        """Two equal logits, and a small one."""

        def forward(self, x):
            one = x.flatten(1)[:, :1].sigmoid() + 1
            return torch.cat([one, one, one - 1], dim=1)

    model = Tied()
    second_wins = torch.tensor([0.0, 1.5e-7, 0.0])
    checked = compare(expect(model, model, (images,)), runner(model, lambda y: y + second_wins),
                      "f")  # fmt: skip
    assert (checked.classified, checked.ties, checked.same) == (9, 9, 0)
    assert "(9 ties)" in str(checked)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y[:, :2], r"gives \(9, 2\) for a batch of 9, the model \(9, 5\)"),
        (lambda y: y[:0], r"gives \(0, 5\)"),
        (lambda y: y / (1 // 0), "cannot run a batch of 9: integer division"),
        (lambda y: y * float("inf"), "differs from the model by inf"),
    ],
)
def test_other_shapes_and_failures_are_told(change, message, model, images):
    with pytest.raises(GammabetaError, match=message):
        compare(expect(model, model, (images,)), runner(model, change), "f")
