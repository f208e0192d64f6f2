"""Shared by the tests of the compiled CPU kernels: memory layouts, inputs, tolerances."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gammabeta import batch_norm
from norm_helpers import data, randn

F32, BF16 = torch.float32, torch.bfloat16
# A rounding to bfloat16 is 2^-9 of a value, and the cotangents are rounded too.
TOLERANCES = {F32: {"rtol": 1e-5, "atol": 3e-6}, BF16: {"rtol": 2**-8, "atol": 2**-7}}
LAYOUTS = pytest.mark.parametrize("layout", ["planes", "rows"])
DTYPES = pytest.mark.parametrize("dtype", [F32, BF16], ids=["float32", "bfloat16"])
MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def laid(x: Tensor, layout: str) -> Tensor:
    """Return x with its channels together in memory ("rows"), or contiguous ("planes")."""
    if layout == "planes":
        return x.contiguous()
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def fused(layout: str, **options: Any) -> Callable[..., Tensor]:
    """The kernels, as a function of leaves; it gives x and the residual their memory.

    With ``stats`` it normalises by them, else by the batch's own.
    """
    stats = options.pop("stats", None)
    mean, var = (None, None) if stats is None else stats

    def run(
        x: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        added = None if residual is None else laid(residual, layout)
        given = {"residual": added, "backend": "numba", **options}
        return batch_norm(laid(x, layout), mean, var, weight, bias, stats is None, **given)

    return run


def inputs_of(
    shape: tuple[int, ...],
    dtype: torch.dtype = F32,
    *,
    residual: bool = False,
    vectors: torch.dtype = F32,
) -> dict[str, Tensor]:
    """x of that dtype, γ and β of ``vectors``, and a residual if asked for."""
    inputs = data(shape, dtype)
    inputs.update({name: inputs[name].to(vectors) for name in ("weight", "bias")})
    if residual:
        inputs["residual"] = randn(*shape, seed=5, dtype=dtype)
    return inputs


def python(
    code: str, *args: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh process, in which this gammabeta and the tests' helpers import."""
    path = [str(Path(__file__).parent), *sys.path]
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in path if p), **(env or {})},
    )
