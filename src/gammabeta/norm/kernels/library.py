"""Registers the fused kernels with torch: once in a process, not once in an import.

torch takes an operator a single time, and compiled models refer to it from then on. gammabeta may
be imported again in the same process (a notebook's autoreload, ``importlib.reload``, some test
runners). So what is registered looks its function up when it is called, in the module of then.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

_HOME = "gammabeta.norm.kernels.operator"
_OPTIONS = "float eps, str activation, float slope, int pool"
_SCHEMAS = {
    "batch_norm": "(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? mean, "
    f"Tensor? var, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "batch_norm_backward": "(Tensor dy, Tensor x, Tensor? weight, Tensor? residual, "
    f"Tensor saved, Tensor codes, {_OPTIONS}, "
    "bool added, bool constant, bool needs_x, bool needs_affine) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
}


def register() -> None:
    """Define the operators, unless an earlier import has."""
    kept = vars(torch.ops.gammabeta)
    if "library" in kept:
        return
    library = torch.library.Library("gammabeta", "DEF")
    for name, schema in _SCHEMAS.items():
        library.define(name + schema)
    for name, direction in (("batch_norm", "forward"), ("batch_norm_backward", "backward")):
        library.impl(name, _newest(f"_{direction}_operator"), "CPU")
        torch.library.register_fake(
            f"gammabeta::{name}", _newest(f"_{direction}_shapes"), lib=library
        )
    torch.library.register_autograd(
        "gammabeta::batch_norm",
        _newest("_backward_recorded"),
        setup_context=_newest("_save_recorded"),
        lib=library,
    )
    kept["library"] = library  # what it registers lasts as long as somebody refers to it


def _newest(name: str) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        return getattr(import_module(_HOME), name)(*args, **options)

    return call
