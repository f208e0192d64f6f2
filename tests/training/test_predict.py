"""Any picture is named as the evaluation would name it, and a bad file stops no other."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from folder_helpers import fill
from gammabeta.data.folder import load_folder
from gammabeta.training.predict import find_images, predict
from training_helpers import black, digits, trained_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def model(run):
    return run.load_model()


def save(path, size=(16, 16), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path, **options)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i, image in enumerate(digits(16).test.images):
        Image.fromarray(image).save(folder / f"{i:03}.png")
    return folder


def test_predictions_equal_the_evaluations(run, model, pictures):
    test = digits(16).test
    named = list(predict(model, run.config, [pictures], top=1))  # more than one batch
    assert [p.path.name for p in named] == [f"{i:03}.png" for i in range(360)]
    images = (torch.from_numpy(test.images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    with torch.inference_mode():
        probabilities = model.eval()(images).softmax(1)
    expected = [str(i) for i in probabilities.argmax(1).tolist()]
    assert [p.classes[0][0] for p in named] == expected
    assert len(set(expected)) == 10
    found = [p.classes[0][1] for p in named]
    assert found == pytest.approx(probabilities.max(1).values.tolist(), abs=1e-5)


def test_all_probabilities_sum_to_one_and_fall(run, model, pictures):
    for top in (10, 99):
        (named,) = predict(model, run.config, [pictures / "000.png"], top=top)
        values = [value for _, value in named.classes]
        assert sum(values) == pytest.approx(1)
        assert values == sorted(values, reverse=True)
        assert sorted(name for name, _ in named.classes) == list("0123456789")


def test_a_model_in_training_mode_is_measured_in_eval_mode_and_given_back(run, model, pictures):
    paths = [pictures / "000.png"]
    (expected,) = predict(model.eval(), run.config, paths)
    (named,) = predict(model.train(), run.config, paths)
    assert named == expected
    assert model.training


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (300, 7), (16, 16)], ids=str)
def test_every_mode_and_size_is_named(run, model, mode, size, tmp_path):
    (named,) = predict(model, run.config, [save(tmp_path / "x.png", size, mode)])
    assert (named.error, len(named.classes)) == (None, 3)


def test_the_configurations_scaling_is_used(run, model, pictures):
    other = dataclasses.replace(
        run.config,
        normalization=dataclasses.replace(run.config.normalization, mean=(0.1, 0.2, 0.9)),
    )
    paths = [pictures / "000.png"]
    assert [*predict(model, other, paths)] != [*predict(model, run.config, paths)]


def test_unreadable_files_are_reported_in_their_place(run, model, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    paths = [
        tmp_path / "absent.png", save(tmp_path / "b.png"), tmp_path / "text.png",
        save(tmp_path / "a.png"), tmp_path / "empty",
    ]  # fmt: skip
    named = list(predict(model, run.config, paths))
    assert [p.path for p in named] == paths
    assert [bool(p.error) for p in named] == [True, False, True, False, True]
    assert [bool(p.classes) for p in named] == [False, True, False, True, False]
    assert all(str(p.path) in p.error and "\n" not in p.error for p in named if p.error)
    assert "holds no image" in named[-1].error


def test_nothing_readable_is_no_crash(run, model, tmp_path):
    (named,) = predict(model, run.config, [tmp_path / "absent.png"])
    assert named.error == f"{tmp_path / 'absent.png'}: No such file or directory"


def test_folders_are_searched_in_alphabetical_order_and_given_files_keep_theirs(tmp_path):
    for name in ("b/2.PNG", "b/a/1.jpg", "a.webp", "c.gif"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "d.png").mkdir()
    found = [str(p.relative_to(tmp_path)) for p in find_images(tmp_path)]
    assert found == ["a.webp", "b/2.PNG", "b/a/1.jpg", "c.gif"]
    assert find_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]


def test_a_folder_holds_the_files_that_training_sees(tmp_path):
    fill(tmp_path / "pets", cat=5, dog=5)
    fill(tmp_path / "elsewhere", fox=3, more=2)
    (tmp_path / "pets" / "fox").symlink_to(tmp_path / "elsewhere" / "fox")
    (tmp_path / "pets" / "cat" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    for name in ("._a.png", ".thumbnails/b.png", "@eaDir/c.png", "__MACOSX/d.png", ".hidden.png"):
        save(tmp_path / "pets" / "cat" / name)
    seen = load_folder(tmp_path / "pets", image_size=8).files
    found = [p.relative_to(tmp_path / "pets").as_posix() for p in find_images(tmp_path / "pets")]
    assert found == sorted(seen.train + seen.test)
    assert len(found) == 15


def test_a_folder_that_cannot_be_searched_stops_no_other(run, model, tmp_path):
    save(tmp_path / "good" / "a.png")
    save(tmp_path / "empty" / ".hidden.png")
    named = list(predict(model, run.config, [tmp_path / "empty", tmp_path / "good"]))
    assert [p.path.name for p in named] == ["empty", "a.png"]
    assert [bool(p.error) for p in named] == [True, False]


def test_pillows_warnings_are_not_the_users(run, model, tmp_path):
    image = Image.new("P", (9, 9))
    image.save(tmp_path / "a.png", transparency=b"\0\1")  # of which Pillow warns
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (named,) = predict(model, run.config, [tmp_path / "a.png"])
    assert named.error is None


def test_a_black_picture_needs_no_special_case(run, model, tmp_path):
    Image.fromarray(black(1, 16)[0]).save(tmp_path / "x.bmp")
    (named,) = predict(model, run.config, [tmp_path / "x.bmp"])
    assert np.isfinite([value for _, value in named.classes]).all()
