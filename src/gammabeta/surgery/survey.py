"""Which modules of a model are batch norms, which may be followed, and which modules call them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _LazyNormBase, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrize import is_parametrized

from gammabeta.norm.act import _has_hooks
from gammabeta.norm.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d
from gammabeta.surgery.reader import Norm, Reader

_PLAIN = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNorm1d, BatchNorm2d, BatchNorm3d}


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
