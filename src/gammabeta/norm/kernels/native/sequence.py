"""Runs several loops one after the other, in a single call from Python.

A call from Python costs as much as a loop over a small tensor, so the passes of a forward or of a
backward are handed over together, as a list of machine words: how many there are, OpenMP's entry
point, and for each the addresses of its code and of its task, and the threads it is worth.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from gammabeta.norm.kernels.native.task import words

HEAD, STEP = 2, 3
"""Words before the first step, and words of a step."""


@njit
def conduct(v: Any, task: Any) -> None:
    """Run the steps; what is called a task here is the list of words."""
    head = carray(_as_words(task), (HEAD,))
    steps = carray(_as_words(task), (HEAD + STEP * head[0],))
    for i in range(head[0]):
        function, its, threads = steps[HEAD + STEP * i : HEAD + STEP * (i + 1)]
        words(its, 1)[0] = 0  # the number of the next block
        if threads > 1:
            _call_in_parallel(head[1], function, its, threads)
        else:
            _call(function, its)


@intrinsic
def _as_words(typingctx: Any, task: Any) -> Any:
    kind = types.CPointer(types.int64)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(kind))

    return kind(task), emit


_BYTES, _WORD, _INT = ir.IntType(8).as_pointer(), ir.IntType(64), ir.IntType(32)


@intrinsic
def _call(typingctx: Any, function: Any, its: Any) -> Any:
    """Call ``void function(void *its)``."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_BYTES]).as_pointer()
        code, task = arguments
        builder.call(builder.inttoptr(code, kind), [builder.inttoptr(task, _BYTES)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic
def _call_in_parallel(typingctx: Any, entry: Any, function: Any, its: Any, threads: Any) -> Any:
    """Call ``void entry(void *function, void *its, unsigned threads, unsigned flags)``."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_BYTES, _BYTES, _INT, _INT]).as_pointer()
        entry, code, task, threads = arguments
        builder.call(
            builder.inttoptr(entry, kind),
            [
                builder.inttoptr(code, _BYTES),
                builder.inttoptr(task, _BYTES),
                builder.trunc(threads, _INT),
                ir.Constant(_INT, 0),
            ],
        )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), emit
