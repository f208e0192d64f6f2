"""One training: same start and order in every variant, a record that is a function of the job."""

from __future__ import annotations

import copy

import pytest
import torch

from compare_helpers import held, without_clock
from gammabeta.insight.compare.job import BATCH, FULL, SWEEP, Job, Training, prepare
from gammabeta.insight.compare.landscape import STEP_SIZES, along_the_step
from gammabeta.models import VARIANTS, variant
from training_helpers import one_thread

one_thread()


def job(name="bn", **changes):
    given = {"stage": FULL, "variant": name, "lr": 0.05, "seed": 3, "steps": 24, "batch_size": 64}
    return Job(**given | changes)


def core(model):
    """Weights of convolutions and linear layers, in order; Dropout's wrapping does not matter."""
    return [p for k, p in model.named_parameters() if "conv" in k or "fc" in k]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_same_seed_gives_the_same_weights_in_every_variant(name):
    reference, other = (prepare(job(n), held())[0] for n in ("bn", name))
    assert len(core(other)) == 10
    assert all(torch.equal(a, b) for a, b in zip(core(reference), core(other), strict=True))
    another = prepare(job(name, seed=4), held())[0]
    assert not any(torch.equal(a, b) for a, b in zip(core(reference), core(another), strict=True))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_same_seed_gives_the_same_batches_in_every_variant(name):
    def batches(of):
        return list(Training(job(of, steps=25), held(), bf16=False)._batches())

    pairs = list(zip(batches("bn"), batches(name), strict=True))
    assert len(pairs) == 25, "more than an epoch"
    assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


@pytest.mark.parametrize("name", ["none", "bn+dropout", "groupnorm"])
def test_a_record_is_a_function_of_the_job(name):
    gentle = job(name, lr=0.005)
    one, other = (Training(gentle, held(), bf16=False).run() for _ in range(2))
    assert without_clock(one) == without_clock(other)
    assert one["loss"][-1] < one["loss"][0] or name == "none", "which is slow at so low a rate"


def test_a_full_training_measures_early_and_walks():
    record = Training(job(), held(), bf16=False).run()
    assert record["outcome"] == "trained"
    assert len(record["gradient_norm"]) == len(record["loss"]) == 24
    assert record["points"][-1]["step"] == 24
    assert len({p["step"] for p in record["points"]}) == len(record["points"]) >= 8
    assert len(record["landscape"]) == 5
    assert len(record["landscape"][0]["losses"]) == len(STEP_SIZES)
    assert 0 <= record["test"]["best"] <= 1


@pytest.mark.parametrize("stage", [SWEEP, BATCH])
def test_short_trainings_measure_once_and_never_the_test_images(stage):
    record = Training(job(stage=stage, steps=3), held(), bf16=False).run()
    assert [p["step"] for p in record["points"]] == [3]
    assert record["test"] is None
    assert record["landscape"] == []


@pytest.mark.parametrize("lr", [1e8, 1e30])
def test_divergence_is_recorded(lr):
    record = Training(job("none", lr=lr), held(), bf16=False).run()
    assert record["outcome"] in {"nonfinite", "chance"}
    assert record["outcome"] == "nonfinite" or record["final_loss"] > 2.2
    if record["outcome"] == "nonfinite":
        assert record["final_loss"] is None
        assert record["test"] is None


def test_learning_nothing_is_recorded_as_chance():
    record = Training(job("none", lr=1e-9, stage=SWEEP), held(), bf16=False).run()
    assert record["outcome"] == "chance"
    assert record["points"][-1]["accuracy"] < 0.3


@pytest.mark.parametrize("name", VARIANTS)
def test_a_walk_leaves_everything_as_it_was(name):
    training = Training(job(name), held(), bf16=False)
    images, labels = next(training._batches())
    training._step(5, images, labels)
    model = training.model
    before = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() for p in model.parameters()]
    random = torch.get_rng_state()
    walk = along_the_step(model, images, labels, label_smoothing=0.1)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(torch.equal(a, p.grad) for a, p in zip(gradients, model.parameters(), strict=True))
    assert torch.equal(random, torch.get_rng_state())
    assert walk == along_the_step(model, images, labels, label_smoothing=0.1)
    assert walk["distances"][0] < walk["distances"][-1]


def test_a_walk_measures_a_quadratic_right():
    """Cross entropy of a linear layer: its own loss and gradient at each length, by autograd."""
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 3).double()
    x, y = torch.randn(8, 6, dtype=torch.float64), torch.arange(8) % 3
    found = along_the_step(model, x, y, label_smoothing=0.0)

    def at(size):
        moved = copy.deepcopy(model)
        here = torch.nn.functional.cross_entropy(model(x), y)
        gradient = torch.autograd.grad(here, [*model.parameters()])
        with torch.no_grad():
            for p, g in zip(moved.parameters(), gradient, strict=True):
                p -= size * g
        loss = torch.nn.functional.cross_entropy(moved(x), y)
        there = torch.autograd.grad(loss, [*moved.parameters()])
        distance = torch.cat([(a - b).ravel() for a, b in zip(there, gradient, strict=True)]).norm()
        norm = torch.cat([g.ravel() for g in gradient]).norm()
        return loss.item(), distance.item(), (distance / (size * norm)).item()

    for i, size in enumerate(STEP_SIZES):
        got = found["losses"][i], found["distances"][i], found["smoothness"][i]
        assert got == pytest.approx(at(size), rel=1e-5)


def test_dropout_walks_with_the_same_units():
    torch.manual_seed(1)
    model = variant("dropout", 10, 8).train()
    for p in model.parameters():
        p.data *= 1e-4  # nearly no gradient: only other units could move the loss
    images, labels = next(Training(job(), held(), bf16=False)._batches())
    walk = along_the_step(model, images, labels, label_smoothing=0.0)
    assert max(walk["losses"]) - min(walk["losses"]) < 0.05
