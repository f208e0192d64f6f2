"""A run folder says all that decided its numbers, is never overwritten, and refuses damage."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import pytest
import torch

from gammabeta.data.dataset import Files
from gammabeta.errors import RunError
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


DAMAGE = {
    "no recipe": (no("recipe"), "recipe is missing"),
    "no classes": (no("classes"), "classes is missing"),
    "no normalization": (no("normalization"), "normalization is missing"),
    "no threads": (no("threads"), "threads is missing"),
    "strange key": (with_(strange=1), "strange is unknown"),
    "null recipe": (with_(recipe=None), "recipe is None, but should be an object"),
    "negative lr": (with_(recipe={"lr": -1.0}), "lr is -1.0, but must be above 0"),
    "NaN lr": (with_(recipe={"lr": math.nan}), "recipe.lr is nan"),
    "epochs in quotes": (with_(recipe={"epochs": "8"}), "recipe.epochs is '8', but should be"),
    "one epoch and a half": (with_(recipe={"epochs": 1.5}), "recipe.epochs is 1.5, but should be"),
    "no epochs": (with_(recipe={"epochs": 0}), "epochs is 0, but must be at least 1"),
    "huge epochs": (with_(recipe={"epochs": 2**70}), "epochs is"),
    "batches in a list": (with_(recipe={"batch_size": [8]}), r"recipe.batch_size is \[8\]"),
    "nesterov a number": (with_(recipe={"nesterov": 1}), "recipe.nesterov is 1, but should be a"),
    "strange number": (with_(recipe={"maximize": True}), "recipe.maximize is unknown"),
    "classes a number": (with_(classes=3), "classes is 3"),
    "classes a string": (with_(classes="ab"), "classes is 'ab'"),
    "classes nested": (with_(classes=["a", ["b"]]), r"classes.1 is \['b'\]"),
    "no class": (with_(classes=[]), "classes is"),
    "a std too many": (with_(normalization={"std": [1, 1, 1, 1]}), "normalization.std"),
    "size in quotes": (with_(image_size="32"), "image_size is '32'"),
    "size a float": (with_(image_size=32.0), "image_size is 32.0"),
    "size huge": (with_(image_size=2**30), "image_size is 1073741824, but should be less than"),
    "size odd": (with_(image_size=33), "image_size is 33, but should be a multiple of 8"),
    "size true": (with_(image_size=True), "image_size is True"),
    "threads in words": (with_(threads="two"), "threads is 'two'"),
    "threads huge": (with_(threads=2**40), "threads is 1099511627776, but should be less than"),
    "threads negative": (with_(threads=-1), "threads is -1"),
    "another precision": (with_(precision="fp64"), "precision is 'fp64'"),
    "another device": (with_(device="tpu"), "device is 'tpu'"),
    "data a number": (with_(data=3), "data is 3"),
    "root a list": (with_(root=["a"]), "root is"),
    "skip a number": (with_(skip_unreadable=1), "skip_unreadable is 1"),
    "files a list": (with_(files=["a.png"]), "files is"),
    "grid a float": (with_(grid=4.0), "grid is 4.0"),
    "files nested": (with_(files={"train": [["a"]], "test": []}), "files.train.0 is"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_configuration_with_other_values_than_ours_is_refused_by_field(kind, tmp_path):
    damage, reason = DAMAGE[kind]
    run = make_run(tmp_path / "run", small())
    file = run.path / "config.json"
    config = unsealed(file)
    damage(config)
    file.write_text(json.dumps(config))
    with pytest.raises(RunError, match=rf"config\.json: is damaged or .*: {reason}") as error:
        Run.open(run.path)
    assert "\n" not in str(error.value)


def unsealed(file):
    """The fields of a configuration without its checksum, as older versions wrote it."""
    config = json.loads(file.read_text())
    del config["sha256"]
    return config


def test_a_configuration_of_an_older_version_has_no_checksum_and_is_read(tmp_path):
    run = make_run(tmp_path / "run", small())
    config = unsealed(run.path / "config.json")
    del config["files"]
    (run.path / "config.json").write_text(json.dumps(config))
    assert Run.open(run.path).config == run.config


def test_file_names_that_are_no_unicode_come_back_as_they_were(tmp_path):
    names = ("cat/caf\udce9.png", "cat/\U0001f600\\udce9.png", "cat/plain.png", "\udcff\udc80")
    config = dataclasses.replace(
        make_run(tmp_path / "a", small()).config,
        data="/photos\udcff",
        files=Files(names, names[:1]),
    )
    run = Run.create(tmp_path / "run", config)
    assert Run.open(run.path).config == config
    assert json.loads((run.path / "config.json").read_text())["files"]["train"] == list(names)


@pytest.mark.parametrize("change", [{"threads": 2**40}, {"classes": ()}, {"image_size": 2**30}])
def test_what_could_not_be_read_back_is_not_written(change, tmp_path):
    config = dataclasses.replace(make_run(tmp_path / "a", small()).config, **change)
    with pytest.raises(RunError, match=next(iter(change))):
        Run.create(tmp_path / "run", config)


def test_a_folder_in_which_a_kill_left_only_temporary_files_may_become_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f".gammabeta-{'a' * 16}.tmp").write_text("half")
    make_run(tmp_path / "run", small())
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["config.json"]


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
    config = unsealed(run.path / "config.json")
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
