"""Downloading one known file over HTTP: resumed where it broke off, checked, whole or absent.

Bytes gather in ``NAME.part`` beside the place of the finished file, and stay there when a transfer
breaks, for this call's next try or for another call. Size and MD5 are known beforehand, so no
``If-Range`` is sent: a server that changed its file could not pass the checksum in any case. One
process at a time downloads into a folder; others wait and find the file there.
"""

from __future__ import annotations

import errno
import hashlib
import os
import ssl
import stat
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from typing import IO, TYPE_CHECKING, cast
from urllib.error import HTTPError
from urllib.request import Request, build_opener

from gammabeta.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from http.client import HTTPResponse
    from pathlib import Path

    from gammabeta.data.dataset import Progress

CHUNK = 1 << 16
BROKEN = (ConnectionError, TimeoutError, HTTPException, ssl.SSLError)
"""Errors of a transfer that another try may mend."""


@dataclass(frozen=True)
class Remote:
    """A file on a web server, and how to know that it arrived.

    Args:
        url: Its address, http or https; the last part is the file's name.
        md5: Its MD5 in lower-case hexadecimal digits.
        size: Its length in bytes.
    """

    url: str
    md5: str
    size: int

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[-1]


def fetch(
    remote: Remote,
    folder: Path,
    *,
    progress: Progress | None = None,
    timeout: float = 30.0,
    retries: int = 4,
    pause: float = 1.0,
) -> Path:
    """Download a file into a folder, or return the one that is there.

    Args:
        remote: What to download.
        folder: Where to; made if absent.
        progress: Called with a text, the bytes that are here, and the bytes in all.
        timeout: Seconds that the server may stay silent.
        retries: How often to resume after the connection broke, in this call.
        pause: Seconds to wait before each retry.

    Returns:
        The path of the file, ``folder / remote.name``.

    Raises:
        DataError: If the server answers with an error status or another file, or the connection
            broke more than ``retries`` times, or what lies in the place of ``NAME.part`` is a link
            or no plain file. The message tells whether calling again resumes.
        urllib.error.URLError: If the server cannot be reached.
        OSError: If the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / remote.name
    report = progress or (lambda *_: None)
    with _alone_in(folder, lambda: report("waiting for another download", 0, remote.size)):
        if not path.exists():
            part = path.with_name(f"{path.name}.part")
            with _open_part(part) as file:
                _receive_all(remote, file, report, timeout=timeout, retries=retries, pause=pause)
                file.flush()
                os.fsync(file.fileno())
                _verify(file, part, remote)
            part.replace(path)
    return path


@contextmanager
def _alone_in(folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Lock the folder itself: unlike a lock file, it needs no cleaning up."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # network folders may have no locks; the checksum still guards
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _open_part(part: Path) -> IO[bytes]:
    """Open the file in which bytes gather; never a link, which may lead anywhere, nor a pipe."""
    refusal = DataError(
        f"{part}: is a link or no plain file, and is not written through; remove it and call again"
    )
    if part.is_symlink():
        raise refusal
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
    flags |= sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
    try:
        descriptor = os.open(part, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise refusal from None
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise refusal
    return os.fdopen(descriptor, "a+b")


def _receive_all(
    remote: Remote,
    file: IO[bytes],
    report: Progress,
    *,
    timeout: float,
    retries: int,
    pause: float,
) -> None:
    for left in range(retries, -1, -1):
        try:
            _receive(remote, file, report, timeout)
            break
        except BROKEN as error:
            if not left:
                here = file.seek(0, os.SEEK_END)
                raise DataError(
                    f"{remote.url}: the transfer broke {retries + 1} times, last by: {error}; "
                    f"{here} of {remote.size} bytes are kept in {remote.name}.part, call again to "
                    "resume"
                ) from error
            time.sleep(pause)


def _receive(remote: Remote, file: IO[bytes], report: Progress, timeout: float) -> None:
    """Append what is missing; raise one of ``BROKEN`` if the server stops before the end."""
    here = file.seek(0, os.SEEK_END)
    if here > remote.size:
        here = file.truncate(0)
    if here == remote.size:
        return
    with _open(remote, file, here, timeout) as response:
        if response.status != HTTPStatus.PARTIAL_CONTENT:
            here = file.truncate(0)
        _check_length(remote, response, here)
        while here < remote.size:
            report(f"downloading {remote.name}", here, remote.size)
            chunk = response.read1(min(CHUNK, remote.size - here))
            if not chunk:
                raise ConnectionError("the server closed the connection early")
            here += file.write(chunk)
    report(f"downloading {remote.name}", here, remote.size)


def _open(remote: Remote, file: IO[bytes], start: int, timeout: float) -> HTTPResponse:
    headers = {"Range": f"bytes={start}-"} if start else {}
    opener = build_opener()  # urlopen's own remembers the proxies of its first call for ever
    request = Request(remote.url, headers=headers)  # noqa: S310 (the program's own address)
    try:
        return cast("HTTPResponse", opener.open(request, timeout=timeout))
    except HTTPError as error:
        error.close()
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            file.truncate(0)
            raise ConnectionError("the server refused to resume") from None
        raise DataError(
            f"{remote.url}: the server answered {error.code} {error.reason}; "
            f"try later, or put {remote.name} in its place by hand"
        ) from None


def _check_length(remote: Remote, response: HTTPResponse, here: int) -> None:
    if response.length is not None and here + response.length != remote.size:
        raise DataError(
            f"{remote.url}: the server announced {here + response.length} bytes instead of "
            f"{remote.size}; open the address in a browser: a proxy or login page may answer"
        )


def _verify(file: IO[bytes], part: Path, remote: Remote) -> None:
    found = md5_of(file)
    if found != remote.md5:
        part.unlink()
        raise DataError(
            f"{remote.url}: the download has MD5 {found} instead of {remote.md5} and was deleted; "
            "call again to download anew"
        )


def md5_of(file: IO[bytes]) -> str:
    """Return the MD5 of a whole file, as publishers of data sets write it."""
    file.seek(0)
    digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))  # type: ignore[arg-type]
    return digest.hexdigest()
