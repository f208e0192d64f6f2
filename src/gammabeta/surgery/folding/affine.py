"""What a folded batch norm leaves behind: a scale and a shift a channel, and what followed it.

At inference a batch norm is y = s·x + t with constants. Where no convolution or linear layer can
take them, :class:`ChannelAffine` holds them; :class:`Activate` is what a ``BatchNormAct`` does
besides normalising.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gammabeta.norm.activation import Epilogue
from gammabeta.norm.kernels.eager import per_channel


class ChannelAffine(nn.Module):
    """Compute ``weight · x + bias`` for each channel.

    Shapes: x and the output are (N, C, *) with any number of trailing axes.

    Precision: one multiplication and one addition a value, in float32 for 16-bit inputs, rounded
    once to x's dtype. ``weight`` and ``bias`` are float32 beside 16-bit inputs, as torch keeps the
    two inside its batch norm: a shift far from zero would lose its digits in 16 bits.

    How it is computed depends on where: eagerly by torch's batch norm kernel with mean 0 and
    variance 1, which is the fastest pass over memory that torch has for it, or by ``addcmul``,
    faster still if channels are last in memory; and by plain arithmetic in a graph that is
    compiled or exported, so that no batch norm is left in it.

    Args:
        weight: (C,), the scale.
        bias: (C,), the shift.

    Example:
        >>> layer = ChannelAffine(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0]))
        >>> layer(torch.ones(1, 2, 1)).flatten().tolist()
        [1.0, 3.0]
    """

    _zero: Tensor
    _one: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)
        # Not persistent: they are constants of the kernel, and no state of the model's.
        self.register_buffer("_zero", torch.zeros_like(weight), persistent=False)
        self.register_buffer("_one", torch.ones_like(weight), persistent=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Return the input scaled and shifted, in its own shape and dtype."""
        return _affine(input, self.weight, self.bias, self._zero, self._one)

    def extra_repr(self) -> str:
        """Name the number of channels."""
        return str(len(self.weight))


@torch.fx.wrap
def _affine(x: Tensor, weight: Tensor, bias: Tensor, zero: Tensor, one: Tensor) -> Tensor:
    """One node to symbolic tracing, which knows no rank."""
    alike = x.dtype == weight.dtype
    if _in_a_graph():
        wide = x if alike else x.to(weight.dtype)
        y = wide * per_channel(weight, x) + per_channel(bias, x)
        return y if alike else y.to(x.dtype)
    if alike and x.shape[1] == len(weight) > 1 and x.stride(1) == 1:
        return torch.addcmul(per_channel(bias, x), x, per_channel(weight, x))
    # y = (x - 0) / sqrt(1 + 0) * weight + bias, and the kernel multiplies and adds no more than so
    return F.batch_norm(x, zero, one, weight, bias, False, 0.0, 0.0)


def _in_a_graph() -> bool:
    """Tell whether the call is being captured for another runtime."""
    recording: bool = torch._C._get_tracing_state() is not None  # torch.jit.trace
    return recording or torch.compiler.is_compiling() or torch.compiler.is_exporting()


class Activate(nn.Module):
    """What is left of a ``BatchNormAct``: ``pool(activation(affine(x) + residual))``.

    Args:
        epilogue: Activation and pooling.
        affine: The batch norm's scale and shift, if no neighbour took them.

    Example:
        >>> Activate(Epilogue("relu"))(torch.tensor([[-1.0, 1.0]]), torch.ones(1, 2))
        tensor([[0., 2.]])
    """

    def __init__(self, epilogue: Epilogue, affine: ChannelAffine | None = None) -> None:
        super().__init__()
        self.epilogue = epilogue
        self.affine = affine

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:  # noqa: A002
        """Return the activated output for an input and a residual of the same shape."""
        y = input if self.affine is None else self.affine(input)
        return self.epilogue(y, residual)

    def extra_repr(self) -> str:
        """Name activation and pooling."""
        return self.epilogue.describe()
