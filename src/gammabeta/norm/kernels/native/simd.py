"""Arithmetic on vectors and on plain float32 alike: a loop body is written once for both.

It runs on whole vectors, and on single values where they do not fit.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from gammabeta.norm.kernels.native.vectors import (
    F32,
    I8,
    I32,
    Lanes,
    Vector,
    codes_like,
    constant,
    flags_like,
    typed,
)


def _call(builder: Any, name: str, *values: Any) -> Any:
    """Call an LLVM intrinsic that maps values of one type to that type."""
    kind = values[0].type
    suffix = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
    signature = ir.FunctionType(kind, [kind] * len(values))
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.{name}.{suffix}")
    return builder.call(function, values)


@intrinsic
def splat(typingctx: Any, value: Any, like: Any) -> Any:
    """Return a vector with the same float32 in every lane."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _spread(builder, arguments[0], typed(F32, like))

    return like(types.float32, like), emit


@intrinsic
def splat_code(typingctx: Any, code: Any, like: Any) -> Any:
    """Return a vector with the same uint8 in every lane."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _spread(builder, arguments[0], typed(I8, like))

    return codes_like(like)(types.uint8, like), emit


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
        if not isinstance(a, Vector):
            return arguments[0]
        kind = arguments[0].type
        name = f"llvm.vector.reduce.fadd.v{kind.count}f32"
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(F32, [F32, kind]), name
        )
        return builder.call(function, [constant(F32, 0.0), arguments[0]], fastmath=["reassoc"])

    return types.float32(a), emit


@intrinsic
def round_even(typingctx: Any, a: Any) -> Any:
    """Return the nearest integers as float32."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, "rint", *arguments)

    return a(a), emit


@intrinsic
def power_of_two(typingctx: Any, a: Any) -> Any:
    """Return 2ᵃ for integers within -126 and 127, given as float32."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = typed(I32, a)
        exponent = builder.add(builder.fptosi(arguments[0], wide), constant(wide, 127))
        return builder.bitcast(builder.shl(exponent, constant(wide, 23)), typed(F32, a))

    return a(a), emit


def _comparison(condition: str, *, ordered: bool = True) -> Any:
    @intrinsic
    def compare(typingctx: Any, a: Any, b: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            method = builder.fcmp_ordered if ordered else builder.fcmp_unordered
            return method(condition, *arguments)

        return flags_like(a)(a, a), emit

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

    return flags_like(a)(a, a), emit


@intrinsic
def is_code(typingctx: Any, codes: Any, code: Any) -> Any:
    """Tell where uint8 values equal one."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.icmp_unsigned("==", *arguments)

    return flags_like(codes)(codes, codes), emit


@intrinsic
def choose(typingctx: Any, flags: Any, a: Any, b: Any) -> Any:
    """Return a where the flag is set, else b."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments)

    return a(flags, a, a), emit
