"""Vectors of float32 as a Numba type, so that a loop says which instructions it becomes.

Numba leaves vectorising to LLVM, which gives up on loops with many arrays or 16-bit data. Here
``Lanes(n)`` is LLVM's own vector type, and every function takes vectors and plain float32 alike: a
loop body is written once, runs on whole vectors, and on single values where they do not fit.
``like`` is a value whose type says which of the two is meant.

bfloat16 is stored as uint16, the upper half of a float32: widening is a shift, and narrowing
rounds to nearest even and keeps a NaN a NaN.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

F32, I32, I16, I8 = ir.FloatType(), ir.IntType(32), ir.IntType(16), ir.IntType(8)
_CHECKED = bool(config.BOUNDSCHECK)


class _Vector(types.Type):
    def __init__(self, kind: str, width: int, element: ir.Type) -> None:
        super().__init__(name=f"{kind}x{width}")
        self.width = width
        self.element = element


class Lanes(_Vector):
    """``width`` values of float32."""

    def __init__(self, width: int) -> None:
        super().__init__("float32", width, F32)


class Codes(_Vector):
    """``width`` values of uint8."""

    def __init__(self, width: int) -> None:
        super().__init__("uint8", width, I8)


class Flags(_Vector):
    """``width`` truth values."""

    def __init__(self, width: int) -> None:
        super().__init__("bool", width, ir.IntType(1))


class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: _Vector) -> None:
        super().__init__(manager, vector, ir.VectorType(vector.element, vector.width))


for _kind in (Lanes, Codes, Flags):
    register_model(_kind)(_Model)


def _width(like: types.Type) -> int:
    return like.width if isinstance(like, _Vector) else 1


def _flags(like: types.Type) -> types.Type:
    return Flags(like.width) if isinstance(like, _Vector) else types.boolean


def _codes(like: types.Type) -> types.Type:
    return Codes(like.width) if isinstance(like, _Vector) else types.uint8


def _of(element: ir.Type, like: types.Type) -> ir.Type:
    """Return the LLVM type of ``element``, as wide as ``like``."""
    return ir.VectorType(element, like.width) if isinstance(like, _Vector) else element


def _constant(kind: ir.Type, value: Any) -> ir.Constant:
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [value] * kind.count)
    return ir.Constant(kind, value)


def _address(context: Any, builder: Any, kind: types.Array, place: Any, held: ir.Type) -> Any:
    """Return where (array, index) is in memory, as a pointer to ``held``."""
    found = context.make_array(kind)(context, builder, place[0])
    element = cgutils.get_item_pointer(context, builder, kind, found, [place[1]], wraparound=False)
    return builder.bitcast(element, held.as_pointer())


def _call(builder: Any, name: str, *values: Any) -> Any:
    """Call an LLVM intrinsic that maps values of one type to that type."""
    kind = values[0].type
    suffix = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
    signature = ir.FunctionType(kind, [kind] * len(values))
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.{name}.{suffix}")
    return builder.call(function, values)


@intrinsic
def _load(typingctx: Any, array: Any, index: Any, like: Any) -> Any:
    narrow = array.dtype == types.uint16

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = _of(I16 if narrow else F32, like)
        place = _address(context, builder, array, arguments[:2], kind)
        loaded = builder.load(place, align=2 if narrow else 4)
        if not narrow:
            return loaded
        wide = _of(I32, like)
        bits = builder.shl(builder.zext(loaded, wide), _constant(wide, 16))
        return builder.bitcast(bits, _of(F32, like))

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
    wide = _of(I32, like)
    bits = builder.bitcast(value, wide)
    odd = builder.and_(builder.lshr(bits, _constant(wide, 16)), _constant(wide, 1))
    rounded = builder.add(bits, builder.add(odd, _constant(wide, 0x7FFF)))
    quiet = builder.or_(bits, _constant(wide, 0x400000))
    kept = builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)
    return builder.trunc(builder.lshr(kept, _constant(wide, 16)), _of(I16, like))


@intrinsic
def _load_codes(typingctx: Any, array: Any, index: Any, like: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _address(context, builder, array, arguments[:2], _of(I8, like))
        return builder.load(place, align=1)

    return _codes(like)(array, types.intp, like), emit


@intrinsic
def _store_codes(typingctx: Any, array: Any, index: Any, codes: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _address(context, builder, array, arguments[:2], _of(I8, codes))
        builder.store(arguments[2], place, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, codes), emit


@intrinsic
def lanes_of(typingctx: Any, like: Any) -> Any:
    """Return how many values there are in one like this."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(context.get_value_type(types.intp), _width(like))

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


@intrinsic
def splat(typingctx: Any, value: Any, like: Any) -> Any:
    """Return a vector with the same float32 in every lane."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _spread(builder, arguments[0], _of(F32, like))

    return like(types.float32, like), emit


@intrinsic
def splat_code(typingctx: Any, code: Any, like: Any) -> Any:
    """Return a vector with the same uint8 in every lane."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _spread(builder, arguments[0], _of(I8, like))

    return _codes(like)(types.uint8, like), emit


def _spread(builder: Any, value: Any, kind: ir.Type) -> Any:
    if not isinstance(kind, ir.VectorType):
        return value
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
    nowhere = ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), nowhere)


def _arithmetic(symbol: Any, instruction: str) -> None:
    """Give vectors the operator of that symbol."""

    @intrinsic
    def apply(typingctx: Any, a: Any, b: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(*arguments)

        return a(a, a), emit

    @overload(symbol)
    def choose_vectors(a, b):  # type: ignore[no-untyped-def]  # Numba compares signatures
        if isinstance(a, Lanes) and a == b:
            return lambda a, b: apply(a, b)
        return None


for _symbol, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _arithmetic(_symbol, _instruction)


@intrinsic
def multiply_add(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a·b + c, in one instruction where there is one."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, "fmuladd", *arguments)

    return a(a, a, a), emit


@intrinsic
def total(typingctx: Any, a: Any) -> Any:
    """Return the sum of all lanes, added in a fixed order."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if not isinstance(a, _Vector):
            return arguments[0]
        kind = arguments[0].type
        name = f"llvm.vector.reduce.fadd.v{kind.count}f32"
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(F32, [F32, kind]), name
        )
        return builder.call(function, [_constant(F32, 0.0), arguments[0]], fastmath=["reassoc"])

    return types.float32(a), emit


@intrinsic
def round_even(typingctx: Any, a: Any) -> Any:
    """Return the nearest integers as float32."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, "rint", *arguments)

    return a(a), emit


@intrinsic
def absolute(typingctx: Any, a: Any) -> Any:
    """Return |a|."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, "fabs", *arguments)

    return a(a), emit


@intrinsic
def power_of_two(typingctx: Any, a: Any) -> Any:
    """Return 2ᵃ for integers within -126 and 127, given as float32."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = _of(I32, a)
        exponent = builder.add(builder.fptosi(arguments[0], wide), _constant(wide, 127))
        return builder.bitcast(builder.shl(exponent, _constant(wide, 23)), _of(F32, a))

    return a(a), emit


def _comparison(condition: str, *, ordered: bool = True) -> Any:
    @intrinsic
    def compare(typingctx: Any, a: Any, b: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            method = builder.fcmp_ordered if ordered else builder.fcmp_unordered
            return method(condition, *arguments)

        return _flags(a)(a, a), emit

    return compare


greater = _comparison(">")
at_least = _comparison(">=")
greater_or_nan = _comparison(">", ordered=False)


@intrinsic
def replaces(typingctx: Any, a: Any, b: Any) -> Any:
    """Tell where a is greater than b, or NaN: torch's rule of who wins a maximum."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        more = builder.fcmp_ordered(">", *arguments)
        return builder.or_(more, builder.fcmp_unordered("uno", arguments[0], arguments[0]))

    return _flags(a)(a, a), emit


@intrinsic
def is_code(typingctx: Any, codes: Any, code: Any) -> Any:
    """Tell where uint8 values equal one."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.icmp_unsigned("==", *arguments)

    return _flags(codes)(codes, codes), emit


@intrinsic
def choose(typingctx: Any, flags: Any, a: Any, b: Any) -> Any:
    """Return a where the flag is set, else b."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments)

    return a(flags, a, a), emit
