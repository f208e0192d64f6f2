"""A gzip stream that costs no more than announced: bytes, streams in a row and time are bounded."""

from __future__ import annotations

import time
import zlib
from typing import IO

CHUNK = 1 << 20
PACKED_CHUNK = 1 << 16
"""Bytes at most that one step unpacks to, and that it starts from."""
MAX_STREAMS = 100
"""A gzip file may be several in a row; millions of empty ones take minutes to say nothing."""
MAX_SECONDS = 600.0


class UnpackError(Exception):
    """The archive is damaged or asks for more than it may."""


class Gunzip:
    """Reads what a gzip file unpacks to, once from front to back.

    Args:
        file: The gzip file, open for reading bytes.
        max_bytes: How much it may unpack to.
        max_seconds: How long all reading may take.
    """

    def __init__(self, file: IO[bytes], max_bytes: int, max_seconds: float = MAX_SECONDS) -> None:
        self.file, self.left, self.max_bytes = file, max_bytes, max_bytes
        self.deadline = time.monotonic() + max_seconds
        self.streams = 1
        self.decoder = self._decoder()
        self.packed = b""

    def read(self, size: int) -> bytes:
        """Read exactly ``size`` bytes, less only at the end.

        Raises:
            UnpackError: If the file is damaged, cut short, or goes beyond a bound.
        """
        parts: list[bytes] = []
        while size and (part := self._some(size)):
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _some(self, size: int) -> bytes:
        """Return at least one byte, or none at the end of the file."""
        while True:
            if time.monotonic() > self.deadline:
                raise UnpackError("unpacking takes too long")
            if self.decoder.eof and not self._next_stream():
                return b""
            if not self.packed:
                self.packed = self.file.read(PACKED_CHUNK)
                if not self.packed:
                    raise UnpackError("it is cut short")
            try:
                part = self.decoder.decompress(self.packed, min(size, CHUNK))
            except zlib.error as error:
                raise UnpackError(f"its compression is damaged: {error}") from None
            self.packed = self.decoder.unconsumed_tail or self.decoder.unused_data
            self.left -= len(part)
            if self.left < 0:
                raise UnpackError(f"it unpacks to more than {self.max_bytes} bytes")
            if part:
                return part

    def _next_stream(self) -> bool:
        """Begin the gzip stream that follows; False if there is none."""
        self.packed = self.packed.lstrip(b"\0")  # padding is allowed
        while not self.packed:
            if not (more := self.file.read(PACKED_CHUNK)):
                return False
            self.packed = more.lstrip(b"\0")
        self.streams += 1
        if self.streams > MAX_STREAMS:
            raise UnpackError(f"it is more than {MAX_STREAMS} gzip files in a row")
        self.decoder = self._decoder()
        return True

    @staticmethod
    def _decoder() -> zlib._Decompress:
        return zlib.decompressobj(wbits=31)  # gzip, with its checksum and length verified
