"""What a compiled loop is told: addresses and sizes, in one structure that C and Numba both read.

All threads of a launch share one task. Its first field is a counter from which each takes the next
block of work; which thread takes which block changes nothing in the result.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, from_dtype, njit, types
from numba.extending import intrinsic, overload

_SIZES = (
    *("next", "blocks", "block_rows", "rows", "width", "channels", "count"),
    *("size", "batch", "plane", "height", "image_width", "out_height", "out_width"),
    *("units", "unit_planes", "tile", "tiles"),
)
_ADDRESSES = (
    *("x", "residual", "y", "dy", "dx", "dresidual", "codes", "partial", "coefficients"),
    *("saved", "mean", "var", "weight", "bias", "dweight", "dbias"),
    *("running_mean", "running_var", "batches"),
)
_NUMBERS = ("eps", "slope", "momentum")


class Task(ctypes.Structure):
    """Sizes in elements, addresses in bytes (0 for what is absent), float64 numbers."""

    _fields_ = tuple(
        [(name, ctypes.c_int64) for name in (*_SIZES, *_ADDRESSES)]
        + [(name, ctypes.c_double) for name in _NUMBERS]
    )


_RECORD = from_dtype(
    np.dtype(
        [(name, np.int64) for name in (*_SIZES, *_ADDRESSES)]
        + [(name, np.float64) for name in _NUMBERS]
    )
)
POINTER = types.CPointer(_RECORD)


@intrinsic
def _pointer(typingctx: Any, address: Any, dtype: Any) -> Any:
    kind = types.CPointer(dtype.dtype)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(kind))

    return kind(types.int64, dtype), emit


@intrinsic
def _take(typingctx: Any, task: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        counter = builder.bitcast(arguments[0], word.as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(word, 1), "monotonic")

    return types.int64(task), emit


@njit
def take(task: Any) -> Any:
    """Return the number of the next block; ``task.blocks`` or more when none is left."""
    return _take(task)


@njit
def read(task: Any) -> Any:
    """Return the task's record."""
    return carray(task, (1,))[0]


@njit
def floats(address: Any, size: Any) -> Any:
    """Return an array of float32."""
    return carray(_pointer(address, types.float32), (size,))


@njit
def doubles(address: Any, size: Any) -> Any:
    """Return an array of float64."""
    return carray(_pointer(address, types.float64), (size,))


@njit
def words(address: Any, size: Any) -> Any:
    """Return an array of int64."""
    return carray(_pointer(address, types.int64), (size,))


@njit
def bytes_at(address: Any, size: Any) -> Any:
    """Return an array of uint8."""
    return carray(_pointer(address, types.uint8), (size,))


@njit
def _halves(address: Any, size: Any) -> Any:
    return carray(_pointer(address, types.uint16), (size,))


def elements(v: Any, address: Any, size: Any) -> Any:
    """Return an array of activations, of the variant's dtype. Compiled code only."""
    raise NotImplementedError


@overload(elements)
def _elements(v, address, size):  # type: ignore[no-untyped-def]  # Numba compares signatures
    if v.variant.dtype == "bfloat16":
        return lambda v, address, size: _halves(address, size)
    return lambda v, address, size: floats(address, size)
