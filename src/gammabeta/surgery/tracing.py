"""Tracing a module's forward, its children as leaves, and noting what it went by.

``torch.fx`` runs a forward once with stand-ins for tensors. What Python decided on the way is then
fixed: ``if self.training``, ``if self.drop_rate > 0``, an argument left at its default. So every
attribute that was looked at is noted, and the trace counts only where they are as they were. A
forward whose decisions cannot be noted (it draws random numbers, changes the module, switches
gradients off for a part) is refused.
"""

from __future__ import annotations

import inspect
import operator
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node, Proxy, Tracer

from gammabeta.surgery.watching import Asked, UntraceableError, untouched, watched


@dataclass
class Trace:
    """A forward as a graph.

    Args:
        graph: Its placeholders are the arguments that were not fixed.
        fixed: Arguments that had their defaults, by name.
        kinds: Arguments whose type was asked for, by name, and the type they had.
        asked: The attributes that decided.
    """

    graph: Graph
    fixed: dict[str, Any]
    kinds: dict[str, type]
    asked: Asked


def trace(
    module: nn.Module,
    given: frozenset[str] = frozenset(),
    kind: type = Tensor,
    leaf: Callable[[nn.Module], bool] = lambda _: True,
) -> Trace:
    """Trace a module's own forward, and those of the modules below it that are no leaves.

    Args:
        module: Left exactly as it is.
        given: Arguments with defaults that are tensors now; the others keep their defaults.
        kind: What an argument without a default says it is, if the forward asks: Tensor or list.
        leaf: Tells whether a module below is one node of the graph; by default every one is.

    Raises:
        UntraceableError: If there is no graph that stands for the forward.

    Example:
        >>> [node.name for node in trace(nn.Sequential(nn.Linear(2, 3), nn.ReLU())).graph.nodes]
        ['input_1', '_0', '_1', 'output']
    """
    traces = []
    for grad in (True, False):
        with torch.set_grad_enabled(grad), untouched(module):
            tracer = _Tracer(given, kind, leaf)
            try:
                graph = tracer.trace(module)
            except UntraceableError:
                raise
            except Exception as error:  # any code of the user's runs here
                raise UntraceableError(f"fx stops at: {_first_line(error)}") from error
            traces.append(Trace(graph, tracer.fixed, tracer.kinds, tracer.asked))
    if str(traces[0].graph) != str(traces[1].graph):
        raise UntraceableError("it does something else when gradients are off")
    if any("_tensor_constant" in str(node.target) for node in graph.nodes):
        raise UntraceableError("it makes tensors of its own")
    return traces[0]


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


class _Tracer(Tracer):
    proxy_buffer_attributes = True  # a buffer's value must not be computed with while tracing

    def __init__(
        self, given: frozenset[str], kind: type, leaf: Callable[[nn.Module], bool]
    ) -> None:
        super().__init__()
        self.given = given
        self.kind = kind
        self.leaf = leaf
        self.fixed: dict[str, Any] = {}
        self.kinds: dict[str, type] = {}
        self.asked: Asked = {}
        self.mode = _mode()
        self.thread = threading.get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return self.leaf(m)

    # While it traces, fx answers for the modules of every thread; those of others run as they are.

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: Node) -> Proxy:
        return _StandIn(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        if _mode() != self.mode:
            raise UntraceableError("it switches gradients, autocast or checkpointing for a part")
        return super().create_node(*args, **kwargs)

    def create_args_for_root(
        self,
        root_fn: Callable[..., Any],
        is_module: bool,  # noqa: ARG002
        concrete_args: Any = None,  # noqa: ARG002
    ) -> tuple[Callable[..., Any], list[Any]]:
        positional: list[Any] = [self.root]
        named: dict[str, Any] = {}
        for parameter in list(inspect.signature(root_fn).parameters.values())[1:]:
            if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
                continue
            value = self._argument(parameter)
            if parameter.kind is parameter.KEYWORD_ONLY:
                named[parameter.name] = value
            else:
                positional.append(value)

        def run(*_: Any) -> Any:
            with watched(positional[0], self.asked):
                return root_fn(*positional, **named)

        return run, []

    def _argument(self, parameter: inspect.Parameter) -> Any:
        if parameter.default is not parameter.empty and parameter.name not in self.given:
            self.fixed[parameter.name] = parameter.default
            return parameter.default
        if parameter.name in self.given:
            self.kinds[parameter.name] = Tensor  # it is surely not None, whoever asks
        return self.create_proxy("placeholder", parameter.name, (), {})

    def type_of(self, node: Node) -> type:
        """Answer a forward that asks for the type of a value."""
        if node.op != "placeholder":
            raise UntraceableError("it asks for the type of an intermediate value")
        return self.kinds.setdefault(str(node.target), self.kind)


class _StandIn(Proxy):
    """A stand-in that says what it stands for: ``isinstance(x, Tensor)`` asks ``__class__``."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        asking = sys._getframe(1).f_globals.get("__name__", "")
        if asking.split(".")[0] == "torch" and asking != "torch":
            return _StandIn
        return cast("_Tracer", self.tracer).type_of(self.node)


def _in_place(function: Callable[[Any, Any], Any]) -> Callable[[Proxy, Any], Proxy]:
    """Record ``x += y`` as what it is; fx takes it for ``x = x + y``, which writes nothing."""

    def method(self: Proxy, other: Any) -> Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior"):
    setattr(_StandIn, f"__{_name}__", _in_place(getattr(operator, _name)))


def _mode() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch._C._autograd._top_saved_tensors_default_hooks(True),  # checkpointing has such
        *((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")),
    )
