"""Weights are found in whatever people save, run no code, and say how they do not fit."""

from __future__ import annotations

import copy
import pickle
import random
from pathlib import Path

import pytest
import torch
from torch import nn

from gammabeta import Net
from gammabeta.errors import RunError
from gammabeta.training.checkpoint import save_model
from gammabeta.training.weights import apply_weights, load_weights


@pytest.fixture(scope="module")
def net():
    return Net(10, 8)


def refusal(act, *args):
    with pytest.raises(RunError) as error:
        act(*args)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_pickled_module_is_refused_with_what_to_do(net, tmp_path):
    torch.save(net, tmp_path / "whole.pt")
    assert "state_dict" in refusal(load_weights, tmp_path / "whole.pt")


def garbage():
    """Bytes of many kinds: noise, zips, damaged pickles of the old format."""
    noise = random.Random(0)
    yield from (noise.randbytes(n) for n in (1, 2, 3, 8, 64, 1000))
    yield from (b"PK\x03\x04" + noise.randbytes(60), b"\x80\x02" + noise.randbytes(30), b"{}")
    yield from (b"\x80\x02" + bytes([code]) + b"." for code in range(256))
    good = pickle.dumps({"w": [1.5, "x", None]}, protocol=2)
    for _ in range(300):
        damaged = bytearray(good)
        damaged[noise.randrange(2, len(good))] = noise.randrange(256)
        yield bytes(damaged)


def test_any_garbage_is_refused_with_the_file_named(tmp_path):
    path = tmp_path / "weights.pth"
    for content in garbage():
        path.write_bytes(content)
        assert str(path) in refusal(load_weights, path), content


def test_a_safetensors_file_of_garbage_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    for content in (b"", b"x", b"\xff" * 16, (9).to_bytes(8, "little") + b"{broken}}"):
        path.write_bytes(content)
        assert refusal(load_weights, path).startswith(f"{path}: is not a whole safetensors file")


def test_a_cut_off_safetensors_file_is_refused(net, tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(path, net)
    path.write_bytes(path.read_bytes()[:-4])
    assert "is not a whole safetensors file" in refusal(load_weights, path)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("kind", ["absent", "folder"])
def test_a_missing_file_and_a_folder_are_refused(kind, name, tmp_path):
    if kind == "folder":
        (tmp_path / name).mkdir()
    message = refusal(load_weights, tmp_path / name)
    assert message.startswith(str(tmp_path / name))
    assert ("no such file" in message) is (kind == "absent")


@pytest.mark.parametrize(
    "wrap",
    [lambda w: w, lambda w: {"state_dict": w, "epoch": 3}, lambda w: {"model_state_dict": w},
     lambda w: {"model": w, "position": {}}, lambda w: {f"module.{k}": v for k, v in w.items()},
     lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}, "lr": 0.1}],
    ids=["plain", "state_dict", "model_state_dict", "model", "module.", "both"],
)  # fmt: skip
def test_the_usual_ways_to_wrap_weights_are_understood(wrap, net, tmp_path):
    torch.save(wrap(net.state_dict()), tmp_path / "w.pth")
    weights = load_weights(tmp_path / "w.pth")
    assert weights.keys() == net.state_dict().keys()
    assert all(torch.equal(weights[k], v) for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    "content",
    [{}, {"a": 1}, {"state_dict": {}}, [torch.zeros(1)], torch.zeros(1), {1: torch.zeros(1)}],
    ids=["empty", "no tensors", "empty state_dict", "list", "tensor", "numbered"],
)  # fmt: skip
def test_a_file_without_named_tensors_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    assert str(tmp_path / "w.pth") in refusal(load_weights, tmp_path / "w.pth")


def test_every_misfit_is_named_and_nothing_is_loaded(net):
    model = copy.deepcopy(net)
    weights = {k: v + 1 for k, v in net.state_dict().items() if k != "bn2.bias"}
    weights |= {"head.weight": torch.zeros(1), "fc2.weight": torch.zeros(7, 1024)}
    message = refusal(apply_weights, model, weights, Path("x.pth"))
    assert message == (
        "x.pth: does not fit Net: bn2.bias is missing; head.weight is unknown; "
        "fc2.weight has shape (7, 1024), expected (10, 1024)"
    )
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in model.state_dict().items())


def test_a_long_list_of_misfits_is_cut_and_counted(net):
    message = refusal(apply_weights, net, {}, Path("x.pth"))
    assert message.count("is missing") == 6
    assert message.endswith(f"; and {len(net.state_dict()) - 4 - 6} more")


def test_a_checkpoint_older_than_num_batches_tracked_is_accepted(net):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    old = {k: v + 1 for k, v in model.state_dict().items() if "num_batches" not in k}
    apply_weights(model, old, Path("x.pth"))
    assert all(torch.equal(model.state_dict()[k], v) for k, v in old.items())
