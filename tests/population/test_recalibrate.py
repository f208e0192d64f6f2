"""``recalibrate`` against the truth in float64, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.data import DataLoader, TensorDataset

import gammabeta
from gammabeta import GammabetaError, freeze, recalibrate
from norm_helpers import randn
from population_helpers import (
    NETWORKS,
    Autocast,
    Residual,
    assert_same,
    assert_untouched,
    everything,
    images,
    network,
    norms,
    statistics,
    truth,
)
from surgery_helpers import twin


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_gets_the_statistics_of_what_eval_mode_feeds_it(name):
    model, x = network(name), images()
    expected = truth(model, x)
    report = recalibrate(model, x.split(5))
    assert_same(statistics(model), expected)
    assert [c.path for c in report.changes if c.values < 1] == []
    assert report.sequential
    assert (report.batches, report.samples, report.left) == (5, 23, [])


@pytest.mark.parametrize("name", ["residual", "Net"])
def test_float32_differs_from_the_truth_by_rounding(name):
    model, x = network(name, torch.float32), images(dtype=torch.float32)
    expected = truth(model, x)
    recalibrate(model, x.split(4))
    assert_same(statistics(model), expected, bound=2e-5)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(23)), st.sets(st.integers(1, 22)))
def test_neither_order_nor_split_matters(order, cuts):
    model, x = network("residual"), images()
    expected = twin(model)
    recalibrate(expected, [x])
    recalibrate(model, x[list(order)].tensor_split(sorted(cuts)))
    assert_same(statistics(model), statistics(expected))


def test_in_one_pass_the_first_layer_is_exact_and_the_rest_carry_the_noise_of_batches():
    model, x = network("plain"), images()
    expected = truth(model, x)
    report = recalibrate(model, x.split(5), sequential=False)
    found = statistics(model)
    assert_same({"1": found["1"]}, {"1": expected["1"]})
    with pytest.raises(AssertionError, match="off by"):
        assert_same(found, expected, bound=1e-3)
    assert "batch's own statistics" in str(report)


def test_one_pass_pools_what_training_mode_normalises():
    """The oracle of the one-pass mode: torch's training mode, with what each layer sees noted."""
    model, x = network("plain"), images(24)
    reference, seen = twin(model).train(), {}
    for name, norm in norms(reference).items():
        norm.register_forward_pre_hook(
            lambda _, args, name=name: seen.setdefault(name, []).append(args[0].transpose(0, 1))
        )
    for batch in x.split(6):
        reference(batch)
    whole = {n: torch.cat([s.flatten(1) for s in parts], 1) for n, parts in seen.items()}
    recalibrate(model, x.split(6), sequential=False)
    expected = {n: (values.mean(1), values.var(1)) for n, values in whole.items()}
    assert_same(statistics(model), {n: (m.detach(), v.detach()) for n, (m, v) in expected.items()})


def test_the_older_estimator_is_that_of_update_bn_where_batches_are_equal():
    model, x = network("plain"), images(24)
    reference = twin(model)
    update_bn(x.split(6), reference)
    recalibrate(model, x.split(6), sequential=False, variance="mean-of-batches")
    assert_same(statistics(model), statistics(reference))


def test_pooling_counts_what_batches_differ_by():
    model = nn.BatchNorm1d(1)
    recalibrate(model, [torch.zeros(4, 1), torch.ones(4, 1)])
    assert model.running_var.item() == pytest.approx(2 / 7)
    recalibrate(model, [torch.zeros(4, 1), torch.ones(4, 1)], variance="mean-of-batches")
    assert model.running_var.item() == 0


def test_a_mean_far_from_zero_keeps_its_variance():
    model, x = nn.BatchNorm2d(3), randn(40, 3, 6, 6, dtype=torch.float64) + 1e4
    recalibrate(model, x.float().split(7))
    torch.testing.assert_close(model.running_var.double(), x.var((0, 2, 3)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("name", ["residual", "Net"])
def test_nothing_changes_but_running_statistics(name, sequential):
    model, x = network(name).train(), images()
    model.fc = getattr(model, "fc", model.fc1 if name == "Net" else None)
    model.register_forward_hook(lambda *_: None)
    next(model.children()).eval()
    before = everything(model)
    recalibrate(model, x.split(8), sequential=sequential)
    assert_untouched(before, model, but=("running_mean", "running_var"))
    assert all(n.num_batches_tracked == 0 for n in norms(model).values())


def test_frozen_layers_and_layers_in_eval_mode_inside_a_training_model_are_left():
    model, x = network("residual").train(), images()
    freeze(model.bn1)
    model.bn2.eval()
    before = statistics(model)
    report = recalibrate(model, x.split(8))
    assert [(e.path, e.what.split(":")[0][:20]) for e in report.left] == [
        ("bn1", "is frozen"),
        ("bn2", "is in eval mode insi"),
    ]
    after = statistics(model)
    assert all(torch.equal(after[n][0], before[n][0]) for n in ("bn1", "bn2"))
    assert not torch.equal(after["down.1"][0], before["down.1"][0])


def test_a_layer_that_no_forward_reaches_is_left_and_named():
    model = network("residual")
    model.spare = nn.BatchNorm2d(9)
    report = recalibrate(model, images().split(8))
    assert [(e.path, e.what) for e in report.left] == [("spare", "no forward reached it")]
    assert (model.spare.running_mean == 0).all()
    assert (model.spare.running_var == 1).all()


def test_a_layer_without_running_statistics_is_left():
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3)).double()
    report = recalibrate(model, images().split(8))
    assert report.left[0].what.startswith("keeps no running statistics")


def test_a_poisoned_layer_is_healed():
    model, x = network("residual"), images()
    expected = truth(model, x)
    model.bn1.running_var[1] = float("nan")
    recalibrate(model, x.split(8))
    assert_same(statistics(model), expected)


def test_a_shared_layer_pools_all_its_calls_and_the_report_says_so():
    bn = nn.BatchNorm2d(3).double()
    model, x = nn.Sequential(bn, nn.ReLU(), bn), images()
    report = recalibrate(model, [x])
    first = (x - x.mean((0, 2, 3), keepdim=True)) / (
        x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5
    ).sqrt()
    both = torch.cat([x, first.relu()])
    assert_same(statistics(model), {"0": (both.mean((0, 2, 3)), both.var((0, 2, 3)))})
    assert report.changes[0].calls == 2
    assert "called several times" in report.notes[0]


LOADERS = {
    "tensors": (lambda x: x.split(8), None),
    "a generator": (lambda x: (b for b in x.split(8)), None),
    "tuples": (lambda x: [(b, torch.zeros(len(b))) for b in x.split(8)], None),
    "a DataLoader": (lambda x: DataLoader(TensorDataset(x), batch_size=8), None),
    "dictionaries": (lambda x: [{"x": b, "label": torch.zeros(1)} for b in x.split(8)], None),
    "by hand": (
        lambda x: [{"image": {"raw": b}} for b in x.split(8)],
        lambda model, batch: model(batch["image"]["raw"]),
    ),
    "twice": (lambda x: x.split(16), lambda model, b: [model(half) for half in b.split(8)][:1]),
}


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("sequential", [True, False])
def test_loaders_of_every_kind_are_understood(kind, sequential):
    make, forward = LOADERS[kind]
    model, x = network("residual"), images()
    expected = twin(model)
    recalibrate(expected, x.split(8), sequential=sequential and kind != "twice")
    report = recalibrate(model, make(x), forward=forward, sequential=sequential)
    assert_same(statistics(model), statistics(expected))
    assert report.samples == 23


def test_a_model_that_takes_any_keyword_gets_the_whole_dictionary():
    class Keywords(Residual):
        def forward(self, **batch):
            return super().forward(batch["pixels"])

    model, x = Keywords().double(), images()
    expected = truth_of_keywords = twin(model)
    recalibrate(expected, x.split(8), forward=lambda m, b: m(pixels=b))
    recalibrate(model, [{"pixels": b, "more": 1} for b in x.split(8)])
    assert_same(statistics(model), statistics(truth_of_keywords))


def test_it_stops_early_and_says_how_sure_it_is():
    model, x = network("residual"), images()
    report = recalibrate(model, x.split(4), batches=3)
    assert (report.batches, report.samples) == (3, 12)
    report = recalibrate(model, x.split(4), samples=9)
    assert (report.batches, report.samples) == (3, 12)
    assert all(change.relative_error > 0 for change in report.changes)


def test_distances_are_in_standard_errors():
    model = nn.BatchNorm1d(2).double()
    report = recalibrate(model, randn(4000, 2, dtype=torch.float64).split(20))
    change = report.changes[0]  # the old statistics, 0 and 1, are the true ones
    assert np.abs(change.mean_distance).max() < 4
    assert np.abs(change.var_distance).max() < 4
    assert change.relative_error == pytest.approx(1 / np.sqrt(4000), rel=0.3)
    report = recalibrate(model, randn(4000, 2, dtype=torch.float64).add(1).split(20))
    assert np.abs(report.changes[0].mean_distance).min() > 30
    lines = str(report).splitlines()
    assert lines[0].split()[:4] == ["layer", "values", "mean", "moved"]
    assert report.to_dict()["layers"][0]["values_per_channel"] == 4000


def test_averaged_weights_get_statistics_of_their_own():
    """SWA leaves the averaged model with the statistics of another network."""
    model, x = network("residual"), images()
    swa = AveragedModel(model)
    for seed in (1, 2):
        torch.manual_seed(seed)
        swa.update_parameters(Residual().double())
    expected = truth(swa, x)
    recalibrate(swa, x.split(6))
    assert_same(statistics(swa), expected)


@pytest.mark.parametrize("sequential", [True, False])
def test_modes_that_a_forward_sets_stay_with_their_batch(sequential):
    torch.manual_seed(0)
    model = Autocast()
    report = recalibrate(model, images(dtype=torch.float32).split(6), sequential=sequential)
    assert len(report.changes) == 2
    assert (model.bn2.running_var > 0).all()


@pytest.mark.parametrize("sequential", [True, False])
def test_a_compiled_model_is_measured_as_it_was_written(sequential):
    model, x = network("residual"), images()
    expected = twin(model)
    recalibrate(expected, x.split(8), sequential=sequential)
    compiled = torch.compile(model, backend="eager")
    compiled(x[:4])
    model.load_state_dict(network("residual").state_dict())
    recalibrate(compiled, x.split(8), sequential=sequential)
    assert_same(statistics(model), statistics(expected))


def test_half_precision_buffers_keep_their_dtype_and_refuse_what_they_cannot_hold():
    model = nn.BatchNorm1d(2).to(torch.bfloat16)
    recalibrate(model, [randn(50, 2).bfloat16()])
    assert model.running_var.dtype == torch.bfloat16
    model = nn.BatchNorm1d(2).half()
    before = everything(model)
    with pytest.raises(GammabetaError, match=r"does not fit into torch.float16"):
        recalibrate(model, [(randn(50, 2) * 1e4).half()])
    assert_untouched(before, model)


def test_a_model_that_takes_whole_batches_only_is_served():
    class Grouped(Residual):
        def forward(self, x):
            return super().forward(x.view(-1, 4, *x.shape[1:]).flatten(0, 1))

    torch.manual_seed(3)
    model, x = Grouped().double(), images(24)
    expected = truth(model, x)
    recalibrate(model, x.split(8))
    assert_same(statistics(model), expected)


def test_a_model_made_in_inference_mode_is_served():
    with torch.inference_mode():
        model = network("residual")
    x = images()
    expected = network("residual")
    recalibrate(expected, x.split(8))
    recalibrate(model, x.split(8))
    assert_same(statistics(model), statistics(expected))


@pytest.mark.parametrize(("sequential", "steps"), [(True, 15), (False, 3)])
def test_progress_ends_where_it_said(sequential, steps):
    calls, batches = [], images().split(8)
    progress = lambda *call: calls.append(call)  # noqa: E731
    recalibrate(network("residual"), batches, sequential=sequential, progress=progress)
    assert [done for _, done, _ in calls] == list(range(1, len(calls) + 1))
    assert calls[-1][2] == steps


BAD = {
    "no batch": (lambda: (network("residual"), []), "no batch"),
    "no batch norm": (lambda: (nn.Linear(3, 2), [randn(4, 3)]), "Linear holds no batch norm"),
    "all frozen": (
        lambda: (freeze(network("plain")), images().split(8)),
        "no batch norm to recalibrate: 1 is frozen",
    ),
    "one tensor": (lambda: (network("plain"), images()), r"x\.split\(128\)"),
    "no loader": (lambda: (network("plain"), 5), "loader is a int"),
    "strings": (lambda: (network("plain"), ["a.png"]), "forward=lambda"),
    "an empty tuple": (lambda: (network("plain"), [()]), "a batch is empty"),
    "another dictionary": (
        lambda: (network("residual"), [{"image": images()}]),
        r"keys image, but the model's forward needs x",
    ),
    "one value": (lambda: (nn.BatchNorm1d(2), [torch.ones(1, 2)]), "one value per channel"),
    "lazy": (lambda: (nn.LazyBatchNorm1d(), [torch.ones(3, 2)]), "lazy"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_measured_is_refused_with_a_reason(case):
    make, says = BAD[case]
    model, loader = make()
    with pytest.raises(GammabetaError, match=says):
        recalibrate(model, loader)


def test_wrong_options_are_refused():
    model, x = network("plain"), [images()]
    with pytest.raises(GammabetaError, match="variance is 'biased', but must be pooled or"):
        recalibrate(model, x, variance="biased")
    with pytest.raises(GammabetaError, match="samples is 0"):
        recalibrate(model, x, samples=0)


@pytest.mark.parametrize("sequential", [True, False])
def test_a_batch_that_is_not_finite_is_named_with_the_layer(sequential):
    model, x = network("residual"), images()
    with torch.no_grad():
        model.conv1.weight[2] = float("inf")
    before = everything(model)
    with pytest.raises(GammabetaError, match=r"batch 0: the input of bn1 .* 1 of 4 channels"):
        recalibrate(model, x.split(8), sequential=sequential)
    assert_untouched(before, model)
    model, x = network("residual"), images()
    x[17, 1, 2, 3] = float("nan")
    with pytest.raises(GammabetaError, match="batch 2: the input of bn0 "):
        recalibrate(model, x.split(8), sequential=sequential)


def test_a_batch_of_one_value_per_channel_is_refused_only_where_it_matters():
    model, x = network("plain"), images(9)
    with pytest.raises(GammabetaError, match=r"batch 1: 7 gets one value .*sequential=True"):
        recalibrate(model, x.split(8), sequential=False)
    expected = truth(model, x)
    recalibrate(model, x.split(8))
    assert_same(statistics(model), expected)


def test_it_is_public():
    assert gammabeta.recalibrate is recalibrate
    assert gammabeta.recalibrate is recalibrate  # importing it must not hide it behind its module
