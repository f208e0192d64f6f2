"""Which loop is compiled: a value that Numba sees as a type, so that every choice is made once.

Functions that depend on a :class:`Variant` are ``overload`` functions: they pick their code by the
fields of its type while they are compiled, and cost nothing when they run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.imputils import lower_constant
from numba.extending import intrinsic, models, register_model, typeof_impl

from gammabeta.norm.kernels.native.vectors import F32, Lanes

MASKED = ("relu", "relu6", "leaky_relu")
"""Activations of which one byte tells all that a gradient needs."""
APART = ("identity", *MASKED)
"""Activations whose gradient does not need the residual."""


@dataclass(frozen=True)
class Variant:
    """What a compiled loop is for.

    Args:
        loop: Its name in ``loops.LOOPS``.
        dtype: "float32" or "bfloat16", of activations.
        activation: A name of ``Epilogue``'s, "gelu_tanh" or "identity".
        residual: Whether one is added before the activation.
        pool: 0, 2 or 3.
        constant: Whether the statistics do not depend on x, as in eval mode.
        width: Values in a vector.
        stamp: Of the sources, so that no compiled code outlives them in the cache.
    """

    loop: str
    dtype: str
    activation: str = "identity"
    residual: bool = False
    pool: int = 0
    constant: bool = False
    width: int = 16
    stamp: str = ""


class VariantType(types.Type):
    """The type of one variant, which holds nothing at run time."""

    def __init__(self, variant: Variant) -> None:
        super().__init__(name=repr(variant))
        self.variant = variant


@typeof_impl.register(Variant)
def _type_of(variant: Variant, context: Any) -> VariantType:
    return VariantType(variant)


register_model(VariantType)(models.OpaqueModel)


@lower_constant(VariantType)
def _lower(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    return context.get_dummy_value()


@intrinsic
def wide(typingctx: Any, v: Any) -> Any:
    """Return a vector of zeros of the variant's width, to be used as ``like``."""
    kind = Lanes(v.variant.width)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(ir.VectorType(F32, kind.width), [0.0] * kind.width)

    return kind(v), emit


def flag(read: Any) -> Any:
    """Return a compiled function that answers ``read(variant)`` with a constant."""

    @intrinsic
    def constant(typingctx: Any, v: Any) -> Any:
        value = int(read(v.variant))

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return ir.Constant(context.get_value_type(types.intp), value)

        return types.intp(v), emit

    return constant


has_residual = flag(lambda variant: variant.residual)
is_constant = flag(lambda variant: variant.constant)
pool_window = flag(lambda variant: variant.pool)
vector_width = flag(lambda variant: variant.width)
reads_residual = flag(lambda variant: variant.residual and variant.activation not in APART)
has_mask = flag(lambda variant: variant.residual and variant.activation in MASKED)
