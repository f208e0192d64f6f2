"""Downloads from a real server that cuts, stalls, lies and refuses."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import subprocess
import sys
import threading
from urllib.error import URLError

import pytest

from gammabeta.data.download import Remote, fetch
from gammabeta.errors import DataError
from http_server import NAME, Answer, serve

BODY = random.Random(0).randbytes(300_000)


def remote(served, **changes):
    values = {"url": served.url, "md5": hashlib.md5(BODY).hexdigest(), "size": len(BODY)}  # noqa: S324 (as published)
    return Remote(**values | changes)


def test_a_whole_file_arrives_with_progress(tmp_path):
    steps = []
    with serve(BODY) as served:
        path = fetch(remote(served), tmp_path / "new", progress=lambda *step: steps.append(step))
    assert path == tmp_path / "new" / NAME
    assert path.read_bytes() == BODY
    assert [p.name for p in path.parent.iterdir()] == [NAME]
    assert {(text, total) for text, _, total in steps} == {(f"downloading {NAME}", len(BODY))}
    done = [here for _, here, _ in steps]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, len(BODY))


def test_a_file_that_is_there_is_not_fetched_again(tmp_path):
    (tmp_path / NAME).write_bytes(b"mine")
    with serve(BODY) as served:
        assert fetch(remote(served), tmp_path).read_bytes() == b"mine"
    assert served.ranges == []


def test_a_cut_transfer_resumes_without_sending_bytes_twice(tmp_path):
    with serve(BODY, Answer(cut=100_000), Answer(cut=50_001), Answer()) as served:
        path = fetch(remote(served), tmp_path, pause=0)
    assert path.read_bytes() == BODY
    assert served.ranges == [None, "bytes=100000-", "bytes=150001-"]
    assert sum(served.sent) == len(BODY)


def test_the_next_call_resumes_when_retries_are_used_up(tmp_path):
    with serve(BODY, Answer(cut=70_000), Answer(cut=0), Answer()) as served:
        with pytest.raises(
            DataError, match=r"broke 2 times.*70000 of 300000.*call again"
        ) as caught:
            fetch(remote(served), tmp_path, retries=1, pause=0)
        assert (tmp_path / f"{NAME}.part").stat().st_size == 70_000
        assert not (tmp_path / NAME).exists()
        fetch(remote(served), tmp_path)
    assert "\n" not in str(caught.value)
    assert served.ranges[2] == "bytes=70000-"
    assert sum(served.sent) == len(BODY)


def test_a_server_without_ranges_makes_it_start_from_zero(tmp_path):
    with serve(BODY, Answer(cut=100_000), Answer(ranges=False)) as served:
        path = fetch(remote(served), tmp_path, pause=0)
    assert served.ranges[1] == "bytes=100000-"
    assert path.read_bytes() == BODY


def test_a_refused_range_makes_it_start_from_zero(tmp_path):
    with serve(BODY, Answer(cut=100_000), Answer(status=416), Answer()) as served:
        path = fetch(remote(served), tmp_path, pause=0)
    assert served.ranges == [None, "bytes=100000-", None]
    assert path.read_bytes() == BODY


@pytest.mark.parametrize("extra", [0, 5], ids=["complete", "too long"])
def test_a_part_file_of_an_earlier_process_is_used_or_dropped(tmp_path, extra):
    (tmp_path / f"{NAME}.part").write_bytes(BODY + b"x" * extra)
    with serve(BODY) as served:
        assert fetch(remote(served), tmp_path).read_bytes() == BODY
    assert served.ranges == ([None] if extra else [])


def link(part, outside):
    part.symlink_to(outside)


def dangling_link(part, outside):
    outside.unlink()
    part.symlink_to(outside)


def hard_link(part, outside):
    os.link(outside, part)


def folder(part, _):
    part.mkdir()


def pipe(part, _):
    os.mkfifo(part)


@pytest.mark.parametrize("make", [link, dangling_link, hard_link, folder, pipe])
def test_nothing_is_written_through_what_lies_in_the_place_of_the_part(tmp_path, make):
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    root = tmp_path / "root"
    root.mkdir()
    make(root / f"{NAME}.part", outside)
    before = outside.read_bytes() if outside.exists() else None
    with (
        serve(BODY) as served,
        pytest.raises(DataError, match=rf"{NAME}\.part: is a link or no plain file.*remove it"),
    ):
        fetch(remote(served), root)
    assert served.ranges == []
    assert (outside.read_bytes() if outside.exists() else None) == before
    assert [p.name for p in root.iterdir()] == [f"{NAME}.part"]


def test_a_stalled_server_is_given_up_and_resumed(tmp_path):
    with serve(BODY, Answer(cut=10_000, stall=True), Answer()) as served:
        path = fetch(remote(served), tmp_path, timeout=0.2, pause=0)
    assert served.ranges == [None, "bytes=10000-"]
    assert path.read_bytes() == BODY


def test_a_wrong_checksum_deletes_the_file_and_tells_both(tmp_path):
    wrong = "0" * 32
    with serve(BODY) as served:
        right = remote(served).md5
        with pytest.raises(DataError, match=rf"{right} instead of {wrong}.*call again"):
            fetch(remote(served, md5=wrong), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [404, 503])
def test_an_error_status_is_told_with_the_address(tmp_path, status):
    with (
        serve(BODY, Answer(status=status)) as served,
        pytest.raises(DataError, match=rf"{served.url}: the server answered {status} "),
    ):
        fetch(remote(served), tmp_path)
    assert len(served.ranges) == 1
    assert not (tmp_path / NAME).exists()


def test_another_file_is_refused_before_it_is_stored(tmp_path):
    with (
        serve(b"<html>please log in</html>") as served,
        pytest.raises(DataError, match="announced 26 bytes instead of 300000"),
    ):
        fetch(remote(served), tmp_path)
    assert (tmp_path / f"{NAME}.part").stat().st_size == 0


def test_an_endless_answer_is_read_no_further_than_the_known_size(tmp_path):
    with serve(BODY + b"x" * 1_000_000, Answer(announce=False)) as served:
        assert fetch(remote(served), tmp_path).read_bytes() == BODY


def test_a_closed_port_is_a_urlerror(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/{NAME}"
        with pytest.raises(URLError):
            fetch(Remote(url, "0" * 32, 1), tmp_path)


def test_two_processes_download_once(tmp_path):
    code = (
        "import sys; from pathlib import Path; from gammabeta.data.download import Remote, fetch\n"
        "fetch(Remote(sys.argv[1], sys.argv[2], int(sys.argv[3])), Path(sys.argv[4]),"
        " progress=lambda text, *_: print(text, flush=True))"
    )
    go = threading.Event()
    with serve(BODY, Answer(after=go)) as served:
        wanted = remote(served)
        command = [sys.executable, "-c", code, wanted.url, wanted.md5, str(wanted.size), tmp_path]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first,
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second,
        ):
            said = {first.stdout.readline(), second.stdout.readline()}
            go.set()
            first.communicate(timeout=20)
            second.communicate(timeout=20)
    assert said == {f"downloading {NAME}\n", "waiting for another download\n"}
    assert first.returncode == second.returncode == 0
    assert len(served.ranges) == 1
    assert (tmp_path / NAME).read_bytes() == BODY
