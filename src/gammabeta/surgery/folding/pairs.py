"""Deciding what each batch norm of a model is folded into, and doing it.

A batch norm goes into the layer before it, else into the one after it, else it becomes a scale and
a shift of its own. Layers before are preferred because they are always exact; one after is not
where it pads with zeros. All is decided and computed before anything is changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from torch import nn
from torch.fx import Node

from gammabeta.norm.act import _BatchNormAct
from gammabeta.surgery.folding.affine import ChannelAffine
from gammabeta.surgery.folding.flow import End, Flow, is_linear
from gammabeta.surgery.folding.layers import Layers, why_not_after, why_not_before
from gammabeta.surgery.folding.norms import Norm, is_norm, read
from gammabeta.surgery.folding.regions import Regions
from gammabeta.surgery.folding.weights import Folding
from gammabeta.surgery.report import Entry

Place = tuple[Flow, Node]
"""A call of a module: the region's flow, and the node."""


class Pairs:
    """What is to be folded in a model; nothing of it changes before :meth:`apply`.

    Args:
        model: The model.

    Attributes:
        foldings: The layers that take batch norms.
        affine: The batch norms that become a scale and a shift, each with its new module.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._paths: dict[int, list[str]] = defaultdict(list)
        for path, module in model.named_modules(remove_duplicate=False):
            self._paths[id(module)].append(path)
        self._regions = Regions(model)
        self._layers = Layers(model, self._regions, self._paths)
        self._gone: set[int] = set()
        self._calls: dict[int, list[Place]] = defaultdict(list)  # in the order of the data
        self._done: dict[int, str] = {}
        self._left: dict[int, list[str]] = defaultdict(list)
        self._foldings: dict[int, Folding] = {}
        self.affine: list[tuple[Norm, ChannelAffine]] = []
        self._norms = self._read_norms()
        self._decide()

    @property
    def foldings(self) -> list[Folding]:
        """The layers that take a batch norm."""
        return [f for f in self._foldings.values() if f.before or f.after]

    def entries(self) -> tuple[list[Entry], list[Entry]]:
        """Return what is done and what is left, in the model's order."""
        paths = {key: paths[0] for key, paths in self._paths.items()}
        done = [Entry(paths[k], self._done[k]) for k in paths if k in self._done]
        left = [Entry(paths[k], why) for k in paths for why in self._left.get(k, [])]
        return done, left

    def apply(self) -> nn.Module:
        """Fold, in place, and return the model: another one if it was itself a batch norm."""
        for folding in self.foldings:
            folding.apply()
        affine = {id(norm.module): made for norm, made in self.affine}
        root = self._model
        for norm in self._norms.values():
            if id(norm.module) not in self._done:
                continue
            rest = norm.remainder(affine.get(id(norm.module)))
            for path in self._paths[id(norm.module)]:
                parent, _, name = path.rpartition(".")
                if path:
                    self._model.get_submodule(parent)._modules[name] = rest
                else:
                    root = rest
        return root

    def alike(self) -> list[str]:
        """Return the paths of what still has the batch norm's output, in the order of the data."""
        before = {id(norm.module) for f in self.foldings for norm, _ in f.before}
        folded = [key for key in self._calls if key in self._done and key not in before]
        return [self._norms[key].path for key in folded]

    def _read_norms(self) -> dict[int, Norm]:
        """Return the batch norms that may be exchanged; note why the others may not."""
        for region in self._regions.found:
            flow = Flow(region, self._gone)
            for node in region.graph.nodes:
                module = region.called(node)
                if module is not None:
                    self._calls[id(module)].append((flow, node))
        norms, inner = {}, set[int]()
        for path, module in self._model.named_modules():
            if not is_norm(module) or id(module) in inner:
                continue
            inner |= {id(m) for m in module.modules()}
            found = read(path, module)
            why = found if isinstance(found, str) else self._unreachable(module)
            if isinstance(found, Norm) and why is None:
                norms[id(module)] = found
            else:
                self._left[id(module)].append(str(why))
        return norms

    def _unreachable(self, module: nn.Module) -> str | None:
        """Return why not all is known of who calls a batch norm, or None."""
        if module is self._model:
            return None
        why = self._layers.unseen(module)
        if why:
            return why
        places = self._calls[id(module)]
        if not places:
            return "the traced forward does not call it"
        if any(id(module) in flow.region.asked | flow.region.read for flow, _ in places):
            return "the forward that calls it looks into it"
        if not all(_is_plain_call(module, node) for _, node in places):
            return "is called with other arguments than one tensor"
        return None

    def _decide(self) -> None:
        order = [key for key in self._calls if key in self._norms]
        for key in order:
            self._merge(self._norms[key], Flow.maker, self._after)
        for key in reversed(order):
            norm = self._norms[key]
            if key not in self._done and norm.plain and self._alone(norm):
                self._merge(norm, Flow.reader, self._before)
        for key, norm in self._norms.items():
            if key not in self._done:
                self._keep(norm)

    def _alone(self, norm: Norm) -> bool:
        return all(
            len(node.args) == 1 and not node.kwargs for _, node in self._calls[id(norm.module)]
        )

    def _merge(
        self,
        norm: Norm,
        follow: Callable[[Flow, Node], End],
        take: Callable[[Norm, Folding, list[End]], str | None],
    ) -> None:
        """Merge a batch norm into the layer where following its value ends, if there is one."""
        places = self._calls[id(norm.module)]
        ends = [follow(flow, node) for flow, node in places]
        layers = [end.module for end in ends if end.module is not None and is_linear(end.module)]
        if not layers:
            return
        layer = layers[0]
        title = f"{self._paths[id(layer)][0]} ({type(layer).__name__})"
        why = self._why_not(layer, ends)
        if why is None:
            why = take(norm, self._folding(layer), ends)
        if why is not None:
            self._left[id(norm.module)].append(f"not merged into {title}: {why}")
            return
        follows = ", which follows" if take == self._before else ""
        self._done[id(norm.module)] = f"merged into {title}{follows}"
        if norm.plain:
            self._gone.add(id(norm.module))

    def _folding(self, layer: nn.Module) -> Folding:
        if id(layer) not in self._foldings:
            self._foldings[id(layer)] = Folding(self._paths[id(layer)][0], layer)
        return self._foldings[id(layer)]

    def _why_not(self, layer: nn.Module, ends: list[End]) -> str | None:
        if any(end.module is not layer for end in ends):
            return f"the batch norm is called at {len(ends)} places, not all beside this layer"
        if len(self._calls[id(layer)]) != len(ends):
            return f"it is called at {len(self._calls[id(layer)])} places"
        return self._layers.why_not(layer)

    def _after(self, norm: Norm, folding: Folding, ends: list[End]) -> str | None:
        readers = max(end.readers for end in ends)
        if readers > 1:
            return f"its output is used {readers} times"
        return why_not_after(folding.layer, norm) or folding.take_after(norm)

    def _before(self, norm: Norm, folding: Folding, ends: list[End]) -> str | None:
        readers = max(end.readers for end in ends)
        if readers > 1:
            return f"the batch norm's output is used {readers} times"
        places = self._calls[id(norm.module)]
        if any(flow.written_between(n, end) for (flow, n), end in zip(places, ends, strict=True)):
            return "the batch norm's input may be overwritten before"
        flattened = {end.flattened for end in ends}
        repeats = why_not_before(folding.layer, norm, flattened)
        return repeats if isinstance(repeats, str) else folding.take_before(norm, repeats)

    def _keep(self, norm: Norm) -> None:
        affine = norm.affine()
        if affine is None:
            self._left[id(norm.module)].append("its scale and shift are too large for its dtype")
            return
        self.affine.append((norm, affine))
        self._done[id(norm.module)] = "a scale and a shift a channel (ChannelAffine)"


def _is_plain_call(module: nn.Module, node: Node) -> bool:
    """Tell whether a batch norm is called on a tensor; one with an activation may add another."""
    first = node.args[:1]
    extra = len(node.args) - 1 + len(node.kwargs)
    may = isinstance(module, _BatchNormAct) and extra == 1 and set(node.kwargs) <= {"residual"}
    return len(first) == 1 and isinstance(first[0], Node) and (extra == 0 or may)
