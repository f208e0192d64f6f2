"""Reading a batch norm as what it is at inference: a scale and a shift a channel.

All batch norms that folding knows are read here into one form, :class:`Norm`, whatever their
class: torch's, gammabeta's, frozen ones with four buffers, timm's with an activation inside.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from gammabeta.norm import layers, renorm
from gammabeta.norm.act import _BatchNormAct, _has_hooks
from gammabeta.surgery.folding.affine import Activate, ChannelAffine
from gammabeta.surgery.survey import is_batch_norm

_RANKS: dict[type, tuple[int, ...]] = {
    nn.BatchNorm1d: (2, 3),
    nn.BatchNorm2d: (4,),
    nn.BatchNorm3d: (5,),
    layers.BatchNorm1d: (2, 3),
    layers.BatchNorm2d: (4,),
    layers.BatchNorm3d: (5,),
    renorm.BatchRenorm1d: (2, 3),
    renorm.BatchRenorm2d: (4,),
    renorm.BatchRenorm3d: (5,),
    nn.SyncBatchNorm: (2, 3, 4, 5),
}
"""The batch norms that nothing follows, and the ranks of the inputs that they take."""
_WITH_ACTIVATION = {"BatchNormAct2d", "SyncBatchNormAct", "FrozenBatchNormAct2d"}  # timm's
_FROZEN = {"FrozenBatchNorm2d", "FrozenBatchNormAct2d"}  # torchvision's, detectron2's, timm's
_BUFFERS = ("weight", "bias", "running_mean", "running_var")


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a batch norm, or one together with what follows it."""
    frozen = type(module).__name__ in _FROZEN
    return frozen or is_batch_norm(module) or isinstance(module, _BatchNormAct)


@dataclass(frozen=True)
class Norm:
    """A batch norm in eval mode: ``scale · x + shift``, and what follows.

    Args:
        path: Where it is in the model.
        module: The layer that is called: the batch norm, or one that holds it.
        inner: The batch norm itself.
        scale: γ / √(v + ε), (C,), in float64 on the CPU.
        shift: β − scale · m, alike.
        ranks: Of the inputs that it takes.
    """

    path: str
    module: nn.Module
    inner: Any
    scale: Tensor
    shift: Tensor
    ranks: tuple[int, ...]

    @property
    def channels(self) -> int:
        """The number of channels C."""
        return len(self.scale)

    @property
    def plain(self) -> bool:
        """Whether nothing but a residual follows scale and shift."""
        if isinstance(self.module, _BatchNormAct):
            return self.module.epilogue.activation is None and self.module.epilogue.pool is None
        return all(type(m) is nn.Identity and not _has_hooks(m) for m in self._tail().values())

    def remainder(self, affine: ChannelAffine | None) -> nn.Module:
        """Return what takes the layer's place.

        Args:
            affine: Its scale and shift, if no neighbour took them.
        """
        if isinstance(self.module, _BatchNormAct):
            rest: nn.Module = Activate(self.module.epilogue, affine)
        elif self.plain:
            rest = nn.Identity() if affine is None else affine
        else:
            parts: OrderedDict[str, nn.Module] = OrderedDict(self._tail())
            if affine is not None:
                parts = OrderedDict([("affine", affine), *parts.items()])
            rest = nn.Sequential(parts)
        rest.training = self.module.training
        return rest

    def affine(self) -> ChannelAffine | None:
        """Return scale and shift as a module, rounded once; None if they overflow."""
        like = self.inner.running_var
        dtype = torch.promote_types(like.dtype, torch.float32)
        weight, bias = (v.to(dtype).to(like.device) for v in (self.scale, self.shift))
        if not (weight.isfinite().all() and bias.isfinite().all()):
            return None
        made = ChannelAffine(weight, bias).train(self.module.training)
        for name in ("weight", "bias"):
            learned = getattr(self.inner, name, None)
            made.get_parameter(name).requires_grad_(learned is not None and learned.requires_grad)
        return made

    def twin(self) -> nn.Module:
        """Return a float64 copy on the CPU that only normalises, by its own class's forward."""
        made: nn.Module = copy.deepcopy(self.inner).to("cpu", torch.float64)
        for name in self._tail():
            setattr(made, name, nn.Identity())
        return made

    def _tail(self) -> dict[str, nn.Module]:
        """Return timm's dropout and activation, in the order in which they follow."""
        if type(self.module).__name__ not in _WITH_ACTIVATION:
            return {}
        parts = {name: getattr(self.module, name, None) for name in ("drop", "act")}
        return {name: part for name, part in parts.items() if part is not None}


def read(path: str, module: nn.Module) -> Norm | str:
    """Read a batch norm, or return why it must stay as it is.

    Example:
        >>> read("bn", nn.BatchNorm1d(3))
        'is in training mode: call model.eval() first'
        >>> read("bn", nn.BatchNorm1d(3, eps=3.0).eval()).scale
        tensor([0.5000, 0.5000, 0.5000], dtype=torch.float64)
    """
    inner: Any = module.bn if isinstance(module, _BatchNormAct) else module
    why = _why_not(module) or (None if inner is module else _why_not(inner)) or _unknown(inner)
    if why:
        return why
    mean, var = _wide(inner.running_mean), _wide(inner.running_var)
    if bool((var < 0).any()):
        return "has a negative running_var"
    scale = 1.0 if inner.weight is None else _wide(inner.weight)
    scale = scale / (var + inner.eps).sqrt()
    shift = (0.0 if inner.bias is None else _wide(inner.bias)) - scale * mean
    if not (scale.isfinite().all() and shift.isfinite().all()):
        return "has values that are not finite, or eps and running_var are 0"
    return Norm(path, module, inner, scale, shift, _RANKS.get(type(inner), (4,)))


def _wide(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float64)


def _why_not(module: nn.Module) -> str | None:
    """Return what stands in the way of exchanging a layer."""
    if _has_hooks(module):
        return "has hooks or a forward of its own, which expect a batch norm: remove them first"
    if is_parametrized(module):
        return "is parametrised: call torch.nn.utils.parametrize.remove_parametrizations first"
    return None


def _unknown(inner: Any) -> str | None:
    """Return why a batch norm is no fixed scale and shift."""
    kind = type(inner)
    if kind not in _RANKS and not _known_by_name(inner):
        return f"{kind.__name__} may do more than a batch norm"
    if kind.__name__ not in _FROZEN:
        if inner.training:
            return "is in training mode: call model.eval() first"
        if inner.running_mean is None or inner.running_var is None:
            return "keeps no running statistics, so it normalises by each batch's own"
    tensors = [inner.running_mean, inner.running_var, inner.weight, inner.bias]
    if any(v is not None and v.is_meta for v in tensors):
        return "is on the meta device, without values"
    return None


def _known_by_name(module: Any) -> bool:
    name, home = type(module).__name__, type(module).__module__.split(".")[0]
    if name in _FROZEN:
        kept = all(module._buffers.get(key) is not None for key in _BUFFERS)
        return kept and isinstance(getattr(module, "eps", None), float)
    return home == "timm" and name in _WITH_ACTIVATION
