"""Files are whole or absent, run no code when read, and say how they do not fit."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import pytest
import torch

from gammabeta import Net
from gammabeta.errors import RunError
from gammabeta.training.checkpoint import (
    load_state,
    save_model,
    save_state,
    write_atomically,
)
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


@pytest.mark.parametrize(
    "failure",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos 64 vs 0\n…")],
    ids=["full disk", "torch"],
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(failure, tmp_path):
    path = tmp_path / "state.pt"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half of the ne")
        raise failure

    message = refusal(write_atomically, path, fail)
    assert message.startswith(f"{path}: cannot be written (")
    assert path.read_bytes() == b"old"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError], ids=lambda e: e.__name__)
def test_a_stopped_write_leaves_the_old_file_and_nothing_else(error, tmp_path):
    path = tmp_path / "state.pt"
    path.write_bytes(b"old")

    def stop(file):
        file.write(b"half")
        raise error

    with pytest.raises(error):
        write_atomically(path, stop)
    assert (path.read_bytes(), leftovers(tmp_path)) == (b"old", [])


@pytest.mark.parametrize("name", ["absent/x.png", "file/x.png", "x" * 300, "folder"])
def test_a_place_that_cannot_be_written_is_refused_by_name(name, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    message = refusal(write_atomically, tmp_path / name, lambda file: file.write(b"x"))
    assert str(tmp_path / name) in message
    assert leftovers(tmp_path) == []


def test_a_write_replaces_the_old_file(tmp_path):
    path = tmp_path / "x"
    for content in (b"one", b"two"):
        write_atomically(path, lambda file, content=content: file.write(content))
        assert path.read_bytes() == content


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
