"""Vectors of float32 as a Numba type, so that a loop says which instructions it becomes.

Numba leaves vectorising to LLVM, which gives up on loops with many arrays or 16-bit data. Here
``Lanes(n)`` is LLVM's own vector type, ``Flags(n)`` what comparing two gives, and ``Codes(n)`` a
byte for each lane. :mod:`memory` loads and stores them, :mod:`simd` computes.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import models, register_model

F32, I32, I16, I8 = ir.FloatType(), ir.IntType(32), ir.IntType(16), ir.IntType(8)


class Vector(types.Type):
    """``width`` elements of an LLVM type."""

    def __init__(self, kind: str, width: int, element: ir.Type) -> None:
        super().__init__(name=f"{kind}x{width}")
        self.width = width
        self.element = element


class Lanes(Vector):
    """``width`` values of float32."""

    def __init__(self, width: int) -> None:
        super().__init__("float32", width, F32)


class Codes(Vector):
    """``width`` values of uint8."""

    def __init__(self, width: int) -> None:
        super().__init__("uint8", width, I8)


class Flags(Vector):
    """``width`` truth values."""

    def __init__(self, width: int) -> None:
        super().__init__("bool", width, ir.IntType(1))


class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, ir.VectorType(vector.element, vector.width))


for _kind in (Lanes, Codes, Flags):
    register_model(_kind)(_Model)


def width_of(like: types.Type) -> int:
    """Return how many values a type holds."""
    return like.width if isinstance(like, Vector) else 1


def flags_like(like: types.Type) -> types.Type:
    """Return the type of truth values, as wide as ``like``."""
    return Flags(like.width) if isinstance(like, Vector) else types.boolean


def codes_like(like: types.Type) -> types.Type:
    """Return the type of bytes, as wide as ``like``."""
    return Codes(like.width) if isinstance(like, Vector) else types.uint8


def typed(element: ir.Type, like: types.Type) -> ir.Type:
    """Return the LLVM type of ``element``, as wide as ``like``."""
    return ir.VectorType(element, like.width) if isinstance(like, Vector) else element


def constant(kind: ir.Type, value: Any) -> ir.Constant:
    """Return a value in every lane."""
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [value] * kind.count)
    return ir.Constant(kind, value)
