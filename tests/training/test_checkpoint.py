"""The files of a checkpoint come back to the bit, run no code, and tell damage from content."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from gammabeta import Net
from gammabeta.errors import RunError
from gammabeta.training.checkpoint import check_safetensors, load_state, save_model, save_state
from gammabeta.training.weights import load_weights
from training_helpers import leftovers


@pytest.fixture(scope="module")
def net():
    return Net(10, 8)


def refusal(act, *args):
    with pytest.raises(RunError) as error:
        act(*args)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_state_and_model_come_back_to_the_bit(net, tmp_path):
    state = {"position": {"step": 3, "loss": 0.1}, "model": net.state_dict(), "names": ["a"]}
    save_state(tmp_path / "state.pt", state)
    back = load_state(tmp_path / "state.pt")
    assert back["position"] == state["position"]
    save_model(tmp_path / "m.safetensors", net.to(memory_format=torch.channels_last))
    for loaded in (back["model"], load_weights(tmp_path / "m.safetensors")):
        assert loaded.keys() == net.state_dict().keys()
        assert all(torch.equal(loaded[k], v) for k, v in net.state_dict().items())


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))],
                         ids=["torch.save", "pickle"])  # fmt: skip
@pytest.mark.parametrize("read", [load_state, load_weights])
def test_code_in_a_checkpoint_is_refused_and_not_run(read, write, tmp_path):
    path, sprung = tmp_path / "evil.pt", tmp_path / "sprung"
    write({"state_dict": {"w": torch.zeros(1)}, "trap": Trap(sprung)}, path)
    assert str(path) in refusal(read, path)
    assert not sprung.exists()
    torch.load(path, weights_only=False) if write is torch.save else pickle.loads(path.read_bytes())  # noqa: S301 - proves that the trap works
    assert sprung.exists()


@pytest.mark.parametrize("keep", [0, 1, 10, 1000, -1, -100, -5000])
@pytest.mark.parametrize("read", [load_state, load_weights])
def test_a_cut_off_file_is_refused(read, keep, net, tmp_path):
    path = tmp_path / "state.pt"
    save_state(path, {"model": net.state_dict()})
    path.write_bytes(path.read_bytes()[:keep])
    assert str(path) in refusal(read, path)


@pytest.mark.parametrize("name", ["m.safetensors", "other.safetensors"])
def test_a_flipped_byte_in_a_model_is_refused(name, net, tmp_path):
    path, noise = tmp_path / name, random.Random(2)
    save_model(path, net)
    assert safetensors.torch.load_file(path).keys() == net.state_dict().keys()
    with path.open("r+b") as file:
        for _ in range(20):  # the first page is the header's, the rest is data
            position = noise.randrange(path.stat().st_size)
            flip(file, position)
            with pytest.raises(RunError, match=r"safetensors: is "):
                load_weights(path)
            flip(file, position)
    load_weights(path)


def flip(file, position):
    file.seek(position)
    (byte,) = file.read(1)
    file.seek(position)
    file.write(bytes([byte ^ 1]))
    file.flush()


def test_every_flipped_byte_of_a_small_model_is_refused(tmp_path):
    path, net = tmp_path / "m.safetensors", nn.BatchNorm1d(3)
    save_model(path, net, 46)
    assert check_safetensors(path, ours=True) == 46
    whole, noise = path.read_bytes(), random.Random(3)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << noise.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises((RunError, safetensors.SafetensorError)):
            read_ours(path)


def read_ours(path):
    check_safetensors(path, ours=True)
    safetensors.torch.load_file(path)


def test_models_of_others_have_no_checksum_and_are_read(net, tmp_path):
    path = tmp_path / "m.safetensors"
    for metadata in (None, {"format": "pt"}, {"sha256": "0" * 64}):
        tensors = {key: value.contiguous() for key, value in net.state_dict().items()}
        safetensors.torch.save_file(tensors, path, metadata)
        assert check_safetensors(path) is None
        assert load_weights(path).keys() == net.state_dict().keys()


def test_the_same_model_gives_the_same_bytes(net, tmp_path):
    for name in ("a", "b"):
        save_model(tmp_path / name, net)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_state_before_is_kept_and_both_are_whole(tmp_path):
    path, previous = tmp_path / "state.pt", tmp_path / "previous.pt"
    for step in range(3):
        save_state(path, {"step": step}, previous)
        kept = load_state(previous)["step"] if previous.exists() else None
        assert (load_state(path)["step"], kept) == (step, step - 1 if step else None)
    assert leftovers(tmp_path) == []
