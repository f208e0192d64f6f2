"""Writing the plan of a rewritten forward: its variants, and when each of them holds.

A variant is a traced forward with its chains fused. A forward that looked at the mode has one for
training and one for evaluation; one that asked for the type of its argument, one for each type.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from keyword import iskeyword
from typing import Any

from torch import nn
from torch.fx import Graph

from gammabeta.surgery.match import Chain
from gammabeta.surgery.reader import Reader
from gammabeta.surgery.rewrite import BASICS, Plan, fused
from gammabeta.surgery.tracing import Trace
from gammabeta.surgery.watching import is_plain

_NO_MATTER = {"training", "inplace"}  # of a module that is skipped


def fuse(graph: Graph, chain: Chain) -> None:
    """Replace a chain of a traced forward by one call, in place."""
    operands = [chain.node.args[0], *([chain.residual] if chain.residual else [])]
    with graph.inserting_before(chain.place):
        layer = graph.get_attr(str(chain.node.target))
        call = graph.call_function(fused, (layer, *operands), chain.settings)
    chain.links[-1].replace_all_uses_with(call)
    for node in [*reversed(chain.links), chain.node]:
        graph.erase_node(node)


@dataclass
class Writer:
    """Collects the variants of one module's forward.

    Args:
        module: The module.
    """

    module: nn.Module
    names: dict[str, Any] = field(default_factory=dict)
    variants: list[str] = field(default_factory=list)
    branches: list[str] = field(default_factory=list)

    def add(self, trace: Trace, chains: list[Chain], reader: Reader) -> None:
        """Add a variant: the trace's graph, which is changed, with these chains fused."""
        conditions = list(self._conditions(trace, chains, reader))
        for chain in chains:
            fuse(trace.graph, chain)
        for node in trace.graph.nodes:
            node.type = None
        name = f"variant_{len(self.variants)}"
        code = trace.graph.python_code("self")
        self.names |= {k: v for k, v in code.globals.items() if k not in BASICS}
        self.variants.append(code.src.replace("def forward(", f"def {name}(", 1).strip())
        given = [str(node.target) for node in trace.graph.nodes if node.op == "placeholder"]
        self.branch(conditions, f"{name}({', '.join(['self', *given])})")

    def plan(self) -> Plan:
        """Return the plan."""
        signature, call = _signature(type(self.module))
        text = [*self.variants, f"def forward{signature}:\n" + "\n".join(self.branches)]
        return Plan(
            "\n\n".join(text) + f"\n    return original({call})\n", tuple(self.names.items())
        )

    def constant(self, value: Any) -> str:
        """Return a name for a value."""
        if value is None or isinstance(value, bool):
            return repr(value)
        name = f"value_{len(self.names)}"
        self.names[name] = value
        return name

    def quiet(self, path: str, module: nn.Module) -> str:
        """Write the test that the module at a path may still be skipped."""
        settings = tuple(
            (name, value)
            for name, value in vars(module).items()
            if not name.startswith("_") and name not in _NO_MATTER and is_plain(value)
        )
        known = (at(path), self.constant(type(module)), self.constant(settings))
        return f"quiet({', '.join(known)})"

    def branch(self, conditions: list[str], result: str) -> None:
        """Add what the forward returns under conditions."""
        tests = " and ".join(["not symbolic()", *conditions])
        self.branches.append(f"    if {tests}:\n        return {result}")

    def _conditions(self, trace: Trace, chains: list[Chain], reader: Reader) -> Iterator[str]:
        for name, kind in trace.kinds.items():
            yield f"type({name}) is list" if kind is list else f"isinstance({name}, Tensor)"
        for name in trace.fixed:
            yield f"{name} is default_{name}"
        yield from self._no_others()
        # What a list of modules holds comes first: the rest may not be there.
        for (path, name), value in sorted(
            trace.asked.items(), key=lambda item: (item[0][1] != "_modules", item[0])
        ):
            here = f"{at(path)}.{name}"
            if name == "_modules":
                yield f"tuple({here}) == {self.constant(value)}"
            else:
                alike = (
                    "is" if value is None or isinstance(value, bool) or callable(value) else "=="
                )
                yield f"{here} {alike} {self.constant(value)}"
        for path in dict.fromkeys(p for c in chains for p in skipped(c, reader)):
            yield self.quiet(path, reader.modules[path])

    def _no_others(self) -> Iterator[str]:
        for p in inspect.signature(type(self.module).forward).parameters.values():
            if p.kind in {p.VAR_POSITIONAL, p.VAR_KEYWORD}:
                yield f"not {p.name}"


def skipped(chain: Chain, reader: Reader) -> Iterator[str]:
    """Yield the paths of the modules that a fused chain no longer calls, its batch norm apart."""
    yield from (str(node.target) for node in chain.links if node.op == "call_module")
    norm = str(chain.node.target)
    yield from (f"{norm}.{name}" for name, _ in reader.modules[norm].named_children())


def at(path: str) -> str:
    """Write the expression for the module at a path below ``self``.

    Example:
        >>> at("layers.0.relu")
        "getattr(self.layers, '0').relu"
    """
    text = "self"
    for name in path.split(".") if path else []:
        plain = name.isidentifier() and not iskeyword(name)
        text = f"{text}.{name}" if plain else f"getattr({text}, {name!r})"
    return text


class _Name:
    """Prints as a name, for a signature's defaults."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


_PREFIXES: dict[Any, str] = {
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.VAR_KEYWORD: "**",
    inspect.Parameter.KEYWORD_ONLY: "{}=",
}


def _signature(kind: type[nn.Module]) -> tuple[str, str]:
    """Write the original forward's parameters, and the call that passes them on."""
    signature = inspect.signature(kind.forward)
    parameters, passed = [], []
    for i, p in enumerate(signature.parameters.values()):
        name = p.name if i else "self"
        default = p.default if p.default is p.empty else _Name(f"default_{p.name}")
        parameters.append(p.replace(name=name, default=default, annotation=p.empty))
        passed.append(_PREFIXES.get(p.kind, "").format(name) + name)
    text = signature.replace(parameters=parameters, return_annotation=signature.empty)
    return str(text), ", ".join(passed)
