"""A training may stop anywhere and goes on to the same bits; a broken one keeps what it had."""

from __future__ import annotations

import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch

from gammabeta.data import Normalization, Split
from gammabeta.errors import GammabetaError, NonFiniteLossError, RunError
from gammabeta.training.checkpoint import load_state
from gammabeta.training.events import (
    BatchDone,
    EpochDone,
    Evaluating,
    LossLogged,
    MetricsFile,
    read_metrics,
)
from gammabeta.training.run import Run
from gammabeta.training.trainer import StoppedError, Trainer
from gammabeta.training.weights import load_weights
from training_helpers import digits, leftovers, make_run, slice_of, small, start, untimed

# small() serves 44 images: 6 batches an epoch, the last of 4.
NUMBERS = {"epochs": 3, "batch_size": 8, "lr": 0.05}


class StopAfter:
    """Asks to stop, once, when it was asked for the n-th time: after each batch."""

    def __init__(self, number):
        self.left = number

    def __call__(self):
        self.left -= 1
        return 2 if self.left == 0 else 0


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("unbroken") / "run", small(), **NUMBERS)
    trainer, metrics = start(run, small())
    trainer.fit([metrics])
    return run


def continue_to_the_end(run, dataset, **options):
    trainer, metrics = start(run, dataset, resume=True, **options)
    trainer.fit([metrics])
    return trainer


# An epoch asks 7 times: after 6 training batches and after one batch of measuring.
@pytest.mark.parametrize(
    "asked",
    [1, 4, 6, 7, 11, 14, 20, 21],
    ids=["first step", "mid-epoch", "last batch", "measuring", "second epoch", "measuring again",
         "very last batch", "last measuring"],
)  # fmt: skip
def test_a_stopped_and_resumed_training_gives_the_same_bits(asked, unbroken, tmp_path):
    run = make_run(tmp_path / "run", small(), **NUMBERS)
    trainer, metrics = start(run, small(), stop_requested=StopAfter(asked))
    with pytest.raises(StoppedError) as stopped:
        trainer.fit([metrics])
    assert stopped.value.signal == 2
    step = 6 * (asked // 7) + min(asked % 7, 6) if asked % 7 else 6 * (asked // 7)
    assert str(stopped.value) == f"stopped after step {step} of 18, saved"
    torch.rand(3)  # another process has another random state
    continue_to_the_end(run, small())
    assert run.model.read_bytes() == unbroken.model.read_bytes()
    assert untimed(run.metrics) == untimed(unbroken.metrics)


def test_stopping_after_every_batch_gives_the_same_bits(unbroken, tmp_path):
    run = make_run(tmp_path / "run", small(), **NUMBERS)
    start(run, small())
    for step in range(1, 19):
        with pytest.raises(StoppedError, match=f"after step {step} of 18"):
            continue_to_the_end(run, small(), stop_requested=StopAfter(1 + (step % 6 == 1 < step)))
    continue_to_the_end(run, small())
    assert run.model.read_bytes() == unbroken.model.read_bytes()
    assert untimed(run.metrics) == untimed(unbroken.metrics)


def test_the_model_file_is_the_model_of_the_state(unbroken):
    state = load_state(unbroken.state)["model"]
    saved = load_weights(unbroken.model)
    assert state.keys() == saved.keys()
    assert all(torch.equal(state[key], saved[key]) for key in state)


def test_the_same_seed_trains_the_same_bits_and_another_does_not(unbroken, tmp_path):
    for seed, same in ((0, True), (1, False)):
        run = make_run(tmp_path / str(seed), small(), **NUMBERS, seed=seed)
        start(run, small())[0].fit()
        assert (run.model.read_bytes() == unbroken.model.read_bytes()) is same


def test_a_complete_run_is_not_resumed(unbroken):
    with pytest.raises(RunError, match=r"is complete \(3 of 3 epochs\); try `gammabeta evaluate"):
        Trainer(unbroken, small(), resume=True)


def position(**values):
    return lambda state: state["position"].update(values)


def momentum(change):
    def damage(state):
        entries = state["optimizer"]["state"]
        entries[3]["momentum_buffer"] = change(entries[3]["momentum_buffer"])

    return damage


DAMAGE = {
    "no optimizer": (lambda s: s.pop("optimizer"), "optimizer is missing"),
    "empty optimizer": (lambda s: s.update(optimizer={}), "state is missing"),
    "optimizer a list": (lambda s: s.update(optimizer=[1]), "optimizer is a list"),
    "momentum of some": (lambda s: s["optimizer"]["state"].pop(2), "momentum of other parameters"),
    "momentum of another": (lambda s: s["optimizer"]["state"].update({99: {}}), "other parameters"),
    "momentum a number": (momentum(lambda _: 0.5), "momentum 3 is a float"),
    "momentum of another shape": (momentum(lambda t: t[:2]), r"momentum 3 is torch.float32 \(2,"),
    "momentum of another dtype": (momentum(torch.Tensor.double), "momentum 3 is torch.float64"),
    "momentum sparse": (momentum(torch.Tensor.to_sparse), "momentum 3 is .*dense"),
    "momentum nowhere": (momentum(lambda t: t.to("meta")), "momentum 3 is .*dense"),
    "no weight": (lambda s: s["model"].pop("fc2.bias"), "model.fc2.bias is missing"),
    "strange weight": (lambda s: s["model"].update(x=torch.ones(1)), "model.x is unknown"),
    "weight of another shape": (
        lambda s: s["model"].update({"fc2.bias": torch.ones(11)}), r"fc2.bias is .*\(11,\)",
    ),
    "weight of another dtype": (
        lambda s: s["model"].update({"fc2.bias": torch.ones(10, dtype=torch.int32)}), "int32",
    ),
    "weight a string": (lambda s: s["model"].update({"fc2.bias": "x"}), "fc2.bias is a str"),
    "model a number": (lambda s: s.update(model=3), "model is a int"),
    "random state": (lambda s: s.update(random=torch.zeros(3, dtype=torch.uint8)), "random is"),
    "random zeros": (lambda s: s["random"].zero_(), "mt19937"),
    "strange part": (lambda s: s.update(strange=1), "strange is unknown"),
    "no position": (lambda s: s.update(position=None), "position is None"),
    "position a tensor": (lambda s: s.update(position=torch.ones(1)), "not JSON serializable"),
    "strange field": (position(strange=1), "position.strange is unknown"),
    "negative epoch": (position(epoch=-1), "position.epoch is -1, but should be greater"),
    "huge step": (position(step=2**70), "position.step is"),
    "half an epoch": (position(epoch=1.5), "position.epoch is 1.5, but should be a valid integer"),
    "step in words": (position(step="6"), "position.step is '6'"),
    "NaN seconds": (position(seconds=math.nan), "position.seconds is None"),
    "another step": (position(step=9), "at step 9, but epoch 1, batch 1 is step 7"),
    "beyond the end": (position(epoch=4, step=24), "has 3 epochs of 6 batches"),
    "beyond an epoch": (position(batch=7, step=13), "has 3 epochs of 6 batches"),
    "images in words": (lambda s: s.update(images="44"), "images is '44'"),
    "records a number": (lambda s: s.update(records=3), "records is 3"),
    "a record of another kind": (lambda s: s["records"].append({"kind": "x"}), "tag 'x'"),
}  # fmt: skip


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run in its second epoch, after 7 steps."""
    run = make_run(tmp_path_factory.mktemp("begun") / "run", small(), **NUMBERS)
    trainer, metrics = start(run, small(), stop_requested=StopAfter(8))
    with pytest.raises(StoppedError):
        trainer.fit([metrics])
    return run


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_state_with_other_values_than_ours_is_refused_by_name(kind, begun, tmp_path):
    damage, reason = DAMAGE[kind]
    shutil.copytree(begun.path, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    state = load_state(run.state)
    damage(state)
    torch.save(state, run.state)
    before = run.model.read_bytes()
    with pytest.raises(
        RunError, match=rf"state\.pt: (does not|is damaged).*: .*{reason}"
    ) as refusal:
        Trainer(run, small(), resume=True)
    assert "\n" not in str(refusal.value)
    assert run.model.read_bytes() == before


def test_the_optimizers_numbers_are_the_recipes(begun, unbroken, tmp_path):
    shutil.copytree(begun.path, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    state = load_state(run.state)
    for group in state["optimizer"]["param_groups"]:
        group.update(momentum=0.0, maximize=True, nesterov=False, weight_decay=9.0, lr="x")
    torch.save(state, run.state)
    continue_to_the_end(run, small())
    assert run.model.read_bytes() == unbroken.model.read_bytes()


def test_momentum_laid_out_in_another_way_gives_the_same_bits(begun, unbroken, tmp_path):
    shutil.copytree(begun.path, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    state = load_state(run.state)
    for entry in state["optimizer"]["state"].values():
        entry["momentum_buffer"] = entry["momentum_buffer"].contiguous()
    state["model"] = {key: value.contiguous() for key, value in state["model"].items()}
    torch.save(state, run.state)
    continue_to_the_end(run, small())
    assert run.model.read_bytes() == unbroken.model.read_bytes()


def test_a_state_of_an_older_version_continues_with_the_history_of_the_metrics_file(
    begun, unbroken, tmp_path
):
    shutil.copytree(begun.path, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    state = load_state(run.state)
    del state["records"]
    torch.save(state, run.state)
    line = EpochDone(2, 3, 12, 1.0, 0.5, 1.0, 0.5, 0.1, 9.0, 1.0)  # after the checkpoint
    MetricsFile(run.metrics, [*read_metrics(run.metrics), line])
    continue_to_the_end(run, small())
    assert run.model.read_bytes() == unbroken.model.read_bytes()
    assert untimed(run.metrics) == untimed(unbroken.metrics)


def assert_sound(run, step):
    state = load_state(run.state)
    assert state["position"]["step"] == step
    assert all(torch.isfinite(value).all() for value in load_weights(run.model).values())
    assert leftovers(run.path) == []


def test_an_exploding_loss_names_the_step_and_keeps_the_checkpoint(tmp_path):
    run = make_run(tmp_path / "run", small(), **(NUMBERS | {"lr": 1e30}))
    trainer, metrics = start(run, small())
    with pytest.raises(
        NonFiniteLossError, match=r"at step 2 \(epoch 1, batch 2\) with lr"
    ) as error:
        trainer.fit([metrics])
    assert str(run.path) in str(error.value)
    assert "\n" not in str(error.value)
    assert_sound(run, 0)


def test_broken_images_are_found_at_the_first_step(tmp_path):
    broken = dataclasses.replace(small(), normalization=Normalization(mean=(math.inf, 0.5, 0.5)))
    run = make_run(tmp_path / "run", small(), **NUMBERS)
    trainer, metrics = start(run, broken)
    with pytest.raises(NonFiniteLossError, match=r"at step 1 "):
        trainer.fit([metrics])
    assert_sound(run, 0)


def test_weights_that_exploded_in_the_last_step_before_a_stop_are_not_saved(tmp_path):
    run = make_run(tmp_path / "run", small(), **NUMBERS)

    def poison():
        with torch.no_grad():
            trainer.model.fc2.bias[0] = math.inf
        return 15

    trainer, _ = start(run, small(), stop_requested=poison)
    with pytest.raises(NonFiniteLossError, match="a weight became NaN or infinite by step 1"):
        trainer.fit()
    assert_sound(run, 0)


def test_a_measured_loss_that_is_not_finite_does_not_pass_as_a_complete_run(tmp_path):
    numbers = {
        "epochs": 1,
        "batch_size": 44,
        "lr": 1e15,
    }  # one step: finite loss, then finite weights
    run = make_run(tmp_path / "run", small(), **numbers)
    trainer, metrics = start(run, small())
    with pytest.raises(NonFiniteLossError):
        trainer.fit([metrics])
    assert_sound(run, 0)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """The events of two epochs of 205 batches of two images, and every loss of a step."""
    dataset = dataclasses.replace(digits(), train=slice_of(digits().train, 410),
                                  test=slice_of(digits().test, 20))  # fmt: skip
    run = make_run(tmp_path_factory.mktemp("watched") / "run", dataset,
                   epochs=2, batch_size=2, lr=0.01)  # fmt: skip
    trainer, metrics = start(run, dataset)
    losses, events, count = [], [], trainer.position.count
    trainer.position.count = lambda outcome, seconds: (
        losses.append(outcome),
        count(outcome, seconds),
    )
    trainer.fit([metrics, events.append])
    return run, losses, events


def test_a_logged_loss_is_the_mean_of_the_last_hundred_batches(watched):
    _, steps, events = watched
    losses = [step.loss for step in steps]
    logged = [(e.epoch, e.batch, e.step, e.loss) for e in events if isinstance(e, LossLogged)]
    expected = [
        (1, 100, 100, np.mean(losses[:100])),
        (1, 200, 200, np.mean(losses[100:200])),
        (2, 100, 305, np.mean(losses[205:305])),
        (2, 200, 405, np.mean(losses[305:405])),
    ]
    assert [entry[:3] for entry in logged] == [entry[:3] for entry in expected]
    assert [entry[3] for entry in logged] == pytest.approx([entry[3] for entry in expected])


def test_an_epochs_numbers_are_those_of_its_steps(watched):
    _, steps, events = watched
    epochs = [event for event in events if isinstance(event, EpochDone)]
    for number, epoch in enumerate(epochs):
        its = steps[205 * number : 205 * (number + 1)]
        assert (epoch.epoch, epoch.epochs, epoch.step) == (number + 1, 2, 205 * (number + 1))
        assert epoch.train_loss == pytest.approx(np.mean([step.loss for step in its]))
        assert epoch.train_accuracy == pytest.approx(sum(step.correct for step in its) / 410)
        assert 0 < epoch.lr < 0.01
        assert epoch.images_per_second > 0
    assert epochs[1].seconds > epochs[0].seconds > 0


def test_listeners_hear_every_batch_in_order(watched):
    run, _, events = watched
    batches = [(e.epoch, e.batch) for e in events if isinstance(e, BatchDone)]
    assert batches == [(epoch, batch) for epoch in (1, 2) for batch in range(1, 206)]
    assert [(e.done, e.total) for e in events if isinstance(e, Evaluating)] == [(20, 20)] * 2
    assert [r["kind"] for r in untimed(run.metrics)] == ["step", "step", "epoch"] * 2


def test_a_loss_logged_after_a_stop_still_covers_a_hundred_batches(watched, tmp_path):
    run, _, _ = watched
    dataset = dataclasses.replace(digits(), train=slice_of(digits().train, 410),
                                  test=slice_of(digits().test, 20))  # fmt: skip
    again = make_run(tmp_path / "run", dataset, epochs=2, batch_size=2, lr=0.01)
    trainer, metrics = start(again, dataset, stop_requested=StopAfter(150))
    with pytest.raises(StoppedError):
        trainer.fit([metrics])
    continue_to_the_end(again, dataset)
    assert untimed(again.metrics) == untimed(run.metrics)


def test_a_single_left_over_image_does_not_stop_a_training(tmp_path):
    dataset = small(train=17)
    run = make_run(tmp_path / "run", dataset, **NUMBERS)
    trainer, _ = start(run, dataset)
    seen = []
    trainer.fit([seen.append])
    assert trainer.position.step == 3 * 2
    assert trainer.position.images == 3 * 17


def test_a_single_training_image_is_refused_in_words(tmp_path):
    dataset = small(train=1)
    with pytest.raises(GammabetaError, match="image"):
        start(make_run(tmp_path / "run", dataset, **NUMBERS), dataset)[0].fit()


def test_best_and_last_accuracy_are_told_apart(tmp_path):
    run = make_run(tmp_path / "run", small(), **(NUMBERS | {"epochs": 6}))
    trainer, _ = start(run, small())
    seen = []
    last = trainer.fit([seen.append])
    measured = [event.test_accuracy for event in seen if isinstance(event, EpochDone)]
    assert last.accuracy == measured[-1]
    assert len(set(measured)) > 1, "this test needs accuracies that differ"
    assert trainer.position.best_accuracy == max(measured)
    assert trainer.position.best_epoch == 1 + measured.index(max(measured))


def test_the_best_of_hopeless_epochs_is_still_an_epoch(tmp_path):
    data = small()
    train = data.train.labels != 7
    dataset = dataclasses.replace(
        data,
        train=Split(data.train.images[train], data.train.labels[train]),
        test=Split(data.test.images, np.full_like(data.test.labels, 7)),
    )
    run = make_run(tmp_path / "run", dataset, epochs=2, batch_size=8, lr=0.05)
    trainer, _ = start(run, dataset)
    assert trainer.fit().accuracy == 0, "this test needs a training without a hit"
    assert trainer.position.best_epoch == 1


def test_a_real_training_learns(tmp_path):
    run = make_run(tmp_path / "run", digits(), epochs=2, batch_size=64, lr=0.1)
    assert start(run, digits())[0].fit().accuracy > 0.9
