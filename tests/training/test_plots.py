"""The two pictures are real PNGs of the run's numbers; a run without an epoch draws none."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from gammabeta.training.events import EpochDone, LossLogged, MetricsFile
from gammabeta.training.plots import plot_confusion, plot_curves
from training_helpers import leftovers, trained_run


def picture(path):
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def test_the_curves_of_a_run_are_drawn(tmp_path, tmp_path_factory):
    run = trained_run(tmp_path_factory.getbasetemp())
    plot_curves(run.metrics, tmp_path / "curves.png")
    drawn = picture(tmp_path / "curves.png")
    assert drawn.shape == (440, 1100, 3)
    blue, orange = ([0x1F, 0x5F, 0xA8], [0xD9, 0x73, 0x0D])
    assert all((abs(drawn - colour).sum(2) < 20).sum() > 50 for colour in (blue, orange))
    assert leftovers(tmp_path) == []


def test_other_numbers_give_another_picture(tmp_path, tmp_path_factory):
    run = trained_run(tmp_path_factory.getbasetemp())
    records = [json.loads(s) for s in run.metrics.read_text().splitlines()]
    records[-1]["test_accuracy"] /= 2
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    plot_curves(run.metrics, tmp_path / "a.png")
    plot_curves(tmp_path / "m.jsonl", tmp_path / "b.png")
    assert (picture(tmp_path / "a.png") != picture(tmp_path / "b.png")).any()


def test_one_epoch_is_enough(tmp_path, tmp_path_factory):
    run = trained_run(tmp_path_factory.getbasetemp())
    first = next(s for s in run.metrics.read_text().splitlines() if '"epoch", ' in s)
    (tmp_path / "m.jsonl").write_text(first + "\n")
    plot_curves(tmp_path / "m.jsonl", tmp_path / "a.png")
    picture(tmp_path / "a.png")


@pytest.mark.parametrize("records", [[], [LossLogged(1, 100, 100, 2.0, 0.1, 9.0)]], ids=len)
def test_a_run_stopped_in_its_first_epoch_draws_nothing(records, tmp_path):
    MetricsFile(tmp_path / "m.jsonl", records)
    plot_curves(tmp_path / "m.jsonl", tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_numbers_that_are_unknown_leave_gaps(tmp_path):
    steps = [LossLogged(1, 100, 100, math.nan, 0.1, 9.0)]
    epochs = [EpochDone(e, 3, 100 * e, 1.0, 0.5, math.nan, math.nan, 0.1, 9.0, 1.0) for e in (1, 2)]
    MetricsFile(tmp_path / "m.jsonl", [*steps, *epochs])
    plot_curves(tmp_path / "m.jsonl", tmp_path / "a.png")
    picture(tmp_path / "a.png")


@pytest.mark.parametrize("count", [2, 10, 40])
def test_a_confusion_matrix_of_any_size_is_drawn(count, tmp_path):
    confusion = np.diag(np.arange(count))  # the first class has no image
    plot_confusion(confusion, [f"class {i}" for i in range(count)], "t", tmp_path / "c.png")
    assert np.ptp(picture(tmp_path / "c.png")) > 200


@pytest.mark.parametrize("name", ["cost $5", "a_b^c", "$\\frac{", "猫", "[x]", "_hidden"])
def test_class_names_are_text_and_not_formulas(name, tmp_path):
    plot_confusion(np.eye(2, dtype=np.int64), [name, f"{name} 2$"], f"{name} $", tmp_path / "c.png")
    picture(tmp_path / "c.png")


def test_rows_and_columns_are_not_swapped(tmp_path):
    for file, confusion in (("a", [[0, 9], [0, 9]]), ("b", [[0, 0], [9, 9]])):
        plot_confusion(np.array(confusion), ["x", "y"], "", tmp_path / f"{file}.png")
    assert (picture(tmp_path / "a.png") != picture(tmp_path / "b.png")).any()
