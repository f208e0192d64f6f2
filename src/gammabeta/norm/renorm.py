"""Batch renormalisation: batch norm that trains on nearly what it will infer with.

Source: Ioffe, "Batch Renormalization", NeurIPS 2017. arXiv:1702.03275.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from gammabeta.norm import registries
from gammabeta.norm.functional import Stats, normalize
from gammabeta.norm.kernels.eager import per_channel
from gammabeta.norm.kernels.tracing import referable
from gammabeta.norm.layers import check_dims
from gammabeta.norm.recomputed import recalled, remember
from gammabeta.norm.updates import batch_weight, moved, updates_allowed


class _BatchRenorm(_NormBase):
    r"""Normalise with the batch's statistics, corrected towards the running ones.

    .. math:: \hat x = \frac{x - \mu_B}{\sigma_B} r + d, \quad
        r = \mathrm{clip}(\sigma_B / \sigma, 1 / r_{max}, r_{max}), \quad
        d = \mathrm{clip}((\mu_B - \mu) / \sigma, -d_{max}, d_{max})

    with :math:`\sigma = \sqrt{v + \epsilon}`; r and d are constants to the derivative. The limits
    follow the paper's schedule, section 3 and 4.1: plain batch norm for ``warmup`` batches, then
    ``r_max`` grows linearly from 1 and ``d_max`` from 0 until ``r_steps`` and ``d_steps`` batches.
    Eval mode, running statistics and state_dict are batch norm's. It is no subclass of torch's
    batch norm classes, so that no tool puts a batch norm in its place.

    Args:
        num_features: Channels C.
        eps: Added to the variance.
        momentum: Weight of the new batch in the running statistics, the paper's 0.01; None for
            their plain average.
        affine: Whether γ and β are learned.
        device: Of parameters and buffers.
        dtype: Of parameters and buffers.
        bias: Whether β is learned, if ``affine``.
        r_max: The scale's last limit, 1 or above.
        d_max: The shift's last limit, 0 or above.
        warmup: Batches of plain batch norm.
        r_steps: Batches until ``r_max`` is reached.
        d_steps: Batches until ``d_max`` is reached.
    """

    _dims: tuple[int, ...] = ()
    momentum: float | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup: int = 5_000,
        r_steps: int = 40_000,
        d_steps: int = 25_000,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, True, device, dtype, bias=bias)
        if r_max < 1 or d_max < 0:
            raise ValueError(f"r_max is {r_max} and d_max {d_max}, expected r_max >= 1, d_max >= 0")
        self.r_max, self.d_max = r_max, d_max
        self.warmup, self.r_steps, self.d_steps = warmup, r_steps, d_steps

    def limits(self) -> tuple[Tensor, Tensor]:
        """Return the limits of r and d for the next batch."""
        risen = [
            (
                (self.num_batches_tracked.to(self.running_mean.dtype) - self.warmup)
                / max(steps - self.warmup, 1)
            ).clamp(0, 1)
            for steps in (self.r_steps, self.d_steps)
        ]
        return 1 + (self.r_max - 1) * risen[0], self.d_max * risen[1]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Return the input normalised, in its own shape and dtype."""
        return _renorm_forward(referable(self, input), input)

    @property
    def itself(self) -> _BatchRenorm:
        """The layer, for symbolic tracing."""
        return self

    def _infer(self, x: Tensor) -> Tensor:
        running = Stats(self.running_mean, self.running_var)
        y, _ = normalize(x, running, self.weight, self.bias, False, 0.0, self.eps)
        return y

    def _train(self, x: Tensor) -> Tensor:
        batch = Stats(torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var))
        wide = x.float() if x.dtype in {torch.bfloat16, torch.float16} else x  # round once, at last
        normed, _ = normalize(wide, batch, None, None, True, 1.0, self.eps)
        if x.numel() == 0:
            return normed.to(x.dtype)
        with torch.no_grad():
            r, d = self._used(x, batch)
            if updates_allowed():
                self.num_batches_tracked.add_(1)
                momentum = batch_weight(self.momentum, self.num_batches_tracked, self.running_mean)
                moved(self.running_mean, [batch[0]], momentum, in_place=True)
                moved(self.running_var, [batch[1]], momentum, in_place=True)
        weight = r if self.weight is None else r * self.weight
        bias = d if self.weight is None else d * self.weight
        bias = bias if self.bias is None else bias + self.bias
        scaled = normed * per_channel(weight, x) + per_channel(bias, x)
        return scaled.to(x.dtype)

    def _used(self, x: Tensor, batch: Stats) -> tuple[Tensor, ...]:
        """Return r and d, which are those of the first time where checkpointing runs it again."""
        used = recalled(self, batch)
        if used is None:
            used = self._correction(x, *batch)
            remember(self, batch, used)
        return used

    def _correction(self, x: Tensor, mean: Tensor, unbiased: Tensor) -> tuple[Tensor, Tensor]:
        count = x.numel() // x.shape[1]
        sigma = (self.running_var + self.eps).sqrt()
        batch_sigma = (unbiased * ((count - 1) / count) + self.eps).sqrt()
        r_max, d_max = self.limits()
        r = (batch_sigma / sigma).clamp(1 / r_max, r_max)
        d = ((mean - self.running_mean) / sigma).clamp(-d_max, d_max)
        return r, d

    def extra_repr(self) -> str:
        """Describe the layer as torch does, with the limits."""
        base: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{base}, r_max={self.r_max}, d_max={self.d_max}"


@torch.fx.wrap
def _renorm_forward(layer: _BatchRenorm, x: Tensor) -> Tensor:
    """One node to symbolic tracing, which reads the layer's mode when it runs."""
    check_dims(x, layer._dims)
    return layer._train(x) if layer.training else layer._infer(x)


class BatchRenorm1d(_BatchRenorm):
    """Batch renormalisation over (N, C) or (N, C, L).

    Example:
        >>> BatchRenorm1d(3)(torch.randn(4, 3)).shape
        torch.Size([4, 3])
    """

    _dims = (2, 3)


class BatchRenorm2d(_BatchRenorm):
    """Batch renormalisation over (N, C, H, W)."""

    _dims = (4,)


class BatchRenorm3d(_BatchRenorm):
    """Batch renormalisation over (N, C, D, H, W)."""

    _dims = (5,)


_ALIKE: dict[type, type] = {
    nn.BatchNorm1d: BatchRenorm1d,
    nn.BatchNorm2d: BatchRenorm2d,
    nn.BatchNorm3d: BatchRenorm3d,
}
registries.enter(_ALIKE, registries.REFUSALS + registries.COUNTS)
