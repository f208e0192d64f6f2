"""Making an existing model faster, in place, and without changing what it computes.

Calls of the model go through Dynamo, torch's own tracer, with gammabeta's backend: each captured
graph runs eagerly, with batch norms and what follows them fused, and convolutions channels last.
The model itself stays what it is: classes, modules, parameters and their layout, hooks, modes.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx._symbolic_trace import is_fx_symbolic_tracing
from torch.nn.modules import module as torch_module

from gammabeta.errors import GammabetaError
from gammabeta.norm.act import _BatchNormAct
from gammabeta.norm.kernels.tracing import watched
from gammabeta.surgery import check
from gammabeta.surgery.compiler import fuse
from gammabeta.surgery.report import Entry, Report
from gammabeta.surgery.survey import is_batch_norm

M = TypeVar("M", bound=nn.Module)

NOT_CALLED = "not seen in a captured forward yet"
RECOMPILE_LIMIT = 64
"""Graphs a model may have: one for each mode, dtype, and so on. Beyond it, forwards run as is."""


def accelerate(model: M, example_inputs: Tensor | tuple[Any, ...] | None = None) -> M:
    """Fuse batch norms with what follows them wherever the model is called.

    The first call in each mode is followed by Dynamo, which takes seconds for a deep model; the
    graph that it captures holds as long as Dynamo's guards do, and is captured anew after a change.
    While hooks or methods of the model's classes differ from those at hand now, the original
    forward runs. Classes, parameters, buffers and hooks are not touched, so an optimizer or a
    wrapper made before goes on. A copy of the model is not accelerated.
    ``convert(model, to="torch")`` goes back.

    Precision: outputs and gradients equal the original's up to rounding.

    Args:
        model: The model; of a ``DistributedDataParallel`` or ``DataParallel``, what it holds.
        example_inputs: What the model is called with: a tensor or a tuple. If given, the outputs in
            evaluation mode before and after are compared. The comparison leaves no trace.

    Returns:
        The model. ``model.gammabeta_report`` lists what was fused, and what was not and why; it
        grows as forwards are captured.

    Raises:
        GammabetaError: If it is no module, if the model fails on the example inputs, or if its
            outputs would change; the model is then as it was.

    Example:
        >>> model = accelerate(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU()))
        >>> _ = model(torch.randn(4, 2))
        >>> print(model.gammabeta_report)
        done  1: fused BN + relu
    """
    if not isinstance(model, nn.Module):
        raise GammabetaError(f"model is a {type(model).__name__}, but must be a torch.nn.Module")
    inner = _unwrapped(model)
    why_not = _why_not(inner)
    report = _Live([], [Entry(path, why_not or NOT_CALLED) for path in _batch_norms(inner)])
    expected = None if example_inputs is None else _outputs(model, example_inputs)
    restore(inner)
    if not report.left:
        report.left.append(Entry("", "the model holds no batch norm"))
    elif not why_not:
        inner._compiled_call_impl = _Accelerated(inner, report)
    if expected is not None:
        _compare(model, inner, example_inputs, expected)
    model.gammabeta_report = inner.gammabeta_report = report  # type: ignore[assignment]
    return model


def restore(module: nn.Module) -> bool:
    """Undo :func:`accelerate` on a module; tell whether there was anything to undo."""
    accelerated = isinstance(module._compiled_call_impl, _Accelerated)
    if accelerated:
        module._compiled_call_impl = None
    return accelerated


class _Accelerated:
    """What an accelerated model's ``__call__`` runs, in the place that ``nn.Module.compile`` uses.

    Args:
        model: The model.
        report: Is told what is fused.
    """

    def __init__(self, model: nn.Module, report: Report) -> None:
        self._model = model
        self._at_hand = _code(model)

        def backend(graph: torch.fx.GraphModule, _: list[Any]) -> Any:
            fuse(graph, {str(id(module)): path for path, module in model.named_modules()})
            report.merge(graph.gammabeta_report)  # type: ignore[arg-type]
            return graph.forward

        compile_: Any = torch.compile  # whose annotations lack the last two options
        self._compiled = compile_(
            model._call_impl,
            backend=backend,
            isolate_recompiles=True,
            recompile_limit=RECOMPILE_LIMIT,
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the captured forward, or the original one where somebody else is recording."""
        model = self._model
        if torch.compiler.is_compiling() or _is_recorded() or _code(model) != self._at_hand:
            return model._call_impl(*args, **kwargs)
        with torch._dynamo.config.patch(suppress_errors=True):  # what Dynamo cannot, Python can
            return self._compiled(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let a class with a ``__getstate__`` of its own be copied: the copy accelerates anew."""
        return _Accelerated, (self._model, Report())


class _Live(Report):
    """The report of an accelerated model, to which captured forwards add."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Say of a copied model what holds for it."""
        return Report, ([], [Entry("", "a copy is not accelerated: call accelerate on it")])


def _is_recorded() -> bool:
    """Tell whether an exporter, a transform or a tracer is to see the original operators."""
    return watched() or is_fx_symbolic_tracing()


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = [
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
]
_FUNCTIONS = {FunctionType, staticmethod, classmethod, property}


def _code(model: nn.Module) -> tuple[list[int], list[Any]]:
    """Return what a forward runs that Dynamo does not guard: hooks, and its classes' functions.

    Handles of hooks are numbers that are never used again.
    """
    hooks = [handle for known in _GLOBAL_HOOKS for handle in known]
    kinds: dict[type, None] = {}
    for module in _modules(model):
        kinds[type(module)] = None
        own = module.__dict__
        for name in _HOOKS:
            hooks.extend(own[name])
    return hooks, [v for kind in kinds for v in _functions(kind)]


def _modules(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a model's modules, faster than ``modules()`` and in any order."""
    stack, seen = [model], {model}
    while stack:
        module = stack.pop()
        yield module
        for child in module._modules.values():
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)


def _functions(kind: type) -> Iterator[Any]:
    for base in kind.__mro__:
        if base is not nn.Module:
            for value in vars(base).values():
                if type(value) in _FUNCTIONS:
                    yield value


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the model that a wrapper for several processes or devices calls."""
    wrappers = nn.parallel.DistributedDataParallel, nn.DataParallel
    while isinstance(model, wrappers) and not _copies_in_each_call(model):
        model = model.module
    return model


def _copies_in_each_call(model: nn.Module) -> bool:
    """Tell whether a wrapper calls copies of its model, one on each device."""
    return isinstance(model, nn.DataParallel) and bool(model.device_ids)


def _batch_norms(model: nn.Module) -> Iterator[str]:
    """Yield the paths of what Dynamo will call as a batch norm, with or without an activation."""
    inside = {id(m.bn) for m in model.modules() if isinstance(m, _BatchNormAct)}
    for path, module in model.named_modules():
        if isinstance(module, _BatchNormAct) or (
            is_batch_norm(module) and id(module) not in inside
        ):
            yield path


def _why_not(model: nn.Module) -> str | None:
    """Return why a model is left as it is, or None."""
    if any(map(nn.parameter.is_lazy, (*model.parameters(), *model.buffers()))):
        return "the model is lazy: run it once, then accelerate it"
    if isinstance(model, torch.jit.ScriptModule):
        return "the model is a ScriptModule, with code of its own"
    if _copies_in_each_call(model):
        return "DataParallel copies the model in each call: use DistributedDataParallel"
    compiled = model._compiled_call_impl
    if compiled is not None and not isinstance(compiled, _Accelerated):
        return 'the model is compiled: use torch.compile(model, backend="gammabeta") instead'
    return None


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    try:
        return check.outputs(model, inputs)
    except GammabetaError:
        raise
    except Exception as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise GammabetaError(
            f"the model fails on example_inputs (a tensor, or a tuple of all arguments): {first}"
        ) from error


def _compare(model: nn.Module, inner: nn.Module, inputs: Any, expected: list[Tensor]) -> None:
    """Raise, and undo, if an accelerated model does not return what is expected."""
    try:
        wrong = check.difference(expected, check.outputs(model, inputs))
    except Exception as error:  # noqa: BLE001 (any code of the user's runs here)
        wrong = f"it fails with: {error}"
    if wrong:
        restore(inner)
        raise GammabetaError(
            f"accelerate would change what the model returns ({wrong}), so it was left as it was"
        )
