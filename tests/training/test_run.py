"""A run folder says all that decided its numbers, is never overwritten, and refuses damage."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch

from gammabeta.errors import GammabetaError, RunError
from gammabeta.training.checkpoint import save_model
from gammabeta.training.run import Run, fresh_path, refuse_occupied
from training_helpers import digits, make_run, small, trained_run


def test_a_configuration_comes_back_as_it_was(tmp_path):
    run = make_run(tmp_path / "a" / "run", small(), epochs=3, lr=0.123456789, seed=2**62)
    assert Run.open(run.path).config == run.config


def test_the_trained_model_comes_back(tmp_path_factory):
    run = trained_run(tmp_path_factory.getbasetemp())
    model = Run.open(run.path).load_model()
    assert model.fc1.in_features == 256 * 2 * 2
    state = torch.load(run.state, weights_only=True)["model"]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_the_data_come_back(tmp_path):
    data = make_run(tmp_path / "run", small()).config.load_data()
    assert (data.image_size, len(data.train)) == (8, 1437)
    assert (data.train.images == digits().train.images).all()


def test_an_empty_folder_may_become_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    make_run(tmp_path / "run", small())


@pytest.mark.parametrize("kind", ["run", "file", "link"])
def test_what_exists_is_not_overwritten(kind, tmp_path):
    path = tmp_path / "run"
    if kind == "run":
        make_run(path, small())
    elif kind == "file":
        path.write_text("precious")
    else:
        path.symlink_to("nowhere")
    with pytest.raises(RunError, match=r"already exists and is not overwritten; .*--out"):
        make_run(path, small())


def test_a_run_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be made into a run folder: Not a directory"):
        make_run(tmp_path / "file" / "run", small())


def test_the_next_free_number_is_taken(tmp_path):
    assert fresh_path(tmp_path, "digits") == tmp_path / "digits-1"
    (tmp_path / "digits-1").mkdir()
    (tmp_path / "digits-2").write_text("")
    (tmp_path / "digits-4").mkdir()
    assert fresh_path(tmp_path, "digits") == tmp_path / "digits-3"
    refuse_occupied(tmp_path / "digits-3")


@pytest.mark.parametrize("kind", ["absent", "file", "empty"])
def test_what_is_not_a_run_is_refused_with_a_hint(kind, tmp_path):
    path = tmp_path / "run"
    if kind == "file":
        path.write_text("")
    elif kind == "empty":
        path.mkdir()
    with pytest.raises(RunError, match=r"is not a run: .*; a run is the folder that"):
        Run.open(path)


def no(key):
    return lambda config: config.pop(key)


def with_(**values):
    return lambda config: config.update(values)


@pytest.mark.parametrize(
    "damage",
    [
        no("recipe"), no("classes"), no("normalization"), no("threads"), with_(strange=1),
        with_(recipe=None), with_(recipe={"lr": -1.0}), with_(recipe={"epochs": "8"}),
        with_(classes=3), with_(normalization={"mean": [0, 0, 0]}), with_(image_size="32"),
        with_(threads="two"),
    ],
    ids=["no recipe", "no classes", "no normalization", "no threads", "strange key", "null recipe",
         "negative lr", "epochs in quotes", "classes a number", "no std", "size in quotes",
         "threads in words"],
)  # fmt: skip
def test_a_damaged_configuration_is_refused_with_the_file_named(damage, tmp_path):
    run = make_run(tmp_path / "run", small())
    file = run.path / "config.json"
    config = json.loads(file.read_text())
    damage(config)
    file.write_text(json.dumps(config))
    with pytest.raises(GammabetaError, match=r"config\.json: is damaged"):
        Run.open(run.path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe"], ids=str)
def test_a_configuration_that_is_no_json_object_is_refused(content, tmp_path):
    run = make_run(tmp_path / "run", small())
    (run.path / "config.json").write_bytes(content)
    with pytest.raises(RunError, match=r"config\.json: is damaged"):
        Run.open(run.path)


def test_weights_of_another_shape_are_refused_by_name(tmp_path, tmp_path_factory):
    small_run = make_run(tmp_path / "run", small())
    other = trained_run(tmp_path_factory.getbasetemp()).model
    shutil.copy(other, small_run.model)
    with pytest.raises(RunError, match=r"run/model\.safetensors: does not fit Net: fc1\.weight"):
        small_run.load_model()


def test_a_run_that_never_saved_a_model_says_so(tmp_path):
    run = make_run(tmp_path / "run", small())
    with pytest.raises(RunError, match=r"model\.safetensors: no such file"):
        run.load_model()


def test_the_configuration_cannot_be_changed_by_accident(tmp_path):
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_run(tmp_path / "run", small()).config.threads = 3


@pytest.mark.parametrize("written", ["before there was a grid", "with one"])
def test_a_run_of_larger_images_has_the_weights_that_it_was_saved_with(written, tmp_path):
    dataset = digits(48)
    run = make_run(tmp_path / "run", dataset, epochs=1)
    config = json.loads((run.path / "config.json").read_text())
    config["grid"] = 4
    if written == "before there was a grid":
        del config["grid"]
    (run.path / "config.json").write_text(json.dumps(config))
    opened = Run.open(run.path)
    model = opened.build_model()
    assert model.fc1.in_features == 256 * (16 if written == "with one" else 36)
    save_model(opened.model, model)
    loaded = Run.open(run.path).load_model().eval()
    images = torch.rand(2, 3, 48, 48)
    assert torch.equal(loaded(images), model.eval()(images))
