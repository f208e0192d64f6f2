"""Archives: the wanted files come out, and nothing that an attacker wrote does harm."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import tarfile
import time
import tracemalloc

import pytest

from gammabeta.data.archive import MARGIN, MAX_EXTENSION, MAX_HEADERS, unpack
from gammabeta.data.gunzip import Gunzip, UnpackError
from gammabeta.errors import DataError

NAMES = ("a.bin", "b.bin")
LIMIT = 10_000


def member(name, content=b"", kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content)
    return info, content


GOOD = (member("batches", kind=tarfile.DIRTYPE), *(member(f"batches/{n}", b"12") for n in NAMES))


def write(path, *members):
    with tarfile.open(path, "w:gz") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def inside(tmp_path):
    """A folder within the test's own, so that an escape would be seen."""
    (tmp_path / "inside").mkdir()
    return tmp_path / "inside"


def seen(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_the_wanted_files_lie_directly_in_the_target(inside):
    archive = write(inside / "x.tar.gz", *GOOD, member("batches/readme.html", b"no"))
    unpack(archive, inside / "out", NAMES, max_bytes=LIMIT)
    assert seen(inside) == ["out", "out/a.bin", "out/b.bin", "x.tar.gz"]
    assert (inside / "out/b.bin").read_bytes() == b"12"


HOSTILE = {
    "absolute path": member("/a.bin", b"x"),
    "parent path": member("../a.bin", b"x"),
    "parent path inside": member("batches/../../c.bin", b"x"),
    "symbolic link": member("a.bin", kind=tarfile.SYMTYPE, link="/etc/passwd"),
    "hard link": member("c.bin", kind=tarfile.LNKTYPE, link="batches/a.bin"),
    "fifo": member("a.bin", kind=tarfile.FIFOTYPE),
    "character device": member("c.bin", kind=tarfile.CHRTYPE),
    "block device": member("c.bin", kind=tarfile.BLKTYPE),
    "the same file twice": member("elsewhere/a.bin", b"x"),
    "bomb": member("c.bin", bytes(LIMIT)),
    "bomb in a header": member("c" * (LIMIT + 2 * MARGIN), b"x"),
    "bomb in a small header": member("c" * (MAX_EXTENSION + 1), b"x"),
    "sparse": (member("c.bin", b"x", kind=tarfile.GNUTYPE_SPARSE)),
}


@pytest.mark.parametrize("bad", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_a_hostile_archive_leaves_nothing(inside, bad, first):
    members = (bad, *GOOD) if first else (*GOOD, bad)
    archive = write(inside / "x.tar.gz", *members)
    with pytest.raises(DataError, match=r"x\.tar\.gz: cannot be unpacked") as caught:
        unpack(archive, inside / "out", NAMES, max_bytes=LIMIT)
    assert "\n" not in str(caught.value)
    assert seen(inside.parent) == ["inside", "inside/x.tar.gz"]


# Archives that would keep a reader busy, or fill its memory. Each is small and quickly made.


def block(name, size=0, kind=tarfile.REGTYPE, content=b""):
    """Return a member as bytes; the size that it states need not be its content's."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


def pax(content, kind=tarfile.XHDTYPE):
    return block("pax", len(content), kind, content)


def record(key, value):
    body = f" {key}={value}\n".encode()
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length += 1
    return str(length).encode() + body


WHOLE = b"".join(block(f"batches/{n}", 2, content=b"12") for n in NAMES)
END = bytes(1024)
ZEROS = 300_000_000
BUSY = {
    "a million empty members": lambda: (block("x") * 100_000 + WHOLE, "more than 10000 members"),
    "nested headers": lambda: (pax(record("a", "b")) * 20_000 + WHOLE, "more than 10000 members"),
    "nested long names": lambda: (
        block("x", 1, tarfile.GNUTYPE_LONGNAME, b"x") * 20_000 + WHOLE,
        "more than 10000 members",
    ),
    "zeros in a pax header": lambda: (block("x", ZEROS, tarfile.XHDTYPE), "a header of 300000000"),
    "zeros in a global header": lambda: (block("x", ZEROS, tarfile.XGLTYPE), "a header of 3000000"),
    "zeros in a name": lambda: (block("x", ZEROS, tarfile.GNUTYPE_LONGNAME), "a header of 3000000"),
    "pax record of length nought": lambda: (pax(b"0 a=b\n") + WHOLE, "a pax header is damaged"),
    "pax record of its own digits": lambda: (pax(b"2 a=b\n") + WHOLE, "a pax header is damaged"),
    "pax record beyond its end": lambda: (pax(b"99 a=b\n") + WHOLE, "a pax header is damaged"),
    "pax digits without end": lambda: (pax(b"9" * 60_000) + WHOLE, "a pax header is damaged"),
    "pax size": lambda: (pax(record("size", 9**9)) + WHOLE, "a pax header with size"),
    "pax sparse map": lambda: (pax(record("GNU.sparse.map", "0,1")) + WHOLE, "with GNU.sparse.map"),
    "negative size": lambda: (negative() + WHOLE, "a header is damaged|negative size"),
}


def negative():
    info = bytearray(block("x", 1))
    info[124:136] = b"\xff" * 11 + b"\x00"
    info[148:156] = b" " * 8
    info[148:156] = b"%06o\0 " % sum(info)
    return bytes(info)


@pytest.mark.parametrize("make", BUSY.values(), ids=BUSY)
def test_a_busy_archive_is_refused_at_once(inside, make):
    content, reason = make()
    (inside / "x.tar.gz").write_bytes(gzip.compress(content + END, 1))
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(DataError, match=rf"cannot be unpacked \(.*({reason})") as caught:
        unpack(inside / "x.tar.gz", inside / "out", NAMES, max_bytes=400_000_000)
    seconds, (_, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 10  # tarfile alone: 25 s and more, or gigabytes, or a RecursionError
    assert peak < 20_000_000
    assert "\n" not in str(caught.value)
    assert seen(inside) == ["x.tar.gz"]


def test_empty_gzip_files_in_a_row_are_bounded(inside):
    empty = gzip.compress(b"", mtime=0)
    (inside / "x.tar.gz").write_bytes(empty * 200_000 + gzip.compress(WHOLE + END))
    began = time.perf_counter()
    with pytest.raises(DataError, match="more than 100 gzip files in a row"):
        unpack(inside / "x.tar.gz", inside / "out", NAMES, max_bytes=LIMIT)
    assert time.perf_counter() - began < 1


def test_time_is_bounded():
    stream = Gunzip(io.BytesIO(gzip.compress(bytes(9))), 9, max_seconds=-1)
    with pytest.raises(UnpackError, match="takes too long"):
        stream.read(1)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_an_archive_that_somebody_packed_anew_is_read(inside, form):
    """As systems do: attributes in pax headers, hidden companions, long folder names, padding."""
    long = "a-folder-with-a-name-of-some-length/" * (2 if form == tarfile.USTAR_FORMAT else 8)
    headers = {"mtime": "1.5", "LIBARCHIVE.xattr.com.apple.provenance": "x" * 999, "comment": "é"}
    with tarfile.open(inside / "x.tar.gz", "w:gz", format=form, pax_headers=headers) as tar:
        for name in NAMES:
            for path in (f"{long}._{name}", f"{long}{name}"):
                info, content = member(path, name.encode() * 3000)
                info.pax_headers = headers
                info.mtime = 1.5
                tar.addfile(info, io.BytesIO(content))
    with (inside / "x.tar.gz").open("ab") as file:
        file.write(bytes(70_000))
    unpack(inside / "x.tar.gz", inside / "out", NAMES, max_bytes=100_000)
    assert seen(inside / "out") == [*NAMES]
    assert (inside / "out/b.bin").read_bytes() == b"b.bin" * 3000


def test_a_pax_path_counts_and_cannot_lead_out(inside):
    good = pax(record("path", "deep/a.bin")) + block("x", 2, content=b"12")
    rest = block("b.bin", 2, content=b"12")
    (inside / "x.tar.gz").write_bytes(gzip.compress(good + rest + END))
    unpack(inside / "x.tar.gz", inside / "out", NAMES, max_bytes=LIMIT)
    assert seen(inside / "out") == [*NAMES]
    bad = pax(record("path", "../a.bin")) + block("x", 2, content=b"12")
    (inside / "x.tar.gz").write_bytes(gzip.compress(bad + rest + END))
    with pytest.raises(DataError, match="leads out of the folder"):
        unpack(inside / "x.tar.gz", inside / "no", NAMES, max_bytes=LIMIT)


def test_as_many_members_as_allowed_are_read(inside):
    (inside / "x.tar.gz").write_bytes(gzip.compress(block("x") * (MAX_HEADERS - 3) + WHOLE + END))
    unpack(inside / "x.tar.gz", inside / "out", NAMES, max_bytes=400_000_000)
    assert seen(inside / "out") == [*NAMES]


KILLED = """
import os, signal, sys
from pathlib import Path
from gammabeta.data import archive

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

archive._publish = die
archive.unpack(Path(sys.argv[1]), Path(sys.argv[2]), ("a.bin", "b.bin"), max_bytes=10_000)
"""


def test_what_a_killed_process_unpacked_is_removed_at_the_next_start(inside):
    archive = write(inside / "x.tar.gz", *GOOD)
    command = [sys.executable, "-c", KILLED, str(archive), str(inside / "out")]
    assert subprocess.run(command, check=False).returncode == -9
    assert len(seen(inside)) == 4
    unpack(archive, inside / "out", NAMES, max_bytes=LIMIT)
    assert seen(inside) == ["out", "out/a.bin", "out/b.bin", "x.tar.gz"]


def test_a_missing_file_is_named(inside):
    archive = write(inside / "x.tar.gz", *GOOD[:-1])
    with pytest.raises(DataError, match=r"lacks b\.bin"):
        unpack(archive, inside / "out", NAMES, max_bytes=LIMIT)
    assert seen(inside) == ["x.tar.gz"]


def truncated(data):
    return data[: len(data) // 2]


def flipped_checksum(data):
    return data[:-8] + bytes([data[-8] ^ 1]) + data[-7:]


def broken_block(data):
    return gzip.compress(gzip.decompress(data)[:700])


def no_gzip(data):
    return gzip.decompress(data)


@pytest.mark.parametrize("damage", [truncated, flipped_checksum, broken_block, no_gzip, len])
def test_a_damaged_archive_leaves_nothing(inside, damage):
    archive = write(inside / "x.tar.gz", *GOOD)
    damaged = damage(archive.read_bytes())
    archive.write_bytes(damaged if isinstance(damaged, bytes) else b"")
    with pytest.raises(DataError, match=r"x\.tar\.gz: cannot be unpacked"):
        unpack(archive, inside / "out", NAMES, max_bytes=LIMIT)
    assert seen(inside) == ["x.tar.gz"]


def test_another_process_that_was_faster_wins(inside):
    archive = write(inside / "x.tar.gz", *GOOD)
    (inside / "out").mkdir()
    for name in NAMES:
        (inside / "out" / name).write_bytes(b"first")
    unpack(archive, inside / "out", NAMES, max_bytes=LIMIT)
    assert (inside / "out/a.bin").read_bytes() == b"first"
    assert seen(inside) == ["out", "out/a.bin", "out/b.bin", "x.tar.gz"]


def test_a_folder_with_other_content_is_not_replaced(inside):
    archive = write(inside / "x.tar.gz", *GOOD)
    (inside / "out").mkdir()
    (inside / "out/notes").write_bytes(b"mine")
    with pytest.raises(OSError, match="out"):
        unpack(archive, inside / "out", NAMES, max_bytes=LIMIT)
    assert seen(inside) == ["out", "out/notes", "x.tar.gz"]
