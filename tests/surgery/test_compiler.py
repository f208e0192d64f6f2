"""The backend for ``torch.compile`` computes what eager does, in fewer calls."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import gammabeta
from gammabeta import accelerate, convert, freeze
from gammabeta.surgery import compiler
from surgery_helpers import assert_twins, images, near, twin

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.fixture
def reports():
    """The reports of the graphs that are captured."""
    return []


@pytest.fixture
def backend(reports):
    """The backend, which keeps its reports."""

    def run(graph, inputs):
        forward = compiler.gammabeta(graph, inputs)
        reports.append(graph.gammabeta_report)
        return forward

    return run


def fused(reports):
    return [e.what.removeprefix("fused ") for r in reports for e in r.done]


class Block(nn.Module):
    """A residual block in torch's layers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)) + x)


MODELS = {
    # In training these move their running statistics before the sum, which so stays apart.
    "gammabeta's layers": (lambda: convert(torchvision.models.resnet18()), 9),
    "accelerated": (lambda: accelerate(torchvision.models.resnet18()), 17),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_known_model_computes_what_it_did(name, backend, reports):
    make, count = MODELS[name]
    torch.manual_seed(0)
    model = make().double()
    reference = convert(model, to="torch")
    model.compile(backend=backend)
    assert_twins(model, reference, images(size=64))
    assert len(fused(reports[:1])) == count


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: nn.Sequential(gammabeta.BatchNorm2d(3), nn.SiLU()), "BN + silu"),
        (lambda: nn.Sequential(gammabeta.BatchNorm2d(3), nn.GELU("tanh")), "BN + gelu"),
        (
            lambda: nn.Sequential(gammabeta.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)),
            "BN + relu + max pooling 2x2",
        ),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_the_operator_of_gammabetas_layers_is_fused_as_well(
    make, expected, training, backend, reports
):
    model = make().train(training)
    reference = convert(model, to="torch").double()
    x = images(dtype=torch.float32)
    got = torch.compile(model, backend=backend)(x)
    near(got, reference(x.double()).to(got.dtype), 1e-5, "output")
    near(model[0].running_var.double(), reference[0].running_var, 1e-5, "running_var")
    assert fused(reports) == [expected]


@pytest.mark.parametrize("training", [True, False])
def test_a_residual_after_gammabetas_layers_is_added_as_before(training, backend):
    model = convert(Block()).train(training)
    reference = convert(model, to="torch").double()
    x = images(dtype=torch.float32)
    got = torch.compile(model, backend=backend)(x)
    near(got, reference(x.double()).to(got.dtype), 1e-5, "output")


def test_shapes_may_change(backend, reports):
    model = Block().double()
    reference = twin(model)
    compiled = torch.compile(model, backend=backend, dynamic=True)
    for n, size in [(2, 8), (3, 9), (4, 5)]:
        near(compiled(images(n, size)), reference(images(n, size)), 1e-9, "output")
    assert len(reports) == 1
    assert fused(reports) == ["BN + add + relu"]


def test_a_sum_that_broadcasts_is_added_as_before(backend):
    def model(x, w, b, r):
        return F.relu(F.batch_norm(x, None, None, w, b, True) + r)

    x, w, b = images(), torch.ones(3).double(), torch.zeros(3).double()
    for r in (torch.ones(3, 1, 1).double(), images(4)[:, None]):
        got = torch.compile(model, backend=backend)(x, w, b, r)
        near(got, model(x, w, b, r), 1e-9, str(r.shape))


def test_graphs_between_breaks_are_fused_each(backend, reports):
    first, second = Block().double(), Block().double()

    def model(x):
        x = first(x)
        torch._dynamo.graph_break()
        return second(x)

    x = images()
    with torch.no_grad():  # Dynamo warns of a graph's input that has a gradient's history
        near(torch.compile(model, backend=backend)(x), second(first(x)), 1e-9, "output")
    assert fused(reports) == ["BN + add + relu"] * 2


def test_what_follows_in_another_mode_is_not_fused(backend, reports):
    bn = nn.BatchNorm2d(3).double()

    def model(x):
        with torch.no_grad():
            y = bn(x)
        return F.relu(y * 1) + F.relu(bn(x)).sum()

    def apart(x):
        with torch.no_grad():
            y = bn(x)
        return F.relu(y)

    x = images().requires_grad_()
    for f in (model, apart):
        near(torch.compile(f, backend=backend)(x), f(x), 1e-9, "output")
    assert [e.what for r in reports for e in r.left] == [
        "BN alone: its output goes to mul()",
        "BN alone: gradients or autocast are switched before what follows",
    ]
    assert not torch.compile(apart, backend=backend)(x).requires_grad


def test_a_pooling_over_three_axes_is_not_taken_for_one_over_four(backend, reports):
    bn = nn.BatchNorm1d(3).double()

    def model(x):
        return F.max_pool2d(F.relu(bn(x)), 2)

    x = images()[0].reshape(4, 3, 16)
    near(torch.compile(model, backend=backend)(x), model(x), 1e-9, "output")
    assert fused(reports) == ["BN + relu"]


def test_frozen_layers_stay_frozen(backend):
    model = freeze(Block().double())
    reference = twin(model)
    compiled = torch.compile(model.train(), backend=backend)
    near(compiled(images()), reference(images()), 1e-9, "output")
    assert model.bn.num_batches_tracked == 0


def test_a_graph_without_batch_norm_runs_as_it_is(backend, reports):
    model = nn.Linear(3, 3)
    x = torch.randn(2, 3)
    assert torch.equal(torch.compile(model, backend=backend)(x), model(x))
    assert fused(reports) == []


def test_the_name_is_known_without_an_import_and_what_is_fused_is_logged(tmp_path, caplog):
    points = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    entry = points.split("torch_dynamo_backends")[1].splitlines()[1]
    name, _, value = entry.partition(" = ")
    (tmp_path / "gammabeta_test-1.dist-info").mkdir()
    (tmp_path / "gammabeta_test-1.dist-info" / "METADATA").write_text(
        "Name: gammabeta-test\nVersion: 1\n", encoding="utf-8"
    )
    (tmp_path / "gammabeta_test-1.dist-info" / "entry_points.txt").write_text(
        f"[torch_dynamo_backends]\n{name} = {value.strip(chr(34))}\n", encoding="utf-8"
    )
    code = (
        "import logging, torch; logging.basicConfig(level='INFO')\n"
        "m = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.ReLU())\n"
        "compiled = torch.compile(m, backend='gammabeta')\n"
        "print(compiled(torch.randn(4, 3)).shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={
            "PYTHONPATH": f"{tmp_path}:{ROOT / 'src'}",
            "OMP_NUM_THREADS": "1",
            "HOME": str(tmp_path),
        },
    )
    assert "torch.Size([4, 3])" in done.stdout, done.stderr
    assert "torch.compile: 1 batch norms fused" in done.stderr
    with caplog.at_level(logging.INFO, logger="gammabeta"):
        torch.compile(Block(), backend=compiler.gammabeta)(images(dtype=torch.float32))
    assert "done  bn: fused BN + add + relu" in caplog.text
