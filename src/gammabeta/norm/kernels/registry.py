"""Which kernel computes: one signature, several implementations, chosen by name.

Adding one is a module with the two functions of :class:`Kernel` and a line in ``_KERNELS``.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from gammabeta.errors import GammabetaError
from gammabeta.norm.activation import Epilogue
from gammabeta.norm.kernels import cpu, eager


class Running(NamedTuple):
    """Running statistics that a kernel may move itself, in place, and by how much.

    Args:
        mean: (C,), and so is ``var``.
        momentum: Weight of the new batch.
        batches: How many they saw, to be raised by one, or None.
    """

    mean: Tensor
    var: Tensor
    momentum: float
    batches: Tensor | None


class Kernel(Protocol):
    """What a kernel computes for ``x`` of shape (N, C, *). It writes nothing but ``running``."""

    def train(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        eps: float,
        epilogue: Epilogue,
        running: Running | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Normalise with the batch's own statistics.

        Returns:
            The output, differentiable to any order; the batch's mean and its unbiased variance,
            (C,) each, without a gradient, or None if the kernel moved the running ones.
        """

    def infer(
        self,
        x: Tensor,
        mean: Tensor,
        var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        eps: float,
        epilogue: Epilogue,
    ) -> Tensor:
        """Normalise with given statistics, which are constants to the derivative."""


_KERNELS: dict[str, Kernel] = {"eager": eager, "numba": cpu}


def select(
    backend: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    stats: tuple[Tensor, ...] = (),
) -> Kernel:
    """Return the kernel of that name; "auto" is the fastest that serves the call.

    Args:
        backend: "auto" or a name.
        x: As the kernel will be given it, and so are the others.
        weight: Or None.
        bias: Or None.
        residual: Or None.
        stats: Given mean and variance.

    Raises:
        GammabetaError: For a name that is not known, or a kernel that does not serve the call.
    """
    if backend != "auto" and backend not in _KERNELS:
        raise GammabetaError(f"backend is {backend!r}, but must be auto, {', '.join(_KERNELS)}")
    if backend == "eager":
        return eager
    reason = cpu.refusal(x, weight, bias, residual, stats)
    if reason is None:
        return cpu
    if backend == "auto":
        return eager
    raise GammabetaError(f'backend={backend!r} cannot serve this call: {reason}; use "auto"')
