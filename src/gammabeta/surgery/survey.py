"""What can be fused in a model, found without changing it.

Every module that owns batch norms is looked at for itself: its own forward is traced, with its
children as leaves. One that cannot be traced costs only its own chains.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _LazyNormBase, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrize import is_parametrized

from gammabeta.norm.act import _BatchNormAct, _has_hooks
from gammabeta.surgery.links import read_module
from gammabeta.surgery.match import Chain, find_chains
from gammabeta.surgery.plan import Writer
from gammabeta.surgery.reader import Norm, Reader
from gammabeta.surgery.rewrite import LAYERS, Plan
from gammabeta.surgery.tracing import Trace, trace
from gammabeta.surgery.watching import UntraceableError

_PLAIN = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, *LAYERS}


class Survey:
    """The plans for a model's modules, and what was found of each batch norm.

    Attributes:
        plans: The modules that can be rewritten, each with its plan.
        untraceable: (path, reason) of the modules whose forward cannot be taken as a graph.
    """

    def __init__(self, model: nn.Module) -> None:
        self.plans: list[tuple[nn.Module, Plan]] = []
        self.untraceable: dict[str, str] = {}
        self.norms = {path: m for path, m in model.named_modules() if is_batch_norm(m)}
        self._done: dict[int, str] = {}
        self._stops: dict[int, str] = {}
        for norm in self.norms.values():
            if is_timm_norm(norm):
                self._take_timm(norm)
        for path, module in owners(model):
            self._take(path, module)

    def outcome(self, path: str) -> tuple[bool, str]:
        """Tell whether the batch norm at a path is fused, and with what or why not."""
        norm = self.norms[path]
        if id(norm) in self._done:
            return True, self._done[id(norm)]
        why = why_not(norm) or self._stops.get(id(norm)) or self._owners_reason(path)
        return False, why or ("no traced forward calls it" if path else "it is the whole model")

    def is_plain(self, path: str) -> bool:
        """Tell whether the batch norm at a path can take gammabeta's class."""
        return type(self.norms[path]) in _PLAIN

    @property
    def hopeless(self) -> bool:
        """Whether there is no batch norm, or none whose calling forward could be traced."""
        seen = self._done or self._stops or not self.untraceable
        return not self.norms or not seen

    def _owners_reason(self, path: str) -> str | None:
        while path:
            path = path.rpartition(".")[0]
            if path in self.untraceable:
                return self.untraceable[path]
        return None

    def _take(self, path: str, module: nn.Module) -> None:
        if isinstance(module, _BatchNormAct):
            self._stops[id(module.bn)] = f"is inside a {type(module).__name__} already"
            return
        try:
            plan = self._plan(module)
        except UntraceableError as error:
            name = type(module).__name__
            self.untraceable[path] = f"{name}'s forward cannot be traced: {error}"
        else:
            if plan is not None:
                self.plans.append((module, plan))

    def _plan(self, module: nn.Module) -> Plan | None:
        writer, reader = Writer(module), ModuleReader(module)
        for found in _variants(module):
            chains = find_chains(found.graph, reader)
            self._note(chains, reader)
            chains = [chain for chain in chains if chain.links]
            if chains:
                writer.add(found, chains, reader)
        return writer.plan() if writer.variants else None

    def _note(self, chains: list[Chain], reader: Reader) -> None:
        for chain in chains:
            norm = reader.modules[str(chain.node.target)]
            if chain.links:
                self._done[id(norm)] = f"fused {chain.describe()}{_source(chain, reader)}"
            else:
                self._stops[id(norm)] = chain.stop

    def _take_timm(self, norm: Any) -> None:
        step = read_module(norm.act)
        if why_not(norm) or step is None or step.kind != "activation":
            return
        writer = Writer(norm)
        tests = [writer.quiet(name, child) for name, child in norm.named_children()]
        settings = "".join(f", {k}={writer.constant(v)}" for k, v in step.settings.items())
        writer.branch(tests, f"within(self, x{settings})")
        self.plans.append((norm, writer.plan()))
        self._done[id(norm)] = f"fused BN + {step.settings['activation']} (timm's BatchNormAct2d)"


class ModuleReader(Reader):
    """Reads the graph of one module's own forward, in which batch norms are called as modules."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__(dict(root.named_modules()))

    def norm(self, node: Node) -> Norm | None:
        """Return what the batch norm called by a node is, or None."""
        module = self.module(node)
        called = len(node.args) == 1 and not node.kwargs and isinstance(node.args[0], Node)
        if module is None or not called or not is_batch_norm(module) or why_not(module):
            return None
        if is_timm_norm(module) and not isinstance(module.act, nn.Identity):
            return None
        return Norm(node.args[0], pools=isinstance(module, nn.BatchNorm2d))  # type: ignore[arg-type]


def is_batch_norm(module: nn.Module) -> bool:
    """Tell whether a module is a batch norm of whatever class."""
    return isinstance(module, _NormBase) and not isinstance(module, _InstanceNorm)


def is_timm_norm(module: nn.Module) -> bool:
    """Tell whether a module is timm's batch norm that holds its activation."""
    kind = type(module)
    return kind.__module__.startswith("timm.layers.") and kind.__name__ == "BatchNormAct2d"


def why_not(norm: nn.Module) -> str | None:
    """Return why a batch norm is not to be fused, or None."""
    kind = type(norm)
    if isinstance(norm, _LazyNormBase):
        return "is lazy: run the model once, then accelerate it"
    if _has_hooks(norm):
        return "has hooks, which expect its own output"
    if is_parametrized(norm):
        return "is parametrised"
    if is_timm_norm(norm):
        quiet = isinstance(norm.drop, nn.Identity) and not any(map(_has_hooks, norm.children()))
        return None if quiet else "has a dropout or hooks inside"
    return None if kind in _PLAIN else f"{kind.__name__} may do more than a batch norm"


def owners(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that have a batch norm below them and a forward that may call it."""
    paths = [p for p, m in model.named_modules(remove_duplicate=False) if is_batch_norm(m)]
    above = {p.rsplit(".", i)[0] if i <= p.count(".") else "" for p in paths
             for i in range(1, p.count(".") + 2)}  # fmt: skip
    for path, module in model.named_modules():
        has_forward = type(module).forward is not nn.Module.forward or "forward" in vars(module)
        if path in above and has_forward and not is_batch_norm(module):
            yield path, module


def _refuse(module: nn.Module) -> None:
    """Raise for a module whose class has no forward that could be traced and replaced."""
    if isinstance(module, GraphModule | torch.jit.ScriptModule):
        raise UntraceableError("it is a GraphModule or a ScriptModule, with code of its own")
    if "forward" in vars(module):
        raise UntraceableError("it was replaced on the object")
    if is_parametrized(module):
        raise UntraceableError("the module is parametrised")


def _variants(module: nn.Module) -> Iterator[Trace]:
    """Trace a forward in every way that it tells apart."""
    _refuse(module)
    first = trace(module)
    yield from _modes(module, first, {})
    if first.kinds:
        yield from _modes(module, None, {"kind": list})
    unset = frozenset(name for name, value in first.fixed.items() if value is None)
    if unset:
        yield from _modes(module, None, {"given": unset})


def _modes(module: nn.Module, found: Trace | None, options: dict[str, Any]) -> Iterator[Trace]:
    """Yield a trace, and one in the other mode if the mode was looked at."""
    with suppress(UntraceableError):
        found = found or trace(module, **options)
        looked = any(name == "training" for _, name in found.asked)
        yield found
        if looked:
            with _other_mode(module):
                other = trace(module, **options)
            yield other


@contextmanager
def _other_mode(module: nn.Module) -> Iterator[None]:
    modules = [m for m in module.modules() if m.training is module.training]
    try:
        for m in modules:
            m.training = not m.training
        yield
    finally:
        for m in modules:
            m.training = not m.training


def _source(chain: Chain, reader: Reader) -> str:
    node = chain.norm.input
    module = reader.module(node)
    return f" after {node.target} ({type(module).__name__})" if module is not None else ""
