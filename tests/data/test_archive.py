"""Archives: the wanted files come out, and nothing that an attacker wrote does harm."""

from __future__ import annotations

import gzip
import io
import tarfile

import pytest

from gammabeta.data.archive import MARGIN, unpack
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
