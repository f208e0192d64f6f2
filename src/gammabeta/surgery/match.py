"""Finding what follows each batch norm of a ``torch.fx`` graph and can be computed with it.

    norm → (nothing)* → [+ residual] → activation → [max pooling]

Each link must be the only reader of the one before it, so that nobody misses the intermediate
tensors. A pooling may also come before a ReLU: the maximum commutes with it, to the bit.

The matcher knows nothing of where a graph comes from: a ``Reader`` tells it what is a batch norm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, Node

from gammabeta.surgery.links import Step
from gammabeta.surgery.reader import Norm, Reader
from gammabeta.surgery.writes import targets


@dataclass
class Chain:
    """A batch norm, and the links after it that can be computed with it.

    Args:
        node: The batch norm's.
        norm: What the reader said of it.
        links: The nodes after it, in order; the last one's value is the chain's.
        sum: The link that adds a residual, or None.
        settings: The arguments of ``gammabeta.batch_norm`` that ask for the rest.
        stop: Why it goes no further.
    """

    node: Node
    norm: Norm
    links: list[Node] = field(default_factory=list)
    sum: Node | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    stop: str = ""

    @property
    def output(self) -> Node:
        """The node of the batch norm's own output."""
        return self.norm.output or self.node

    @property
    def residual(self) -> Node | None:
        """What is added; read from the graph, which changes as other chains are replaced."""
        if self.sum is None:
            return None
        mine = {self.output, *self.links}
        return next(node for node in self.sum.all_input_nodes if node not in mine)

    @property
    def place(self) -> Node:
        """The node before which all of it can be computed: as early as the residual is known."""
        return self.sum or self.node

    def describe(self) -> str:
        """Name what is computed with the batch norm.

        Example:
            >>> Chain(None, None, settings={"activation": "relu", "pool": 2}).describe()
            'BN + relu + max pooling 2x2'
        """
        pool = self.settings.get("pool")
        parts = [
            "BN",
            "add" if self.sum else "",
            self.settings.get("activation", ""),
            f"max pooling {pool}x{pool}" if pool else "",
        ]
        return " + ".join(part for part in parts if part)


def find_chains(graph: Graph, reader: Reader) -> list[Chain]:
    """Find the chain that starts at each batch norm, in the graph's order.

    Two batch norms may meet in a sum; the later one takes it, with the earlier as its residual.
    """
    claimed: set[Node] = set()
    follower, found = _Follower(reader, graph, claimed), []
    for node in reversed(list(graph.nodes)):
        norm = reader.norm(node)
        if norm is not None:
            chain = follower.follow(Chain(node, norm))
            claimed.update(chain.links)
            found.append(chain)
    return found[::-1]


def _modes(graph: Graph) -> dict[Node, tuple[Any, ...]]:
    """Return the modes that each node runs in: gradients, and the autocast regions around it."""
    grad, regions = torch.is_grad_enabled(), list[Node]()
    modes = {}
    for node in graph.nodes:
        name = getattr(node.target, "__name__", "")
        if name == "_set_grad_enabled":
            grad = node.args[0]
        elif name == "_enter_autocast":
            regions.append(node)
        elif name == "_exit_autocast":
            regions.remove(node.args[0])
        modes[node] = (grad, *regions)
    return modes


def _hoistable(setting: Node) -> bool:
    """Tell whether a setting is an argument of the graph, and so may be read before its place."""
    return setting.op == "placeholder" or (
        setting.op == "call_method"
        and setting.target == "item"
        and all(node.op == "placeholder" for node in setting.all_input_nodes)
    )


class _Follower:
    """Follows one batch norm's output as far as it can be fused."""

    def __init__(self, reader: Reader, graph: Graph, claimed: set[Node]) -> None:
        self.reader = reader
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.modes = _modes(graph)
        self.claimed = claimed

    def follow(self, chain: Chain) -> Chain:
        """Fill in the chain."""
        value, pending, settings, added = chain.output, list[Node](), dict[str, Any](), None
        while not (why := self._only_reader(value)):
            node = next(iter(value.users))
            step = self.reader.step(node, value)
            if step is None:
                why = f"its output {self.reader.describe(node)}"
                break
            why = self._refuses(chain, step, node, settings, added)
            if why:
                break
            pending.append(node)
            settings |= step.settings
            added = node if step.kind == "add" else added
            # A pooling waits for its ReLU; what does nothing counts if something follows.
            if step.kind != "identity" and not ("pool" in settings and len(settings) == 1):
                chain.links, chain.settings = list(pending), dict(settings)
                chain.sum = added
            value = node
        chain.stop = why
        return chain

    def _only_reader(self, value: Node) -> str:
        if len(value.users) != 1:
            return f"its output is used {len(value.users)} times"
        return "its sum is computed with another batch norm" if self._taken(value) else ""

    def _taken(self, value: Node) -> bool:
        return next(iter(value.users)) in self.claimed

    def _refuses(
        self,
        chain: Chain,
        step: Step,
        node: Node,
        settings: dict[str, Any],
        added: Node | None,
    ) -> str:
        """Return why a step cannot be the next link, or nothing."""
        if self.modes[node] != self.modes[chain.node]:
            return "gradients or autocast are switched before what follows"
        if any(isinstance(v, Node) and not _hoistable(v) for v in step.settings.values()):
            return "its activation's settings are computed in the forward"
        if step.kind == "activation":
            known = "activation" in settings
            early = "pool" in settings and step.settings["activation"] != "relu"
            return "a second activation follows" if known or early else ""
        if step.kind == "pool":
            alone = settings.get("activation", "relu") == "relu" and "pool" not in settings
            return "" if chain.norm.pools and alone else "its pooling does not follow a ReLU"
        if step.kind == "add":
            if settings or added or not chain.norm.waits:
                return "its output goes to an addition"
            return self._unsafe(chain, step, node)
        return ""

    def _unsafe(self, chain: Chain, step: Step, node: Node) -> str:
        """Return why the batch norm cannot wait for the addition, or nothing."""
        other: Node = step.other
        if step.overwrites and not (self.reader.fresh(other) and len(other.users) == 1):
            return "the addition overwrites a tensor that others may see"
        between = self._between(chain.node, node)
        inputs = chain.node.all_input_nodes
        again = any(n in i.users for i in inputs for n in between)
        same = chain.node.op == "call_module" and any(
            n.target == chain.node.target for n in between
        )
        if again or same:
            return "its input or layer is used again before the addition"
        data = chain.norm.input
        alone = self.reader.fresh(data) and len(data.users) == 1
        if not alone and any(map(self._may_write, between)):
            return "its input may be overwritten before the addition"
        return ""

    def _between(self, first: Node, last: Node) -> list[Node]:
        return [n for n, i in self.order.items() if self.order[first] < i < self.order[last]]

    def _may_write(self, node: Node) -> bool:
        if node.op == "call_module":
            return not self.reader.fresh(node)
        return bool(targets(node))
