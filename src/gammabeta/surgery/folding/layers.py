"""Which convolutions and linear layers may take a batch norm, and why the others may not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized

from gammabeta.norm.act import _has_hooks
from gammabeta.surgery.folding.norms import Norm
from gammabeta.surgery.folding.regions import Regions

_KNOWN: tuple[type[nn.Module], ...] = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_SAME_PADDING = "Conv2dSame"  # timm's: pads with zeros by the size of its input, then convolves


class Layers:
    """What is known of a model's layers beside the graph.

    Args:
        model: The model.
        regions: Its regions.
        paths: Where each module is, by its id.
    """

    def __init__(self, model: nn.Module, regions: Regions, paths: Mapping[int, list[str]]) -> None:
        self._regions = regions
        self._paths = paths
        self._owners: dict[int, list[str]] = defaultdict(list)
        for path, module in model.named_modules():
            for name, parameter in module._parameters.items():
                self._owners[id(parameter)].append(f"{path}.{name}".lstrip("."))

    def unseen(self, module: nn.Module) -> str | None:
        """Return why not all calls of a module are known, or None."""
        reasons = (self._regions.reason(path) for path in self._paths[id(module)])
        return next((why for why in reasons if why), None)

    def why_not(self, layer: Any) -> str | None:
        """Return why a layer's weight and bias cannot be replaced, or None."""
        if is_parametrized(layer):
            return "it is parametrised: remove_parametrizations would make it plain"
        if _has_hooks(layer):
            return "it has hooks, which expect its own input and output"
        if not _is_known(layer):
            return f"{type(layer).__name__} may do more than its parent class"
        for name in ("weight", "bias"):
            why = self._not_plain(layer, name)
            if why:
                return why
        if any(id(layer) in region.read for region in self._regions.found):
            return "a forward reads its weight or bias itself"
        return self.unseen(layer)

    def _not_plain(self, layer: nn.Module, name: str) -> str | None:
        value = getattr(layer, name)
        if value is None:
            return None
        if type(value) is not nn.Parameter or not value.is_floating_point():
            return f"its {name} is no plain parameter of floating-point numbers"
        if value.is_meta:
            return f"its {name} is on the meta device, without values"
        owners = self._owners[id(value)]
        if len(owners) > 1:
            return f"its {name} is shared: {' and '.join(owners)} are one parameter"
        return None


def why_not_after(layer: Any, norm: Norm) -> str | None:
    """Return why a batch norm after a layer is no scale and shift of its output, or None.

    Example:
        >>> from gammabeta.surgery.folding.norms import read
        >>> why_not_after(nn.Linear(3, 2), read("", nn.BatchNorm2d(2).eval()))
        'its features are the last axis, and BatchNorm2d normalises the second of four'
    """
    convolves = isinstance(layer, _ConvNd)
    width = layer.out_channels if convolves else layer.out_features
    return _wrong_axis(layer, norm) or _wrong_width(width, norm)


def why_not_before(layer: Any, norm: Norm, flattened: set[bool]) -> str | int:
    """Return why a batch norm before a layer is no part of it, or what one channel becomes.

    Args:
        layer: The layer after it.
        norm: The batch norm.
        flattened: Whether its output is flattened on the way; both, if that differs.

    Returns:
        The reason; or the number of features that each channel becomes: 1 unless flattened.
    """
    if isinstance(layer, _ConvTransposeNd):
        return "a transposed convolution adds up fewer values at its borders"
    if isinstance(layer, _ConvNd):
        if True in flattened:
            return "the batch norm's output is flattened before it"
        wrong = _wrong_axis(layer, norm) or _wrong_width(layer.in_channels, norm)
        return wrong or _pads_with_zeros(layer) or 1
    if flattened == {True} and layer.in_features % norm.channels == 0:
        return int(layer.in_features // norm.channels)
    if True in flattened:
        return f"{norm.channels} channels cannot become its {layer.in_features} features"
    return _wrong_axis(layer, norm) or _wrong_width(layer.in_features, norm) or 1


def _is_known(layer: nn.Module) -> bool:
    kind = type(layer)
    if kind.__name__ == _SAME_PADDING and kind.__module__.startswith("timm."):
        return True
    base = next((base for base in kind.__mro__ if base in _KNOWN), None)
    if base is None or not kind.__module__:
        return False
    methods = ("forward", "_conv_forward", "__call__", "__getattr__")
    return all(getattr(kind, m, None) is getattr(base, m, None) for m in methods)


def _wrong_axis(layer: Any, norm: Norm) -> str | None:
    kind = type(norm.inner).__name__
    if isinstance(layer, _ConvNd):
        rank = len(layer.kernel_size) + 2
        return None if rank in norm.ranks else f"{kind} takes no output of {rank} axes"
    if 2 in norm.ranks:
        return None
    count = {4: "four", 5: "five"}[norm.ranks[0]]
    return f"its features are the last axis, and {kind} normalises the second of {count}"


def _wrong_width(width: int, norm: Norm) -> str | None:
    if width == norm.channels:
        return None
    return f"it has {width} channels there, and the batch norm {norm.channels}"


def _pads_with_zeros(conv: Any) -> str | None:
    """Return why a convolution's borders see no shift; other paddings repeat shifted values."""
    if type(conv).__name__ != _SAME_PADDING:
        if conv.padding_mode != "zeros" or conv.padding == "valid":
            return None
        reach = conv.kernel_size if conv.padding == "same" else None
        if not any(k > 1 for k in reach) if reach else not any(conv.padding):
            return None
    return "it pads with zeros, where the batch norm's shift would be missing"
