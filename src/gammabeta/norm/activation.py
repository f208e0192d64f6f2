"""What may follow a batch norm in the same call: an activation and a pooling, by name.

An :class:`Epilogue` is a plain value that every kernel receives; the names and parameters are
those of ``torch.nn.functional``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from gammabeta.errors import GammabetaError

ACTIVATIONS = ("relu", "relu6", "leaky_relu", "gelu", "silu", "hardswish")
POOLS = {2: (2, 2, 0), 3: (3, 2, 1)}
"""Max pooling by its window: (kernel_size, stride, padding)."""


@dataclass(frozen=True)
class Epilogue:
    """What happens to BN's output: ``pool(activation(y + residual))``.

    Args:
        activation: One of ``ACTIVATIONS``, or None.
        negative_slope: Of "leaky_relu".
        approximate: Of "gelu": "none" or "tanh".
        pool: None, or the window of a max pooling over the last two axes: 2 (2x2, stride 2) or
            3 (3x3, stride 2, padding 1).

    Raises:
        GammabetaError: For a name or a window that is not known; the message lists those that are.
    """

    activation: str | None = None
    negative_slope: float = 0.01
    approximate: str = "none"
    pool: int | None = None

    def __post_init__(self) -> None:
        if self.activation is not None and self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise GammabetaError(f"activation is {self.activation!r}, but must be None, {known}")
        if self.approximate not in {"none", "tanh"}:
            raise GammabetaError(f"approximate is {self.approximate!r}, but must be none or tanh")
        if self.pool is not None and self.pool not in POOLS:
            raise GammabetaError(f"pool is {self.pool!r}, but must be None, 2 or 3")

    def __call__(self, y: Tensor, residual: Tensor | None = None) -> Tensor:
        """Apply it with torch's own operators.

        Args:
            y: (N, C, *).
            residual: Of y's shape, added before the activation.
        """
        if residual is not None:
            if residual.shape != y.shape:
                raise GammabetaError(
                    f"residual is {tuple(residual.shape)}, but must be {tuple(y.shape)}"
                )
            y = y + residual
        if self.pool is None:
            return self._activate(y)
        if self.activation in {"relu", "relu6"}:  # monotone: the maximum commutes, to the bit
            return self._activate(_max_pool(y, self.pool))
        return _max_pool(self._activate(y), self.pool)

    def pool_only(self, y: Tensor) -> Tensor:
        """Apply the pooling to what is activated already."""
        return y if self.pool is None else _max_pool(y, self.pool)

    def _activate(self, y: Tensor) -> Tensor:
        if self.activation is None:
            return y
        if self.activation == "leaky_relu":
            return F.leaky_relu(y, self.negative_slope)
        if self.activation == "gelu":
            return F.gelu(y, approximate=self.approximate)
        activated: Tensor = getattr(F, self.activation)(y)
        return activated

    def describe(self) -> str:
        """Return the settings that differ from "nothing", for a module's repr."""
        parts = [f"activation={self.activation}"]
        if self.activation == "leaky_relu":
            parts.append(f"negative_slope={self.negative_slope}")
        if self.activation == "gelu" and self.approximate != "none":
            parts.append(f"approximate={self.approximate}")
        if self.pool:
            parts.append(f"pool={self.pool}")
        return ", ".join(parts)


def _max_pool(y: Tensor, pool: int) -> Tensor:
    kernel_size, stride, padding = POOLS[pool]
    return F.max_pool2d(y, kernel_size, stride, padding)
