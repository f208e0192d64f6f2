"""``gammabeta explain``: from a run or a callable to a page, and every way it can go wrong."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys

import pytest
import torch
from torch import nn

from browser import (
    MOST_BYTES,
    _closed_browser,  # noqa: F401 closes the browser in order
    assert_figures_drawn,
    assert_fits,
    shown,
)
from gammabeta import Net
from gammabeta.cli.target import build, native_size, open_target
from gammabeta.data import load
from gammabeta.training.folder import newest_run
from gammabeta.training.run import Run
from gammabeta.training.weights import load_weights
from training_helpers import call, digits, make_run, reconfigure, slice_of, start, trained_run


@pytest.fixture
def place(tmp_path, tmp_path_factory, monkeypatch):
    """A folder with a trained run, as a user would stand in it."""
    shutil.copytree(trained_run(tmp_path_factory.getbasetemp()).path, tmp_path / "runs" / "one")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LC_ALL", "C")
    return tmp_path


def run(capsys, *words):
    """Call the command on one thread: two that wait for each other on a busy machine spin."""
    return call(capsys, "explain", *words, "--threads", "1")


def test_without_a_target_the_newest_run_is_explained(place, capsys):
    shutil.copytree("runs/one", "runs/older")
    os.utime("runs/older/model.safetensors", (1, 1))
    answer = run(capsys, "--batch-size", "32")
    assert answer.code == 0
    assert "4 batch norm layers explained: runs/one/explain.html" in answer.out
    html = (place / "runs/one/explain.html").read_text(encoding="utf-8")
    assert "<title>What batch norm does to one</title>" in html
    assert "gammabeta explain --batch-size 32" in html
    assert sorted(p.name for p in place.rglob("explain.html*")) == ["explain.html"]


def test_json_is_one_document_with_the_numbers_of_the_page(place, capsys):
    answer = run(capsys, "runs/one", "--batch-size", "24", "--json", "--out", "p.html")
    document = answer.document
    assert document["page"] == "p.html"
    assert document["data"]["name"] == "digits"
    assert document["data"]["images"] == 24
    assert document["data"]["classes"] == list("0123456789")
    assert document["data"]["target"] == "labels"
    assert document["layers"][0]["per_channel"]["population_mean"] is not None
    with shown(place / "p.html") as page:
        on_page = page.evaluate("GB.data")
    assert on_page["layers"] == document["layers"]
    assert on_page["modes"] == document["modes"]


def test_the_images_are_the_runs_test_images_and_always_the_same(place):
    one, two = (open_target("runs/one", batch_size=40) for _ in range(2))
    assert torch.equal(one.images, two.images)
    every = load("digits", image_size=16).test.images
    back = ((one.images * 0.5 + 0.5) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    known = {image.tobytes() for image in every}
    assert all(image.tobytes() in known for image in back)
    assert len({image.tobytes() for image in back}) > 30


@pytest.mark.parametrize(
    ("environment", "words", "lang"),
    [
        ({"LC_ALL": "zh_CN.UTF-8"}, [], "zh-CN"),
        ({"LC_ALL": "", "LANG": "zh_TW.UTF-8"}, [], "zh-CN"),
        ({"LC_ALL": "de_DE"}, [], "en"),
        ({"LC_ALL": "zh_CN.UTF-8"}, ["--lang", "en"], "en"),
    ],
)
def test_the_language_is_the_locales_unless_named(
    environment, words, lang, place, capsys, monkeypatch
):
    monkeypatch.delenv("LC_MESSAGES", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    answer = run(capsys, "torch.nn:Flatten", "--batch-size", "4", *words)
    assert answer.code == 0
    assert f'<html lang="{lang}">' in (place / "explain.html").read_text(encoding="utf-8")


def test_a_callable_gets_random_images_and_the_page_says_so(place, capsys):
    (place / "mine.py").write_text(
        "from torch import nn\n"
        "def model():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())\n"
    )
    answer = run(capsys, "mine:model", "--image-size", "8", "--batch-size", "6")
    sys.modules.pop("mine")
    assert answer.code == 0
    assert "the images are random" in answer.out
    with shown(place / "explain.html", width=390) as page:
        assert page.locator("[data-limit='random-images']").count() == 1
        assert_figures_drawn(page)
        assert_fits(page)


def test_a_callable_with_data_is_explained_on_them(place):
    found = open_target("gammabeta:Net", "digits", batch_size=12)
    assert (found.data, found.labels.shape) == ("digits", (12,))
    assert found.notes == list(digits().notes)
    assert sum(map(len, found.population)) == 1437  # every training image


def test_a_checkpoint_is_explained_in_place_of_a_models_weights(place):
    torch.manual_seed(0)
    net = Net()
    torch.save({f"module.{k}": v for k, v in net.state_dict().items()}, place / "net.pth")
    for target in ("gammabeta:Net", "runs/one"):
        weights = place / ("net.pth" if ":" in target else "runs/one/model.safetensors")
        found = open_target(target, "digits", batch_size=4, weights=weights)
        like = load_weights(weights)
        for key, value in found.model.state_dict().items():
            assert torch.equal(value, like.get(f"module.{key}", like.get(key)))


def test_data_of_other_classes_are_used_without_labels(place, monkeypatch):
    monkeypatch.syspath_prepend(place)
    (place / "seven.py").write_text("from gammabeta import Net\ndef net(): return Net(7)\n")
    found = open_target("seven:net", "digits", batch_size=4)
    sys.modules.pop("seven")
    assert found.labels is None
    assert found.classes is None
    assert found.notes[-1] == "seven:net does not have digits's classes; labels unused"


def test_the_import_path_is_left_as_it_was(place):
    before = list(sys.path)
    build("gammabeta:Net")
    with pytest.raises(Exception, match="nothing_there"):
        build("nothing_there:x")
    assert sys.path == before


@pytest.mark.parametrize(
    ("model", "size"), [(nn.Identity(), 32), ({"input_size": (3, 224, 224)}, 224)]
)
def test_the_image_size_is_what_the_model_says(model, size):
    if isinstance(model, dict):
        config, model = model, nn.Identity()
        model.pretrained_cfg = config
    assert native_size(model) == size


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent"], "absent: is not a run"),
        (["runs"], "runs: is not a run"),
        (["absent:model"], "absent:model: cannot be made into a model (ModuleNotFoundError"),
        (["gammabeta:nothing"], "gammabeta:nothing: cannot be made into a model (AttributeError"),
        (["gammabeta:"], "cannot be made into a model"),
        (["os:getcwd"], "os:getcwd: returned a str, but must return a torch.nn.Module"),
        (["gammabeta:Net", "--image-size", "9"], "the model fails on images of shape (128, 3, 9"),
        (["runs/one", "--data", "absent"], "'absent' is no data set"),
        (["runs/one", "--lang", "fr"], "lang is 'fr', but must be one of en, zh"),
        (["runs/one", "--batch-size", "4", "--out", "none/x.html"], "x.html: cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_explained_is_refused_in_one_line(words, message, place, capsys):
    assert message in run(capsys, *words).error
    assert list(place.rglob("*.html")) == []


def test_no_run_at_all_says_how_to_make_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "half").mkdir(parents=True)
    (tmp_path / "runs" / "half" / "config.json").write_text("{}")
    error = run(capsys).error
    assert "no run under runs/: make one with `gammabeta train --data digits`" in error


def test_a_run_that_is_explained_is_left_as_it_was(place, capsys):
    def files():
        return {p.name: p.read_bytes() for p in (place / "runs/one").iterdir() if p.is_file()}

    before = files()
    assert run(capsys, "runs/one", "--batch-size", "8", "--out", "x.html").code == 0
    assert files() == before
    assert newest_run(place / "runs").name == "one"


@pytest.mark.cifar
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_run_on_real_photographs_becomes_a_page(lang, cifar_root, tmp_path_factory, capsys):
    photos = cifar_run(tmp_path_factory.getbasetemp() / "cifar-run", cifar_root)
    file = photos.path / f"{lang}.html"
    words = ["--root", cifar_root, "--lang", lang, "--out", file, "--batch-size", 64]
    assert run(capsys, photos.path, *words).code == 0
    assert file.stat().st_size < MOST_BYTES
    for width in (390, 1440):
        with shown(file, width=width, dark=width == 390) as page:
            assert len(assert_figures_drawn(page)) >= 12 + 4 * 6
            assert_fits(page)


def cifar_run(path, root):
    """A run of one short epoch on the first photographs, made once a process."""
    if (path / "model.safetensors").exists():
        return Run.open(path)
    whole = load("cifar10", root=root)
    part = dataclasses.replace(
        whole, train=slice_of(whole.train, 512), test=slice_of(whole.test, 64)
    )
    made = make_run(path, part, epochs=1, batch_size=128, lr=0.1)
    reconfigure(path, data="cifar10")
    trainer, metrics = start(Run.open(path), part)
    trainer.fit([metrics])
    return made
