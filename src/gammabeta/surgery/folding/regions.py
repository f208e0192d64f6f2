"""Cutting a model into the largest parts whose forward can be taken as one graph.

The whole model is one, if it can be traced. Where it cannot, its children are tried on their own,
and then itself again with those that failed as single nodes; at last its own forward alone, with
all of its children as single nodes. So one forward that cannot be traced costs what crosses its
border, and no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Graph, Node
from torch.nn.modules.conv import _ConvNd

from gammabeta.norm.act import _has_hooks
from gammabeta.surgery.folding.norms import is_norm
from gammabeta.surgery.tracing import Trace, trace
from gammabeta.surgery.watching import UntraceableError

_UNIMPLEMENTED = nn.Module.forward


@dataclass
class Region:
    """A part of a model as one graph.

    Args:
        module: The module whose forward it is.
        graph: In it a batch norm is one node, and so is a module that holds none.
        asked: Ids of the modules below whose settings the forward looked at.
        read: Ids of those whose parameters or buffers it read itself.
    """

    module: nn.Module
    graph: Graph
    asked: set[int]
    read: set[int]

    def called(self, node: Node) -> nn.Module | None:
        """Return the module that a node calls, or None."""
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None


class Regions:
    """The regions of a model.

    Attributes:
        found: The regions: no module's forward is in two of them, unless as two ways through it.
        opaque: Why a module's forward is no graph, by the module's id.
    """

    def __init__(self, model: nn.Module) -> None:
        self.found: list[Region] = []
        self.opaque: dict[int, str] = {}
        self._model = model
        self._holders = {id(m): m for m in model.modules() if _holds_norm(m)}
        self._kinds = {id(m): _kind(m, id(m) in self._holders) for m in model.modules()}
        self._tried: set[int] = set()
        for module in list(self._holders.values()):
            if self._kinds[id(module)] == "closed":
                self._find(module)
        self._find(model)

    def reason(self, path: str) -> str | None:
        """Return why nothing is known of who calls the module at a path, or None."""
        while path:
            path = path.rpartition(".")[0]
            module = self._model.get_submodule(path)
            if any(region.module is module for region in self.found):
                return None
            if id(module) in self.opaque:
                name = f"{type(module).__name__}'s forward, which calls it,"
                return f"{name} cannot be traced: {self.opaque[id(module)]}"
        return None

    def _find(self, module: nn.Module) -> None:
        if id(module) in self._tried or id(module) not in self._holders:
            return
        self._tried.add(id(module))
        region = self._trace(module)
        if isinstance(region, str):
            before = len(self.opaque)
            for child in module.children():
                self._find(child)
            if len(self.opaque) > before:
                region = self._trace(module)
        if isinstance(region, str):
            self.opaque[id(module)] = region
            alone = self._trace(module, alone=True)
            self.found += [] if isinstance(alone, str) else alone
            return
        inlined = {id(m) for m in self._inlined(module)}
        self.found = [r for r in self.found if id(r.module) not in inlined] + region

    def _inlined(self, module: nn.Module) -> Iterator[nn.Module]:
        """Yield the modules below one that its graph runs through."""
        for child in module.children():
            shut = id(child) in self.opaque or self._kinds[id(child)] == "closed"
            if id(child) in self._holders and not shut:
                yield child
                yield from self._inlined(child)

    def _trace(self, module: nn.Module, alone: bool = False) -> list[Region] | str:
        """Return a module's region, or that of its own forward alone, or why there is none."""
        if type(module).forward is _UNIMPLEMENTED:
            return "it has none"
        if "forward" in vars(module):
            return "it was replaced on the object"
        why = ""
        ways: list[set[str]] = [set()] if alone else [{"open", "deep"}, {"open"}]
        for through in ways:
            try:
                return list(_ways(module, self._leaf_unless(through)))
            except UntraceableError as error:
                why = str(error)
        return why

    def _leaf_unless(self, through: set[str]) -> Any:
        passed = {key for key, kind in self._kinds.items() if kind in through}
        passed -= set(self.opaque)
        return lambda module: id(module) not in passed


def _holds_norm(module: nn.Module) -> bool:
    return not is_norm(module) and any(map(is_norm, module.modules()))


def _kind(module: nn.Module, holds: bool) -> str:
    """Sort a module: "open" to tracing, "deep" if one may also look in, "closed", or a "leaf".

    A module with hooks is closed, for they see what goes in and what comes out.
    """
    if holds:
        return "closed" if _has_hooks(module) else "open"
    if is_norm(module) or _has_hooks(module) or isinstance(module, _ConvNd | nn.Linear):
        return "leaf"
    if type(module) is nn.Sequential:
        return "open"
    layers = any(isinstance(m, _ConvNd | nn.Linear) for m in module.modules())
    return "deep" if layers and not type(module).__module__.startswith("torch.") else "leaf"


def _ways(module: nn.Module, leaf: Any) -> Iterator[Region]:
    """Trace a forward, and again with what it left out: optional arguments, a list for a tensor.

    Only what holds in all of these graphs is folded.
    """
    found = trace(module, leaf=leaf)
    yield _region(module, found)
    unset = frozenset(name for name, value in found.fixed.items() if value is None)
    others: list[dict[str, Any]] = [{"given": unset}] if unset else []
    others += [{"kind": list}] if found.kinds else []
    for options in others:
        with suppress(UntraceableError):
            yield _region(module, trace(module, leaf=leaf, **options))


def _region(module: nn.Module, found: Trace) -> Region:
    graph = found.graph
    asked = {path for path, name in found.asked if name not in {"training", "_modules"}}
    read = {str(n.target).rpartition(".")[0] for n in graph.nodes if n.op == "get_attr"}
    ids = [{id(module.get_submodule(path)) for path in paths} for paths in (asked, read)]
    return Region(module, graph, *ids)
