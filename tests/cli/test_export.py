"""``gammabeta export``: a run becomes a file, and the other commands take it for the run."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
import torch
from PIL import Image

from deploy_helpers import expected, near, normalized, run_onnx, run_pt2
from gammabeta.cli import app
from gammabeta.cli.export import _where
from gammabeta.data import Files
from gammabeta.deploy import job as jobs
from gammabeta.training import evaluate as measuring
from gammabeta.training.checkpoint import save_model
from gammabeta.training.run import Run
from training_helpers import PROGRAM, call, environment, reconfigure, trained_run


@pytest.fixture
def run(tmp_path, tmp_path_factory, monkeypatch):
    """A copy of the trained run, named by a relative path as a user would."""
    shutil.copytree(trained_run(tmp_path_factory.getbasetemp()).path, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Files that the program exported: of scaled images, and of bytes."""
    folder = tmp_path_factory.mktemp("made")
    run = trained_run(tmp_path_factory.getbasetemp()).path
    before = sys.argv
    for name, options in (("scaled", []), ("bytes", ["--with-preprocessing"])):
        sys.argv = ["gammabeta", "export", str(run), str(folder / f"{name}.onnx"), *options]
        with pytest.raises(SystemExit):
            app.main()
    sys.argv = before
    return folder


@pytest.fixture
def net(run, made):
    """The file ``net.onnx`` beside the run."""
    shutil.copyfile(made / "scaled.onnx", "net.onnx")
    return run.parent / "net.onnx"


def files(run):
    return sorted(p.name for p in run.parent.iterdir())


def test_json_is_one_document_and_the_file_agrees_with_the_run(run, capsys):
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    answer = call(capsys, "export", "run", "net.onnx", "--json", "--verbose", "--threads", "1")
    assert answer.code == 0
    document = answer.document
    assert (document["run"], document["file"], document["data"]) == ("run", "net.onnx", "digits")
    assert (document["images"], document["classified"], document["same"]) == (360, 360, 360)
    assert document["max_error"] <= document["bound"]
    assert document["batch_sizes"] == [128, 104, 1, 3]
    assert [row["path"] for row in document["folded"]] == ["bn1", "bn2", "bn3", "bn4"]
    path = run.parent / "net.onnx"
    assert document["size_bytes"] == path.stat().st_size
    near(run_onnx(path, normalized(7))[0], expected(Run.open(run).load_model(), normalized(7)))
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before
    assert answer.err.startswith("runtime: torch")


def test_people_read_what_was_folded_checked_and_what_to_do_next(run, capsys):
    answer = call(capsys, "export", "run", "net.onnx")
    assert (answer.code, answer.err) == (0, "")
    assert "done  bn1: merged into conv1 (Conv2d)" in answer.out
    assert "verified in onnxruntime on 360 test images of digits" in answer.out
    assert "the same class for 360 of 360" in answer.out
    assert "saved net.onnx: ONNX opset 18, float32, 5.7 MB" in answer.out
    assert "gammabeta evaluate net.onnx\n" in answer.out
    assert "gammabeta predict net.onnx IMAGE..." in answer.out


def test_the_metadata_are_the_runs(run, net):
    proto = onnx.load(net)
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    config = Run.open(run).config
    assert tuple(json.loads(entries["classes"])) == config.classes
    assert tuple(json.loads(entries["mean"])) == config.normalization.mean
    assert (entries["image_size"], entries["data"]) == ("16", "digits")


def test_an_archive_for_torch_is_written_without_onnx_in_mind(run, capsys):
    answer = call(capsys, "export", "run", "net.pt2", "--no-fold")
    assert "verified in torch.export.load on 360 test images" in answer.out
    assert "saved net.pt2: torch.export, float32" in answer.out
    assert "merged" not in answer.out
    near(run_pt2(run.parent / "net.pt2", normalized(3)),
         expected(Run.open(run).load_model(), normalized(3)))  # fmt: skip


def test_without_folding_the_batch_norms_stay(run, capsys):
    document = call(capsys, "export", "run", "net.onnx", "--no-fold", "--json").document
    assert (document["batch_norms"], document["folded"]) == (4, [])


def test_int8_tells_what_it_costs_and_the_file_counts_so(run, capsys):
    words = ("run", "small.onnx", "--int8", "--with-preprocessing", "--json")
    answer = call(capsys, "export", *words)
    document = answer.document
    assert document["accuracy"] >= document["accuracy_before"] - 0.01
    assert document["int8"]["calibration_images"] == 1000
    assert document["size_bytes"] < 0.27 * document["int8"]["float_size_bytes"]
    assert "int8: 5.7 MB before, 1.5 MB after; accuracy on the 360 test images:" in answer.err
    measured = call(capsys, "evaluate", "small.onnx", "--json").document
    assert measured["correct"] == document["correct"]
    whole = call(capsys, "evaluate", "run", "--json").document
    assert whole["correct"] == document["correct_before"]
    assert files(run) == ["run", "small.onnx"]


@pytest.mark.parametrize("kind", ["scaled", "bytes"])
def test_evaluate_and_predict_answer_for_the_file_as_for_the_run(kind, made, run, capsys):
    shutil.copyfile(made / f"{kind}.onnx", "net.onnx")
    Image.new("RGB", (40, 30), "white").save("a.png")
    for i in range(2):
        Image.fromarray(torch.randint(0, 255, (16, 16, 3)).byte().numpy()).save(f"{i}.png")
    documents = [call(capsys, "evaluate", name, "--json").document for name in ("run", "net.onnx")]
    assert documents[0].keys() == documents[1].keys()
    assert documents[1]["run"] == "net.onnx"
    assert documents[0]["confusion"] == documents[1]["confusion"]
    assert documents[0]["loss"] == pytest.approx(documents[1]["loss"], rel=1e-5)
    words = ("a.png", "0.png", "1.png", "--top", "10", "--json")
    named = [call(capsys, "predict", name, *words).document for name in ("run", "net.onnx")]
    assert named[0].keys() == named[1].keys()
    for mine, theirs in zip(named[0]["images"], named[1]["images"], strict=True):
        chances = [{p["class"]: p["probability"] for p in row["predictions"]}
                   for row in (mine, theirs)]  # fmt: skip
        assert chances[0] == pytest.approx(chances[1], abs=1e-5)


def test_evaluating_a_file_draws_no_picture_unless_asked(net, run, capsys):
    answer = call(capsys, "evaluate", "net.onnx", "--threads", "1")
    assert "Accuracy of net.onnx on the 360 test images of digits" in answer.out
    assert files(run) == ["net.onnx", "run"]
    call(capsys, "evaluate", "net.onnx", "--confusion", "c.png")
    assert files(run) == ["c.png", "net.onnx", "run"]


def photos(parent, names):
    for part in ("train", "test"):
        for name in names:
            (parent / "photos" / part / name).mkdir(parents=True)
            for shade in (40, 200):
                picture = Image.new("RGB", (20, 20), (shade, int(name), shade))
                picture.save(parent / "photos" / part / name / f"{shade}.png")


def test_a_run_of_ones_own_images_names_no_path_in_the_file(run, capsys):
    photos(run.parent, [str(i) for i in range(10)])
    reconfigure(run, data=str(run.parent / "photos"))
    answer = call(capsys, "export", "run", "net.onnx")
    assert f"evaluate net.onnx --data {run.parent / 'photos'}\n" in answer.out
    assert str(run.parent).encode() not in (run.parent / "net.onnx").read_bytes()
    error = call(capsys, "evaluate", "net.onnx").error
    assert (
        "net.onnx: was trained on a folder of images, which it does not name; add --data" in error
    )
    document = call(capsys, "evaluate", "net.onnx", "--data", "photos", "--json").document
    assert (document["data"], document["total"]) == ("photos", 20)


def test_other_data_of_the_same_classes_may_verify_the_file(run, capsys):
    photos(run.parent, [str(i) for i in range(10)])
    document = call(capsys, "export", "run", "net.onnx", "--data", "photos", "--json").document
    assert (document["data"], document["images"]) == ("photos", 20)


REFUSED = [
    (["run", "net.txt"], "net.txt: the name must end in .onnx (ONNX) or .pt2"),
    (["run", "net.pt2", "--int8"], "net.pt2: int8 is for .onnx files"),
    (["run", "absent/net.onnx"], "there is no folder absent; make it first"),
    (["run", "here.onnx"], "here.onnx: already exists and is not overwritten"),
    (["absent", "net.onnx"], "absent: is not a run"),
    (["run", "net.onnx", "--data", "absent"], "'absent' is no data set"),
    (["run", "net.onnx", "--data", "photos"], "photos has the classes 1, 2, but run was trained"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[" ".join(w) for w, _ in REFUSED])
def test_what_cannot_be_exported_is_one_line_and_no_file(words, message, run, capsys):
    (run.parent / "here.onnx").write_bytes(b"mine")
    photos(run.parent, "12")
    assert message in call(capsys, "export", *words).error
    assert files(run) == ["here.onnx", "photos", "run"]


def test_data_that_are_gone_are_an_error_that_says_what_to_do(run, capsys):
    reconfigure(run, data="/gone/photos")
    error = call(capsys, "export", "run", "net.onnx").error
    assert "'/gone/photos' is no data set" in error
    assert "name their new place with --data" in error
    assert files(run) == ["run"]


def test_a_run_whose_weights_are_broken_is_refused(run, capsys):
    opened = Run.open(run)
    model = opened.load_model()
    with torch.no_grad():
        model.fc2.bias.fill_(float("nan"))
    save_model(opened.model, model)
    error = call(capsys, "export", "run", "net.onnx").error
    assert "run/model.safetensors: fc2.bias is NaN or infinite in 10 of 10 values" in error


def test_a_checkpoint_is_exported_in_place_of_the_runs_weights(run, capsys):
    model = Run.open(run).load_model()
    with torch.no_grad():
        model.fc2.bias.copy_(torch.arange(10.0) == 3).mul_(1e3)
    torch.save({"net": model.state_dict()}, "three.pth")
    answer = call(capsys, "export", "run", "three.onnx", "--weights", "three.pth", "--json")
    assert answer.document["run"] == "three.pth"
    confusion = call(capsys, "evaluate", "three.onnx", "--json").document["confusion"]
    assert {row.index(max(row)) for row in confusion} == {3}


@pytest.mark.parametrize("stage", ["verification", "int8's accuracy"])
def test_an_interruption_leaves_no_file(stage, run, capsys, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    owner, name = (jobs, "compare") if stage == "verification" else (measuring, "evaluate")
    monkeypatch.setattr(owner, name, stop)
    assert call(capsys, "export", "run", "net.onnx", "--int8").code == 130
    assert files(run) == ["run"]


def test_ctrl_c_in_a_process_of_its_own_leaves_no_file(run):
    words = (*PROGRAM, "export", "run", "net.onnx")
    process = subprocess.Popen(words, cwd=run.parent, env=environment(), start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    time.sleep(3.5)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    left = files(run)
    if process.returncode:  # else it was done before the signal came
        assert left == ["run"]
        assert b"Traceback" not in err
    else:
        assert left == ["net.onnx", "run"]


NO_MODEL = [
    ("absent.onnx", "absent.onnx: No such file"),
    ("text.onnx", "text.onnx: is not a whole ONNX file"),
    ("strange.onnx", "strange.onnx: has no classes, mean, std, image_size, preprocessing"),
    ("net.pt2", "net.pt2: is for torch.export.load"),
]


@pytest.mark.parametrize(("name", "message"), NO_MODEL, ids=[name for name, _ in NO_MODEL])
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_file_that_is_no_classifier_of_ours_is_refused(command, name, message, run, capsys):
    (run.parent / "text.onnx").write_bytes(b"no model")
    (run.parent / "net.pt2").write_bytes(b"anything")
    values = [onnx.helper.make_tensor_value_info(n, 1, [1]) for n in "xy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:]
    )
    onnx.save(onnx.helper.make_model(graph, ir_version=10), "strange.onnx")
    words = [name] if command == "evaluate" else [name, "a.png"]
    assert message in call(capsys, command, *words).error


def test_weights_beside_a_file_are_refused(net, capsys):
    words = ("net.onnx", "--weights", "run/model.safetensors")
    assert "net.onnx: has weights of its own" in call(capsys, "evaluate", *words).error


def test_data_of_other_classes_are_refused_for_a_file_too(net, run, capsys):
    photos(run.parent, "12")
    error = call(capsys, "evaluate", "net.onnx", "--data", "photos").error
    assert "photos has the classes 1, 2, but net.onnx was trained on 0, 1" in error


def test_where_cifar_lies_is_part_of_the_suggestion_and_not_of_the_file(run):
    opened = Run.open(run)
    cifar = Run(run, dataclasses.replace(opened.config, data="cifar10", root="/my data"))
    assert _where(cifar, None, None) == " --root '/my data'"
    assert _where(cifar, None, Path("/other")) == " --root /other"
    assert _where(cifar, "photos", None) == " --data photos"
    assert _where(opened, None, None) == ""


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(command, run, capsys):
    os.mkfifo("pipe.onnx")
    error = call(capsys, command, "pipe.onnx", *(["0.png"] if command == "predict" else [])).error
    assert "pipe.onnx: is a pipe or a device" in error


def test_the_suggestion_for_a_split_that_was_drawn_keeps_to_it(run):
    opened = Run.open(run)
    files = Files(("a/1.png",), ("a/2.png",), drawn=True)
    own = Run(run, dataclasses.replace(opened.config, data="/my/photos", files=files))
    assert _where(own, None, None) == " --data /my/photos --split test"
    assert _where(own, "other", None) == " --data other"
