"""A reader of pickles that holds builtin data and uint8 arrays, and runs nothing they ask for.

A pickle names functions and calls them, so a plain load of a stranger's file runs the stranger's
code. Here the five names that an array's pickle needs stand for small recorders of our own, and
every other name is refused. NumPy's functions are not handed out either: a forged state for a
real ``dtype`` or ``ndarray`` can turn raw bytes into object pointers. What is recorded becomes an
array only after the whole file is read, from bytes whose number fits the shape. The file's opcodes
are read once beforehand, since a few bytes can make the memo take gigabytes or, by tuples in
tuples, overflow the stack.

Reads what Python 2 wrote (the official CIFAR-10 files) and what today's NumPy writes.
"""

from __future__ import annotations

import math
import os
import pickle
import pickletools
from typing import IO, TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from gammabeta.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_TUPLES = 20_000
"""Python 3 writes one for each bytes string in protocol 2, so 10,000 file names need as many; more
than 80,000 in each other overflow a stack of 8 MB."""

DAMAGE = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    BufferError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What ``pickle`` raises on malformed input, by its documentation and by trial."""


class _Recorded:
    """An array's shape, bytes and order as the pickle told them, not yet believed."""

    __slots__ = ("order", "raw", "shape")

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("an array state that is not NumPy's")
        _, shape, dtype, fortran, raw = state
        self.record(raw, dtype, shape, "F" if fortran else "C")

    def record(self, raw: object, dtype: object, shape: object, order: object) -> None:
        """Keep the four parts of an array."""
        if not isinstance(dtype, _Uint8) or order not in ("C", "F", b"C", b"F"):
            raise pickle.UnpicklingError("an array that is not plain uint8")
        self.raw, self.shape, self.order = raw, shape, order

    def array(self) -> npt.NDArray[np.uint8]:
        """Return the array, which shares the memory of the bytes that were read."""
        raw, shape = self.raw, self.shape
        if not isinstance(raw, bytes | bytearray) or not isinstance(shape, tuple):
            raise pickle.UnpicklingError("an array without bytes or shape")
        sizes_known = all(type(n) is int and n >= 0 for n in shape) and len(shape) <= 8
        if not sizes_known or math.prod(shape) != len(raw):
            raise pickle.UnpicklingError(f"an array with {len(raw)} bytes for another shape")
        order: Literal["C", "F"] = "F" if self.order in ("F", b"F") else "C"
        return np.frombuffer(raw, np.uint8).reshape(shape, order=order)


class _Uint8:
    """Stands for ``numpy.dtype("uint8")``, whose pickled state adds nothing."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class _Name:
    """Stands for a function or class that a pickle may name; its attributes can't be set."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[..., object]) -> None:
        self.call = call

    def __call__(self, *args: object) -> object:
        return self.call(*args)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("an attempt to change a function")


def _ndarray(*_: object) -> object:
    raise pickle.UnpicklingError("an array made outside NumPy's own format")


def _reconstruct(*_: object) -> _Recorded:
    return _Recorded()


def _frombuffer(raw: object, dtype: object, shape: object, order: object) -> _Recorded:
    recorded = _Recorded()
    recorded.record(raw, dtype, shape, order)
    return recorded


def _dtype(code: object, *_: object) -> _Uint8:
    if code not in ("u1", b"u1"):
        raise pickle.UnpicklingError(f"an array of dtype {code!r:.40}, expected uint8")
    return _Uint8()


def _encode(text: object, codec: object) -> bytes:
    """Undo what Python 3 does to bytes in protocol 2; other codecs could unpack bombs."""
    if not isinstance(text, str) or codec not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"bytes encoded as {codec!r:.40}")
    return text.encode("latin1")


_CORES = ("numpy.core", "numpy._core")
_ALLOWED: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy", "ndarray"): _ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
    **{(f"{core}.multiarray", "_reconstruct"): _reconstruct for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): _frombuffer for core in _CORES},
}


class _Reader(pickle.Unpickler):
    """Resolves the names in ``_ALLOWED`` to stand-ins and refuses the rest."""

    def find_class(self, module: str, name: str, /) -> object:
        """Return the stand-in for a name."""
        try:
            return _Name(_ALLOWED[module, name])
        except KeyError:
            raise pickle.UnpicklingError(f"the forbidden name {module}.{name}") from None

    def persistent_load(self, pid: object) -> object:
        """Refuse references to objects outside the file."""
        raise pickle.UnpicklingError(f"a reference to {pid!r:.40}, outside the file")


def _check_opcodes(file: IO[bytes]) -> None:
    size = os.fstat(file.fileno()).st_size
    nested = 0
    for opcode, argument, _ in pickletools.genops(file):
        nested += opcode.name.startswith(("TUPLE", "FROZENSET"))
        if nested > MAX_TUPLES or (opcode.name in ("PUT", "LONG_BINPUT") and argument > size):  # type: ignore[operator]
            raise pickle.UnpicklingError("more tuples or memory than its data needs")
    if file.read(1):
        raise pickle.UnpicklingError("bytes after its end")
    file.seek(0)


def load_arrays(path: Path) -> dict[object, object]:
    """Read a pickled dict of builtin data and uint8 arrays from an untrusted file.

    Args:
        path: A pickle of any protocol. Strings that Python 2 wrote come back as bytes.

    Returns:
        The dict; each of its values that was an array is one again, uint8 of any shape, possibly
        read-only.

    Raises:
        DataError: If the file is no complete pickle, holds anything else, or names any function
            or class besides those of an array. Nothing it names was called.
        OSError: If the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            _check_opcodes(file)
            content = _Reader(file, encoding="bytes").load()
        if not isinstance(content, dict):
            raise pickle.UnpicklingError(f"a {type(content).__name__}, expected a dict")
        return {k: v.array() if isinstance(v, _Recorded) else v for k, v in content.items()}
    except DAMAGE as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path}: not a pickle of plain data and uint8 arrays ({what}); "
            "delete it and get the official file again"
        ) from error
