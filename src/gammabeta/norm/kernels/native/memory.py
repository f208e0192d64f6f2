"""Loading and storing vectors and single values, float32 or bfloat16, with a check on demand.

``like`` is a value whose type says how many are meant. bfloat16 is stored as uint16, the upper half
of a float32: widening is a shift, and narrowing rounds to nearest even and keeps a NaN a NaN. With
``NUMBA_BOUNDSCHECK=1`` every access is checked.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from gammabeta.norm.kernels.native.vectors import (
    F32,
    I8,
    I16,
    I32,
    codes_like,
    constant,
    typed,
    width_of,
)

_CHECKED = bool(config.BOUNDSCHECK)


def _address(context: Any, builder: Any, kind: types.Array, place: Any, held: ir.Type) -> Any:
    """Return where (array, index) is in memory, as a pointer to ``held``."""
    found = context.make_array(kind)(context, builder, place[0])
    element = cgutils.get_item_pointer(context, builder, kind, found, [place[1]], wraparound=False)
    return builder.bitcast(element, held.as_pointer())


@intrinsic
def _load(typingctx: Any, array: Any, index: Any, like: Any) -> Any:
    narrow = array.dtype == types.uint16

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = typed(I16 if narrow else F32, like)
        place = _address(context, builder, array, arguments[:2], kind)
        loaded = builder.load(place, align=2 if narrow else 4)
        if not narrow:
            return loaded
        wide = typed(I32, like)
        bits = builder.shl(builder.zext(loaded, wide), constant(wide, 16))
        return builder.bitcast(bits, typed(F32, like))

    return like(array, types.intp, like), emit


@intrinsic
def _store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    narrow = array.dtype == types.uint16

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        held = _to_bf16(builder, arguments[2], value) if narrow else arguments[2]
        place = _address(context, builder, array, arguments[:2], held.type)
        builder.store(held, place, align=2 if narrow else 4)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), emit


def _to_bf16(builder: Any, value: Any, like: types.Type) -> Any:
    """Round to nearest even; a NaN becomes a quiet one, not an infinity by carry."""
    wide = typed(I32, like)
    bits = builder.bitcast(value, wide)
    odd = builder.and_(builder.lshr(bits, constant(wide, 16)), constant(wide, 1))
    rounded = builder.add(bits, builder.add(odd, constant(wide, 0x7FFF)))
    quiet = builder.or_(bits, constant(wide, 0x400000))
    kept = builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)
    return builder.trunc(builder.lshr(kept, constant(wide, 16)), typed(I16, like))


@intrinsic
def _load_codes(typingctx: Any, array: Any, index: Any, like: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _address(context, builder, array, arguments[:2], typed(I8, like))
        return builder.load(place, align=1)

    return codes_like(like)(array, types.intp, like), emit


@intrinsic
def _store_codes(typingctx: Any, array: Any, index: Any, codes: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _address(context, builder, array, arguments[:2], typed(I8, codes))
        builder.store(arguments[2], place, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, codes), emit


@intrinsic
def lanes_of(typingctx: Any, like: Any) -> Any:
    """Return how many values there are in one like this."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(context.get_value_type(types.intp), width_of(like))

    return types.intp(like), emit


@njit(inline="never")
def _refuse() -> None:
    raise IndexError("a kernel reached outside its memory")


@njit
def _check(array: Any, index: int, like: Any) -> None:
    if _CHECKED and (index < 0 or index + lanes_of(like) > array.size):
        _refuse()


@njit
def load(array: Any, index: int, like: Any) -> Any:
    """Return float32 or bfloat16 values from ``array[index:]``, as float32."""
    _check(array, index, like)
    return _load(array, index, like)


@njit
def store(array: Any, index: int, value: Any) -> None:
    """Write float32 values to a float32 or bfloat16 array."""
    _check(array, index, value)
    _store(array, index, value)


@njit
def load_codes(array: Any, index: int, like: Any) -> Any:
    """Return uint8 values."""
    _check(array, index, like)
    return _load_codes(array, index, like)


@njit
def store_codes(array: Any, index: int, codes: Any) -> None:
    """Write uint8 values."""
    _check(array, index, codes)
    _store_codes(array, index, codes)
