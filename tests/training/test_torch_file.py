"""What torch.save wrote is read back whole, without running it and without reading beyond it."""

from __future__ import annotations

import io
import os
import pickle
import random
import subprocess
import sys
import zipfile

import pytest
import torch

from gammabeta.errors import DamagedError, RunError
from gammabeta.training.torch_file import read_torch_file, write_torch_file


def content():
    random_numbers = torch.Generator().manual_seed(0)
    weights = torch.randn(40, 3, 3, 3, generator=random_numbers)
    return {
        "model": {"w": weights.to(memory_format=torch.channels_last), "b": torch.arange(5)},
        "half": torch.ones(3, dtype=torch.bfloat16),
        "position": {"step": 3, "loss": 0.1, "names": ["a", None]},
    }


def assert_same(read, wrote):
    assert read["position"] == wrote["position"]
    for key, tensor in wrote["model"].items():
        assert torch.equal(read["model"][key], tensor)
        assert read["model"][key].stride() == tensor.stride()
    assert torch.equal(read["half"], wrote["half"])


@pytest.fixture
def path(tmp_path):
    write_torch_file(tmp_path / "x.pt", content())
    return tmp_path / "x.pt"


def test_what_was_written_comes_back_here_and_in_torch(path):
    assert_same(read_torch_file(path), content())
    for options in ({}, {"mmap": True}):
        assert_same(torch.load(path, weights_only=True, **options), content())
    assert zipfile.ZipFile(path).testzip() is None


def test_files_of_others_have_no_checksum_and_are_read(tmp_path):
    for old_format in (False, True):
        file = tmp_path / f"{old_format}.pth"
        torch.save(content(), file, _use_new_zipfile_serialization=not old_format)
        assert_same(read_torch_file(file), content())


def test_a_flipped_byte_anywhere_is_refused(path):
    whole, noise = path.read_bytes(), random.Random(1)
    last = range(len(whole) - 200, len(whole))  # the zip's end and the seal: all of it
    for position in [*noise.sample(range(len(whole)), 300), *last]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << noise.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match=r"x\.pt: is damaged.*checksum"):
            read_torch_file(path)


def test_a_zeroed_page_is_refused(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:1024] + bytes(4096) + whole[1024 + 4096 :])
    with pytest.raises(DamagedError):
        read_torch_file(path)


def test_a_cut_off_file_and_one_with_more_at_its_end_are_refused(path):
    whole = path.read_bytes()
    for cut in (1, 5, 64, 65, 81, 82, 100, 103, 104, 500, len(whole) - 1):
        path.write_bytes(whole[:-cut])
        with pytest.raises(RunError, match=r"x\.pt: is "):
            read_torch_file(path)
    for more in (b"\0", b"\n", bytes(500)):
        path.write_bytes(whole + more)
        with pytest.raises(DamagedError):
            read_torch_file(path)


def rewritten(path, change):
    """Write the zip anew with other records, as a hand or a broken tool would."""
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in change(records):
            archive.writestr(name, data)


TORCH = {  # name of the storage class's type: a tensor of it
    str(dtype): torch.ones(64, dtype=dtype)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8,
                  torch.bool, torch.complex64, torch.uint16, torch.float8_e4m3fn)
}  # fmt: skip


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("missing", [1, 63, 4096])
def test_a_record_shorter_than_its_tensor_is_refused(dtype, missing, tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"state_dict": {"w": TORCH[dtype]}}, path)
    assert torch.equal(read_torch_file(path)["state_dict"]["w"], TORCH[dtype])
    rewritten(path, lambda records: [
        (name, data[: max(0, len(data) - missing)] if "/data/" in name else data)
        for name, data in records
    ])  # fmt: skip
    with pytest.raises(RunError, match=r"x\.pth: is not a whole file.*a tensor of [\d,]+ bytes"):
        read_torch_file(path)


def test_a_record_that_is_missing_or_there_twice_is_refused(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"w": torch.ones(64)}, path)
    rewritten(path, lambda records: [r for r in records if "/data/" not in r[0]])
    with pytest.raises(RunError, match=r"x\.pth"):
        read_torch_file(path)
    torch.save({"w": torch.ones(64)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("X/DATA/0".replace("X", archive.namelist()[0].split("/")[0]), b"")
    with pytest.raises(RunError, match="two of its records have one name"):
        read_torch_file(path)


def test_tensors_that_share_a_storage_are_read(tmp_path):
    base = torch.arange(12.0)
    torch.save({"a": base[:3], "b": base[3:].view(3, 3).t(), "p": torch.nn.Parameter(base)},
               tmp_path / "x.pt")  # fmt: skip
    read = read_torch_file(tmp_path / "x.pt")
    assert torch.equal(read["b"], base[3:].view(3, 3).t())
    assert read["a"].untyped_storage().data_ptr() == read["b"].untyped_storage().data_ptr()


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_is_refused_and_not_run(tmp_path):
    path, sprung = tmp_path / "evil.pt", tmp_path / "sprung"
    torch.save({"w": torch.zeros(1), "trap": Trap(sprung)}, path)
    with pytest.raises(RunError, match=r"evil\.pt: .*not run"):
        read_torch_file(path)
    assert not sprung.exists()
    torch.load(path, weights_only=False)
    assert sprung.exists(), "the trap works"


def test_pickles_made_to_mislead_the_check_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    for saved in [("storage", "FloatStorage", "0", "cpu", 4), ("storage",), 3,
                  ("storage", torch.FloatStorage, "0", "cpu", -4),
                  ("storage", torch.FloatStorage, "0", "cpu", 2**62)]:  # fmt: skip
        torch.save({"w": torch.ones(4)}, path)
        pickled = io.BytesIO()
        pickler = pickle.Pickler(pickled, protocol=2)
        pickler.persistent_id = lambda item, saved=saved: saved if item == "here" else None
        pickler.dump({"w": "here"})
        rewritten(path, lambda records, pickled=pickled: [
            (name, pickled.getvalue() if name.endswith("data.pkl") else data)
            for name, data in records
        ])  # fmt: skip
        with pytest.raises(RunError, match=r"x\.pt: ") as error:
            read_torch_file(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["absent", "folder", "pipe"])
def test_what_is_no_file_is_refused_at_once(kind, tmp_path):
    path = tmp_path / "x.pt"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(RunError, match=r"x\.pt: (no such file|is not a file)"):
        read_torch_file(path)


def test_a_good_file_is_read_without_a_warning(tmp_path):
    torch.save({"a": torch.ones(2), "n": torch.ones(2, dtype=torch.int64)}, tmp_path / "x.pt")
    script = (
        "from pathlib import Path; from gammabeta.training.torch_file import read_torch_file; "
        f"read_torch_file(Path({str(tmp_path / 'x.pt')!r}))"
    )
    command = [sys.executable, "-W", "always", "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "TypedStorage" not in done.stderr
