"""Drop-in batch norm layers: torch's classes, computing through :mod:`gammabeta.norm.functional`.

They inherit from ``torch.nn.BatchNorm1d/2d/3d``, so that old checkpoints load and every tool that
looks for a batch norm finds one; they add nothing to the state_dict.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gammabeta.norm import registries
from gammabeta.norm.activation import Epilogue
from gammabeta.norm.functional import PLAIN, Stats, normalize
from gammabeta.norm.kernels.tracing import referable
from gammabeta.norm.updates import batch_weight, updates_allowed


class _Layer(_BatchNorm):
    """What the three layers share.

    Args:
        num_features: Channels C of the input.
        eps: Added to the variance.
        momentum: Weight of the new batch in the running statistics; None for their plain average
            over all batches.
        affine: Whether γ and β are learned.
        track_running_stats: Whether running statistics are kept; without them the batch's own
            are used in eval mode too.
        device: Of parameters and buffers.
        dtype: Of parameters and buffers.
        bias: Whether β is learned, if ``affine``.
        virtual_batch_size: In training, normalise parts of this many samples apart (ghost batch
            norm, Hoffer et al. 2017, arXiv:1705.08741).
        backend: "auto", or a kernel by name.

    Differences from torch, all on purpose: statistics are updated once under activation
    checkpointing; no buffer is part of the autograd graph; float32 channels far from zero keep
    their variance; a batch of no samples is not counted.

    References:
        Ioffe & Szegedy, "Batch Normalization", ICML 2015. arXiv:1502.03167.
    """

    # At class level too, for objects that were torch's class before conversion.
    virtual_batch_size: int | None = None
    backend: str = "auto"

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        virtual_batch_size: int | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias
        )
        self.virtual_batch_size = virtual_batch_size
        self.backend = backend

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Return the input normalised, in its own shape and dtype."""
        return self.forward_with(input, None, PLAIN)

    def forward_with(self, x: Tensor, residual: Tensor | None, epilogue: Epilogue) -> Tensor:
        """Normalise, then add, activate and pool in the same call.

        Args:
            x: (N, C, *).
            residual: As x, or None.
            epilogue: What follows.
        """
        layer = self if type(x) is Tensor else referable(self, x)
        return _forward(layer, x, residual, epilogue)

    @property
    def itself(self) -> _Layer:
        """The layer, for symbolic tracing."""
        return self

    _dims: tuple[int, ...] = ()

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 (torch's name)
        check_dims(input, self._dims)

    def extra_repr(self) -> str:
        """Describe the layer as torch does, and name what is not the default."""
        extra = ""
        if self.virtual_batch_size is not None:
            extra += f", virtual_batch_size={self.virtual_batch_size}"
        if self.backend != "auto":
            extra += f", backend={self.backend!r}"
        described: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return described + extra


@torch.fx.wrap
def _forward(layer: _Layer, x: Tensor, residual: Tensor | None, epilogue: Epilogue) -> Tensor:
    """Decide which statistics are used and updated, count the batch, and normalise.

    A function apart that is given the layer, so that symbolic tracing keeps it as one node and
    the traced model changes its mode as one of torch's layers would.
    """
    check_dims(x, layer._dims)
    training = layer.training
    mean, var, batches, weight, bias = _tensors(layer)
    stats = None if mean is None or var is None else Stats(mean, var)
    count = None
    if training and stats is not None:
        if not (layer.track_running_stats and updates_allowed()):
            stats = None
        elif x.numel():
            count = batches
    weighs: float | Tensor | None = layer.momentum
    if weighs is None:  # the average of all batches, of which this one is counted first
        weighs, count = _share(count, mean), None
    y, _ = normalize(
        x,
        stats,
        weight,
        bias,
        training,
        weighs,
        layer.eps,
        residual=residual,
        epilogue=epilogue,
        virtual_batch_size=layer.virtual_batch_size,
        backend=layer.backend,
        alike=layer.momentum is None,
        count=count,
    )
    return y


def _tensors(layer: _Layer) -> tuple[Tensor | None, ...]:
    """Return running mean, variance and count, γ and β, without a look-up of its own for each."""
    try:
        own, kept = layer._parameters, layer._buffers
        stats = kept["running_mean"], kept["running_var"], kept["num_batches_tracked"]
        return *stats, own["weight"], own["bias"]
    except KeyError:  # parametrized, or plain attributes, as a replica has them
        stats = layer.running_mean, layer.running_var, layer.num_batches_tracked
        return *stats, layer.weight, layer.bias


def _share(count: Tensor | None, like: Tensor | None) -> float | Tensor:
    """Count a batch, and return what it weighs among all."""
    if count is None or like is None:
        return 0.0
    return batch_weight(None, count.add_(1), like)


def check_dims(x: Tensor, dims: tuple[int, ...]) -> None:
    """Refuse an input of another rank, in torch's words."""
    if x.dim() not in dims:
        expected = " or ".join(f"{d}D" for d in dims)
        raise ValueError(f"expected {expected} input (got {x.dim()}D input)")


class BatchNorm1d(_Layer, nn.BatchNorm1d):
    """Batch norm over (N, C) or (N, C, L); see ``torch.nn.BatchNorm1d``.

    Example:
        >>> BatchNorm1d(3)(torch.randn(4, 3)).shape
        torch.Size([4, 3])
    """

    _dims = (2, 3)


class BatchNorm2d(_Layer, nn.BatchNorm2d):
    """Batch norm over (N, C, H, W); see ``torch.nn.BatchNorm2d``.

    Example:
        >>> BatchNorm2d(3, virtual_batch_size=2)(torch.randn(4, 3, 5, 5)).shape
        torch.Size([4, 3, 5, 5])
    """

    _dims = (4,)


class BatchNorm3d(_Layer, nn.BatchNorm3d):
    """Batch norm over (N, C, D, H, W); see ``torch.nn.BatchNorm3d``.

    Example:
        >>> BatchNorm3d(3)(torch.randn(4, 3, 2, 5, 5)).shape
        torch.Size([4, 3, 2, 5, 5])
    """

    _dims = (5,)


class LazyBatchNorm1d(nn.LazyBatchNorm1d):
    """Becomes :class:`BatchNorm1d` at its first input."""

    cls_to_become: Any = BatchNorm1d


class LazyBatchNorm2d(nn.LazyBatchNorm2d):
    """Becomes :class:`BatchNorm2d` at its first input."""

    cls_to_become: Any = BatchNorm2d


class LazyBatchNorm3d(nn.LazyBatchNorm3d):
    """Becomes :class:`BatchNorm3d` at its first input."""

    cls_to_become: Any = BatchNorm3d


_TWINS: dict[type, type] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
}
registries.enter(_TWINS, registries.REFUSALS + registries.COUNTS + registries.REPLACEMENTS)
