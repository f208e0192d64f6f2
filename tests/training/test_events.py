"""The metrics file holds every record once, also after a crash; TensorBoard gets the same."""

from __future__ import annotations

import json
import sys

import pytest

from gammabeta.errors import GammabetaError, RunError
from gammabeta.training.events import (
    BatchDone,
    EpochDone,
    Evaluating,
    LossLogged,
    MetricsFile,
    TensorBoard,
    read_metrics,
)


def logged(step):
    return LossLogged(epoch=1 + step // 250, batch=step, step=step, loss=1 / step, lr=0.1,
                      images_per_second=9.0)  # fmt: skip


def done(epoch):
    return EpochDone(epoch=epoch, epochs=3, step=250 * epoch, train_loss=1.0, train_accuracy=0.5,
                     test_loss=1.1, test_accuracy=0.4, lr=0.1, images_per_second=9.0,
                     seconds=1.0)  # fmt: skip


STORY = [logged(100), logged(200), done(1), logged(350), logged(450), done(2)]


@pytest.fixture
def path(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    for event in STORY:
        metrics(event)
    return tmp_path / "metrics.jsonl"


def kept(path):
    return [(r["kind"], r["step"]) for r in read_metrics(path)]


def test_a_record_holds_every_field_of_its_event(path):
    first, *_, last = map(json.loads, path.read_text().splitlines())
    assert first == {"kind": "step", "epoch": 1, "batch": 100, "step": 100, "loss": 0.01, "lr": 0.1,
                     "images_per_second": 9.0}  # fmt: skip
    assert last["kind"] == "epoch"
    assert last.keys() - {"kind"} == set(EpochDone.__dataclass_fields__)


def test_a_record_is_on_the_disk_at_once_and_other_events_are_not_kept(path):
    metrics = MetricsFile(path, epochs=2, steps=500)
    before = path.read_text()
    metrics(BatchDone(1, 1, 9, 1.0, 0.5, 0.1, 9.0))
    metrics(Evaluating(3, 4))
    assert path.read_text() == before
    metrics(logged(550))
    assert path.read_text().startswith(before)
    assert json.loads(path.read_text().splitlines()[-1])["step"] == 550


@pytest.mark.parametrize(
    ("epochs", "steps", "records"),
    [
        (0, 0, []),
        (0, 199, [("step", 100)]),
        (0, 200, [("step", 100), ("step", 200)]),
        (0, 250, [("step", 100), ("step", 200)]),
        (1, 250, [("step", 100), ("step", 200), ("epoch", 250)]),
        (1, 350, [("step", 100), ("step", 200), ("epoch", 250), ("step", 350)]),
        (2, 500, [("step", 100), ("step", 200), ("epoch", 250), ("step", 350), ("step", 450),
                  ("epoch", 500)]),
    ],
    ids=["start", "before a log", "at a log", "while measuring", "after an epoch", "mid-epoch",
         "end"],
)  # fmt: skip
def test_records_after_the_resumed_checkpoint_are_cut_off(path, epochs, steps, records):
    MetricsFile(path, epochs, steps)
    assert kept(path) == records


def test_a_half_written_line_ends_the_records_and_is_cut_off(path):
    whole = path.read_bytes()
    for missing in range(1, 40, 7):
        path.write_bytes(whole[: -1 - missing])
        assert len(read_metrics(path)) == 5
    MetricsFile(path, 2, 500)(done(2))
    assert path.read_bytes() == whole


def test_a_missing_file_has_no_records(tmp_path):
    assert read_metrics(tmp_path / "absent") == []


def test_a_full_disk_names_the_file_and_the_way_on(path):
    metrics = MetricsFile(path, 2, 500)
    path.unlink()
    path.symlink_to("/dev/full")
    with pytest.raises(
        RunError, match=r"metrics\.jsonl: cannot be written \(No space left .*--resume"
    ):
        metrics(logged(550))


def test_tensorboard_gets_the_same_numbers_and_hides_what_is_done_again(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for step, events in ((0, STORY), (250, [logged(350)])):
        board = TensorBoard(tmp_path, step)
        for event in [*events, BatchDone(1, 1, 9, 1.0, 0.5, 0.1, 9.0)]:
            board(event)
        board.writer.close()
    read = accumulator.EventAccumulator(str(tmp_path)).Reload()
    losses = [(e.step, e.value) for e in read.Scalars("step/loss")]
    assert losses == [(s, pytest.approx(1 / s)) for s in (100, 200, 350)]
    assert "epoch/test_accuracy" in read.Tags()["scalars"]


def test_tensorboard_missing_is_said_with_the_command_that_installs_it(monkeypatch, tmp_path):
    for name in [n for n in sys.modules if n.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(GammabetaError, match=r"pip install '.\[tensorboard\]' in a clone"):
        TensorBoard(tmp_path, 0)
