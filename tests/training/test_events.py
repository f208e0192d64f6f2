"""The metrics file holds every record once, also after a crash; TensorBoard gets the same."""

from __future__ import annotations

import dataclasses
import json
import math
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
    return [(r.kind, r.step) for r in read_metrics(path)]


def test_a_record_holds_every_field_of_its_event(path):
    first, *_, last = map(json.loads, path.read_text().splitlines())
    assert first == {"kind": "step", "epoch": 1, "batch": 100, "step": 100, "loss": 0.01, "lr": 0.1,
                     "images_per_second": 9.0}  # fmt: skip
    assert last["kind"] == "epoch"
    assert last.keys() == set(EpochDone.__dataclass_fields__)


def test_a_record_is_on_the_disk_at_once_and_other_events_are_not_kept(path):
    metrics = MetricsFile(path, STORY)
    before = path.read_text()
    metrics(BatchDone(1, 1, 9, 1.0, 0.5, 0.1, 9.0))
    metrics(Evaluating(3, 4))
    assert path.read_text() == before
    metrics(logged(550))
    assert path.read_text().startswith(before)
    assert json.loads(path.read_text().splitlines()[-1])["step"] == 550


def test_a_file_begins_with_the_history_that_is_resumed(path):
    whole = path.read_bytes()
    MetricsFile(path, STORY[:4])
    assert kept(path) == [("step", 100), ("step", 200), ("epoch", 250), ("step", 350)]
    MetricsFile(path, STORY)
    assert path.read_bytes() == whole
    MetricsFile(path)
    assert path.read_bytes() == b""


def test_a_half_written_line_is_left_out(path):
    whole = path.read_bytes()
    for missing in range(1, 40, 7):
        path.write_bytes(whole[: -1 - missing])
        assert read_metrics(path) == STORY[:5]
    path.write_bytes(whole[:-1])
    assert read_metrics(path) == STORY, "only the end of the line is missing"
    path.write_bytes(whole + bytes(100))
    assert read_metrics(path) == STORY


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"step": "100"}, "step.step is '100', but should be a valid integer"),
        ({"step": 1.5}, "step.step is 1.5, but should be a valid integer"),
        ({"epoch": 0}, "step.epoch is 0, but should be greater than or equal to 1"),
        ({"loss": "x"}, "step.loss is 'x', but should be a valid number"),
        ({"loss": [1]}, r"step.loss is \[1\], but should be a valid number"),
        ({"loss": math.nan}, "step.loss is nan, but should be a finite number"),
        ({"lr": True}, "step.lr is True, but should be a valid number"),
        ({"strange": 1}, "step.strange is unknown"),
        ({"kind": "other"}, "it is .*, but tag 'other' found"),
    ],
    ids=str,
)
def test_a_line_with_another_value_than_ours_is_refused_by_number(change, reason, path):
    lines = path.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | change)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(RunError, match=rf"metrics\.jsonl: line 2: is damaged .*: {reason}"):
        read_metrics(path)


def test_null_stands_for_a_number_that_json_does_not_know(path):
    odd = dataclasses.replace(STORY[0], loss=math.nan, images_per_second=math.inf)
    MetricsFile(path, [odd, *STORY[1:]])
    text = path.read_text()
    assert [json.loads(s, parse_constant=pytest.fail) for s in text.splitlines()]
    assert json.loads(text.splitlines()[0])["loss"] is None
    first, *rest = read_metrics(path)
    assert math.isnan(first.loss)
    assert rest == STORY[1:]


def test_a_missing_file_has_no_records(tmp_path):
    assert read_metrics(tmp_path / "absent") == []


def test_a_full_disk_names_the_file_and_the_way_on(path):
    metrics = MetricsFile(path)
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
