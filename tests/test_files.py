"""Files are whole or absent, tell damage from content, and what a kill left behind goes."""

from __future__ import annotations

import errno
import io
import json
import math
import random
import subprocess
import sys

import pytest

from gammabeta.errors import RunError
from gammabeta.files import (
    NO_SEAL,
    folder_beside,
    is_intact,
    keep_as,
    leftovers,
    seal,
    sweep,
    to_json,
    write_atomically,
)


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
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError], ids=lambda e: e.__name__)
def test_a_stopped_write_leaves_the_old_file_and_nothing_else(error, tmp_path):
    path = tmp_path / "state.pt"
    path.write_bytes(b"old")

    def stop(file):
        file.write(b"half")
        raise error

    with pytest.raises(error):
        write_atomically(path, stop)
    assert path.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("name", ["absent/x.png", "file/x.png", "x" * 300, "folder"])
def test_a_place_that_cannot_be_written_is_refused_by_name(name, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    message = refusal(write_atomically, tmp_path / name, lambda file: file.write(b"x"))
    assert str(tmp_path / name) in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_a_write_replaces_the_old_file(tmp_path):
    path = tmp_path / "x"
    for content in (b"one", b"two"):
        write_atomically(path, lambda file, content=content: file.write(content))
        assert path.read_bytes() == content


WRITER = """
import sys, time
from pathlib import Path
from gammabeta.files import folder_beside, temporary_beside

target = Path(sys.argv[1])
with temporary_beside(target) as (file, _), folder_beside(target) as folder:
    file.write(b"half")
    (folder / "part").write_bytes(b"half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_leftovers_of_a_killed_writer_go_and_a_living_one_keeps_its_own(tmp_path):
    command = [sys.executable, "-c", WRITER, tmp_path / "x"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "ready\n"
        held = leftovers(tmp_path)
        sweep(tmp_path)
        assert leftovers(tmp_path) == held
        assert len(held) == 2
        writer.kill()
    sweep(tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_nothing_but_our_own_leftovers_is_swept(tmp_path):
    ours = tmp_path / f".gammabeta-{'0' * 16}.tmp"
    (tmp_path / "precious").write_text("")
    strangers = [".hidden", ".gammabeta-notes.tmp", f".gammabeta-{'0' * 16}.txt", f".{'0' * 16}"]
    for name in strangers:
        (tmp_path / name).write_text("")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / ours.name).write_text("")
    ours.symlink_to(tmp_path / "precious")
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [*strangers, "below", "precious", ours.name]
    )
    assert (tmp_path / "below" / ours.name).exists()


def test_a_writer_whose_file_is_swept_before_it_is_locked_takes_another(tmp_path, monkeypatch):
    import fcntl

    flock, swept = fcntl.flock, []

    def slow(descriptor, how):
        if not swept:
            swept.extend(leftovers(tmp_path))
            swept[0].unlink()
        return flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    write_atomically(tmp_path / "x", lambda file: file.write(b"whole"))
    assert swept
    assert (tmp_path / "x").read_bytes() == b"whole"
    assert [*tmp_path.iterdir()] == [tmp_path / "x"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def stop():
        with folder_beside(tmp_path / "run") as stage:
            (stage / "config.json").write_text("{}")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stop()
    assert [*tmp_path.iterdir()] == []
    with folder_beside(tmp_path / "run") as stage:
        (stage / "config.json").write_text("{}")
        stage.rename(tmp_path / "run")
    assert [p.name for p in tmp_path.rglob("*")] == ["run", "config.json"]


def test_a_file_is_kept_under_a_second_name_also_if_it_has_that_already(tmp_path):
    path, other = tmp_path / "state.pt", tmp_path / "previous.pt"
    for content in (b"one", b"two"):
        write_atomically(path, lambda file, content=content: file.write(content))
        for _ in range(2):
            keep_as(path, other)
            assert other.read_bytes() == content
    write_atomically(path, lambda file: file.write(b"three"))
    assert other.read_bytes() == b"two"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["previous.pt", "state.pt"]


@pytest.mark.parametrize("at", [0, 7, 93])
def test_every_flipped_bit_breaks_a_seal(at):
    noise = random.Random(0)
    content = bytearray(noise.randbytes(157))
    content[at : at + 64] = NO_SEAL
    whole = b"".join(seal(bytes(content), at))
    assert is_intact(io.BytesIO(whole), at)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << noise.randrange(8)
        assert not is_intact(io.BytesIO(damaged), at), position
    for cut in (whole[:-1], whole[: at + 3], whole + b"\0", b""):
        assert not is_intact(io.BytesIO(cut), at)


def test_json_has_null_for_what_it_cannot_say():
    value = {"a": [math.nan, (1.5, -math.inf)], "b": {"c": math.inf, "d": "NaN"}, 3: True}
    read = json.loads(to_json(value), parse_constant=pytest.fail)
    assert read == {"a": [None, [1.5, None]], "b": {"c": None, "d": "NaN"}, "3": True}
