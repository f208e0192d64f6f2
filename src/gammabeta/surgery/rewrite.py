"""Giving a module a forward in which batch norms compute what follows them.

The module's class becomes a subclass of what it was, with one method: a ``forward`` that runs the
rewritten graph where everything is as it was when it was traced, and the original forward where it
is not: another mode, a changed attribute, a hook on an activation that would be skipped. Nothing
else changes. Children, names, parameters, hooks and the other methods are the module's own.

Such a class is written from its :class:`Plan`; so copies and pickles carry the plan.
"""

from __future__ import annotations

import functools
import inspect
import linecache
import math
import weakref
from collections.abc import Callable
from copyreg import __newobj__  # type: ignore[attr-defined]
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import _pytree as fx_pytree
from torch.fx._symbolic_trace import is_fx_symbolic_tracing
from torch.utils import _pytree as pytree

from gammabeta.norm.act import _has_hooks
from gammabeta.norm.activation import Epilogue
from gammabeta.norm.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d, _Layer

LAYERS = (BatchNorm1d, BatchNorm2d, BatchNorm3d)


@dataclass(frozen=True)
class Plan:
    """How a class is written.

    Args:
        source: Python text that defines ``forward(self, ...)``; ``original`` is the one before.
        names: What else the text refers to: (name, object) pairs.
    """

    source: str
    names: tuple[tuple[str, Any], ...]


def rewrite(module: nn.Module, plan: Plan) -> None:
    """Give a module the class that a plan describes, in place."""
    module.__class__ = _class(type(module), plan)


def restore(module: nn.Module) -> bool:
    """Give a module the class it had before :func:`rewrite`; tell whether there was another."""
    if not is_rewritten(module):
        return False
    module.__class__ = type(module).__bases__[0]
    return True


def is_rewritten(module: nn.Module) -> bool:
    """Tell whether a module's class is one that :func:`rewrite` made."""
    return "_gammabeta_plan" in vars(type(module))


def fused(
    layer: Any,
    x: Tensor,
    residual: Tensor | None = None,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    approximate: str = "none",
    pool: int | None = None,
) -> Tensor:
    """Call a batch norm and what follows it; in one call where the layer still allows it.

    A layer that was exchanged, or has hooks now, is called as it is. So is one whose sum would
    broadcast or change its dtype.

    Args:
        layer: The module at the batch norm's place.
        x: (N, C, *).
        residual: What is added; any shape that broadcasts.
        activation: As for ``gammabeta.batch_norm``, and so are the others.
        negative_slope: Of "leaky_relu".
        approximate: Of "gelu".
        pool: Window of the max pooling.

    Example:
        >>> x = torch.randn(4, 3, 8, 8)
        >>> fused(BatchNorm2d(3), x, torch.ones(1), activation="relu", pool=2).shape
        torch.Size([4, 3, 4, 4])
    """
    what = epilogue(activation, negative_slope, approximate, pool)
    if _one_call(layer, x, residual):
        y: Tensor = layer.forward_with(x, residual, what)
        return y
    y = layer(x)
    return what(y if residual is None else y + residual)


def _one_call(layer: nn.Module, x: Tensor, residual: Any) -> bool:
    ours = type(layer) in LAYERS or is_rewritten(layer)
    return ours and (residual is None or may_add(x, residual)) and not _has_hooks(layer)


def may_add(x: Tensor, residual: Any) -> bool:
    """Tell whether a sum with batch norm's output, which is like x, stays like x."""
    return isinstance(residual, Tensor) and residual.shape == x.shape and residual.dtype == x.dtype


def within(layer: Any, x: Tensor, activation: str | None = None, **settings: Any) -> Tensor:
    """Run a rewritten batch norm's own forward, with the activation that it holds."""
    y: Tensor = layer.forward_with(x, None, epilogue(activation, **settings))
    return y


def epilogue(
    activation: str | None = None,
    negative_slope: float = 0.01,
    approximate: str = "none",
    pool: int | None = None,
) -> Epilogue:
    """Return the epilogue of these settings, made once."""
    key = (activation, negative_slope, approximate, pool)
    known = _EPILOGUES.get(key)
    if known is None:
        known = _EPILOGUES[key] = Epilogue(*key)
    return known


_EPILOGUES: dict[tuple[Any, ...], Epilogue] = {}


def quiet(module: Any, kind: type, settings: tuple[tuple[str, Any], ...]) -> bool:
    """Tell whether a module may be skipped: of that class, set like that, and without hooks."""
    exact: bool = type(module) is kind
    if not exact or _has_hooks(module):
        return False
    for name, value in settings:  # noqa: SIM110 (Dynamo reads a loop with less effort)
        if getattr(module, name) != value:
            return False
    return True


def symbolic() -> bool:
    """Tell whether torch.fx is tracing; it is to see the original forward."""
    return not torch.compiler.is_compiling() and is_fx_symbolic_tracing()


_BASICS: dict[str, Any] = {
    "torch": torch,
    "inf": math.inf,
    "nan": math.nan,
    "NoneType": type(None),
    "device": torch.device,
    "fx_pytree": fx_pytree,
    "pytree": pytree,
    "Tensor": Tensor,
    "fused": fused,
    "within": within,
    "quiet": quiet,
    "symbolic": symbolic,
}
BASICS = frozenset(_BASICS)
"""Names that every plan's source knows."""

# Equal modules share a class: Dynamo compiles them once. A class nobody uses may go.
_CLASSES: weakref.WeakValueDictionary[Any, type] = weakref.WeakValueDictionary()


def _class(base: type[nn.Module], plan: Plan) -> type[nn.Module]:
    names = [(name, id(v) if callable(v) else repr(v)) for name, v in plan.names]
    key = (base, plan.source, *names)
    made = _CLASSES.get(key)
    if made is None:
        made = _CLASSES[key] = _make_class(base, plan)
    return made


def _make_class(base: type[nn.Module], plan: Plan) -> type[nn.Module]:
    original = base.forward
    defaults = {
        f"default_{p.name}": p.default for p in inspect.signature(original).parameters.values()
    }
    space = {**_BASICS, **dict(plan.names), **defaults, "original": original}
    file = f"<gammabeta's forward of {base.__qualname__} {next(_COUNT)}>"
    exec(compile(plan.source, file, "exec"), space)  # noqa: S102 (text that we wrote)
    linecache.cache[file] = (len(plan.source), None, plan.source.splitlines(True), file)
    body = {
        "forward": functools.wraps(original)(space["forward"]),
        "__reduce_ex__": _reduce,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "_gammabeta_plan": plan,
    }
    if issubclass(base, nn.BatchNorm2d):
        body |= {"forward_with": _Layer.forward_with, "_dims": BatchNorm2d._dims}
        body |= {"virtual_batch_size": None, "backend": "auto"}
    metaclass: Any = type(base)
    made: type[nn.Module] = metaclass(base.__name__, (base,), body)
    return made


_COUNT = iter(range(1 << 62))


def _reduce(self: nn.Module, protocol: Any) -> Any:
    """Pickle and copy the object by its former class and its plan."""
    kind: Any = type(self)
    base: Callable[..., Any] = kind.__bases__[0].__reduce_ex__
    reduced = base(self, protocol)
    if reduced[0] is __newobj__ and reduced[1] == (kind,):
        return (rebuild, (kind.__bases__[0], kind._gammabeta_plan), *reduced[2:])
    return reduced


def rebuild(base: type[nn.Module], plan: Plan) -> nn.Module:
    """Make an empty object of a rewritten class, for pickle to fill."""
    kind = _class(base, plan)
    return kind.__new__(kind)
