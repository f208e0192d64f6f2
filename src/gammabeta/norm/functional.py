"""The functional form of batch norm: the one door through which every layer computes."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gammabeta.errors import GammabetaError
from gammabeta.norm.activation import Epilogue
from gammabeta.norm.kernels.registry import Running, select
from gammabeta.norm.updates import moved

PLAIN = Epilogue()


class OneValueError(GammabetaError, ValueError):
    """A channel has a single value in training, so its variance says nothing."""


class Stats(NamedTuple):
    """Running statistics, (C,) each."""

    running_mean: Tensor
    running_var: Tensor


def batch_norm(
    input: Tensor,  # noqa: A002 (torch's name)
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    approximate: str = "none",
    pool: int | None = None,
    virtual_batch_size: int | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Normalise each channel, then scale, shift, add, activate and pool.

    .. math:: y = \mathrm{pool}(\mathrm{act}(\gamma (x - \mu) / \sqrt{v + \epsilon} + \beta + r))

    In training, :math:`\mu` and :math:`v` (biased) are the batch's own, and the running statistics
    are moved towards them in place, with the unbiased variance; else the running ones are used.

    Shapes: ``input`` and ``residual`` are (N, C, *) with two to five axes, parameters and
    statistics (C,). The output is as ``input``, or halved in its last two axes by ``pool``.

    Precision: the output has the input's dtype. With bfloat16 or float16 data, parameters and
    statistics may stay float32.

    Args:
        input: The data.
        running_mean: Running mean, or None.
        running_var: Running variance, or None.
        weight: γ, or None for one.
        bias: β, or None for zero.
        training: Whether to use the batch's own statistics; without running ones they always are.
        momentum: Weight of the new batch in the running statistics, a number or a tensor of one.
        eps: Added to the variance, above zero.
        residual: Added before the activation.
        activation: "relu", "relu6", "leaky_relu", "gelu", "silu", "hardswish" or None.
        negative_slope: Of "leaky_relu".
        approximate: Of "gelu", "none" or "tanh".
        pool: Max pooling: 2 (2x2, stride 2), 3 (3x3, stride 2, padding 1) or None.
        virtual_batch_size: In training, normalise parts of this many samples apart (ghost batch
            norm, Hoffer et al. 2017, arXiv:1705.08741). A last part with fewer than two values a
            channel joins the part before it.
        backend: "auto", or a kernel by name.

    Returns:
        The output.

    Raises:
        OneValueError: In training with one value per channel; also a ``ValueError``, as in torch.
        GammabetaError: For an unknown activation, pool or backend.
        RuntimeError: For tensors of the wrong size, as in torch.

    References:
        Ioffe & Szegedy, "Batch Normalization", ICML 2015, algorithms 1 and 2. arXiv:1502.03167.

    Example:
        >>> x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
        >>> batch_norm(x, None, None, training=True).squeeze()
        tensor([-1.3416, -0.4472,  0.4472,  1.3416])
    """
    y, _ = normalize(
        input,
        _stats(running_mean, running_var),
        weight,
        bias,
        training,
        momentum,
        eps,
        residual=residual,
        epilogue=Epilogue(activation, negative_slope, approximate, pool),
        virtual_batch_size=virtual_batch_size,
        backend=backend,
    )
    return y


def batch_norm_and_stats(
    input: Tensor,  # noqa: A002 (torch's name)
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    training: bool = True,
    **options: Any,
) -> tuple[Tensor, Stats | None]:
    """Do what :func:`batch_norm` does, but return the new statistics instead of writing them.

    For ``torch.func``: ``grad`` and ``vmap`` refuse to have a buffer written inside them.

    Args:
        input: As for :func:`batch_norm`, and so are all others.
        running_mean: Left as it is.
        running_var: Left as it is.
        weight: γ, or None for one.
        bias: β, or None for zero.
        training: Whether to use the batch's own statistics.
        options: The other arguments of :func:`batch_norm`, by name.

    Returns:
        The output, and the statistics after this batch (None where none were given).

    Example:
        >>> x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
        >>> _, stats = batch_norm_and_stats(x, torch.zeros(1), torch.ones(1))
        >>> stats.running_mean
        tensor([0.2500])
    """
    epilogue = Epilogue(**{name: options.pop(name) for name in _EPILOGUE_NAMES if name in options})
    return normalize(
        input,
        _stats(running_mean, running_var),
        weight,
        bias,
        training,
        options.pop("momentum", 0.1),
        options.pop("eps", 1e-5),
        epilogue=epilogue,
        write=False,
        **options,
    )


_EPILOGUE_NAMES = ("activation", "negative_slope", "approximate", "pool")


def normalize(
    x: Tensor,
    stats: Stats | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float | Tensor,
    eps: float,
    *,
    residual: Tensor | None = None,
    epilogue: Epilogue = PLAIN,
    virtual_batch_size: int | None = None,
    backend: str = "auto",
    write: bool = True,
    alike: bool = False,
    count: Tensor | None = None,
) -> tuple[Tensor, Stats | None]:
    """Do the work of :func:`batch_norm`, whose arguments these are but for six.

    ``x`` is its input; ``stats`` are the running statistics (in training, None leaves nothing to
    update); ``epilogue`` is what follows; ``write`` tells whether new statistics are written in
    place or only returned; ``alike`` whether ghost batches weigh alike in them; ``count`` is raised
    by one if they are written.
    """
    _check_shapes(x, stats, epilogue, virtual_batch_size)
    if stats is not None and not training:
        kernel = select(backend, x, weight, bias, residual, stats)
        return kernel.infer(x, *stats, weight, bias, residual, eps, epilogue), stats
    _check_values(x, virtual_batch_size if training else None)
    if virtual_batch_size is None or not training or virtual_batch_size >= x.shape[0]:
        running = None
        if stats is not None and write and isinstance(momentum, float):
            running = Running(*stats, momentum, count)
        kernel = select(backend, x, weight, bias, residual)
        y, mean, var = kernel.train(x, weight, bias, residual, eps, epilogue, running)
        if mean is None or var is None:  # moved by the kernel
            return y, stats
        means, variances = [mean], [var]
    else:
        parts = [
            select(backend, part, weight, bias, added).train(
                part, weight, bias, added, eps, epilogue
            )
            for part, added in _parts(x, residual, virtual_batch_size)
        ]
        y = torch.cat([part for part, _, _ in parts])
        means = [mean for _, mean, _ in parts if mean is not None]
        variances = [var for _, _, var in parts if var is not None]
    if stats is None or x.numel() == 0:
        return y, stats
    if count is not None:
        count.add_(1)
    with torch.no_grad():
        new = Stats(
            moved(stats.running_mean, means, momentum, in_place=write, alike=alike),
            moved(stats.running_var, variances, momentum, in_place=write, alike=alike),
        )
    return y, new


def _stats(mean: Tensor | None, var: Tensor | None) -> Stats | None:
    if (mean is None) != (var is None):
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    return None if mean is None or var is None else Stats(mean, var)


def _parts(
    x: Tensor, residual: Tensor | None, virtual_batch_size: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Cut the batch into ghost batches, each with at least two values a channel."""
    count = x.shape[0]
    values = x[0, 0].numel()
    starts = list(range(0, count, virtual_batch_size))
    if (count - starts[-1]) * values < 2:
        starts.pop()
    for start, stop in zip(starts, [*starts[1:], count], strict=True):
        yield x[start:stop], None if residual is None else residual[start:stop]


def _check_shapes(
    x: Tensor,
    stats: Stats | None,
    epilogue: Epilogue,
    virtual_batch_size: int | None,
) -> None:
    """Refuse what does not fit together, in torch's words where torch has any."""
    if x.dim() < 2:
        raise ValueError(f"expected at least 2D input (got {x.dim()}D input)")
    if torch._C._get_tracing_state():
        return  # sizes are values there, and comparing them would be recorded as a warning
    if epilogue.pool is not None and x.dim() != 4:
        raise GammabetaError(f"pool needs (N, C, H, W), but the input is {tuple(x.shape)}")
    if virtual_batch_size is not None and not (
        isinstance(virtual_batch_size, int) and virtual_batch_size > 0
    ):
        raise GammabetaError(f"virtual_batch_size is {virtual_batch_size}, but must be 1 or more")
    for name, tensor in zip(Stats._fields, stats or (), strict=False):
        if tensor.numel() != x.shape[1]:
            raise RuntimeError(f"{name} should contain {x.shape[1]} elements not {tensor.numel()}")


def _check_values(x: Tensor, virtual_batch_size: int | None) -> None:
    values = x.numel() // max(x.shape[1], 1)
    if values == 1 or (
        virtual_batch_size is not None and values == x.shape[0] > virtual_batch_size == 1
    ):
        raise OneValueError(
            f"Expected more than 1 value per channel when training, got input size {x.size()}"
            f"{_calling_layer()}: one value is its own mean. Use batches of at least 2 (a "
            "DataLoader's drop_last=True), or eval() or gammabeta.freeze() to use the running "
            "statistics, or a norm without batch statistics such as GroupNorm"
        )


def _calling_layer() -> str:
    """Name the layer that is running and its path in the outermost module, for an error."""
    callers = (frame.f_locals.get("self") for frame, _ in traceback.walk_stack(None))
    modules = [caller for caller in callers if isinstance(caller, nn.Module)]
    if not modules:
        return ""
    layer, root = modules[0], modules[-1]
    path = next((name for name, module in root.named_modules() if module is layer), "")
    kind = type(layer).__name__
    return f" in layer {path!r} ({kind})" if path else f" in {kind}"
