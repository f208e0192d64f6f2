"""The oracle of the norm tests, and the assertion that compares a subject with it.

The oracle is batch norm written out with ``var_mean`` in float64, differentiated by autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SHAPES = {
    "N,C": (8, 4),
    "two-samples": (2, 1),
    "N,C,L-odd": (5, 3, 7),
    "one-sample": (1, 3, 4, 2),
    "N,C,H,W": (4, 3, 5, 7),
    "N,C,D,H,W": (2, 3, 2, 3, 2),
}
ACTIVATIONS: dict[str, tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = {
    "none": ({"activation": None}, lambda z: z),
    "relu": ({"activation": "relu"}, F.relu),
    "relu6": ({"activation": "relu6"}, F.relu6),
    "leaky_relu": ({"activation": "leaky_relu"}, F.leaky_relu),
    "leaky_relu-slope": (
        {"activation": "leaky_relu", "negative_slope": 0.3},
        lambda z: F.leaky_relu(z, 0.3),
    ),
    "gelu": ({"activation": "gelu"}, F.gelu),
    "gelu-tanh": (
        {"activation": "gelu", "approximate": "tanh"},
        lambda z: F.gelu(z, approximate="tanh"),
    ),
    "silu": ({"activation": "silu"}, F.silu),
    "hardswish": ({"activation": "hardswish"}, F.hardswish),
}
POOLS = {2: (2, 2, 0), 3: (3, 2, 1)}
TOLERANCES = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-10},
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 3e-2},
    torch.float16: {"rtol": 4e-3, "atol": 4e-3},
}


def generator(seed: int = 0) -> torch.Generator:
    """A private source of randomness."""
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal values that depend on the seed alone."""
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def data(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Tensor]:
    """An input with a mean of its own, and γ and β with both signs."""
    c = shape[1]
    return {
        "x": (randn(*shape, seed=seed, dtype=torch.float64) * 1.5 + 0.3).to(dtype),
        "weight": (randn(c, seed=seed + 1, dtype=torch.float64) + 0.2).to(dtype),
        "bias": randn(c, seed=seed + 2, dtype=dtype),
    }


def running(channels: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Running statistics that no fresh layer has."""
    mean = randn(channels, seed=7, dtype=dtype)
    return mean, randn(channels, seed=8, dtype=dtype).square() + 0.5


def fill(layer: Any, seed: int = 3) -> Any:
    """Give γ, β and the running statistics values that are not the defaults."""
    tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    with torch.no_grad():
        for i, (name, tensor) in enumerate(sorted(tensors.items())):
            if tensor.is_floating_point():
                values = randn(*tensor.shape, seed=seed + i, dtype=tensor.dtype)
                tensor.copy_(values.square() + 0.5 if name.endswith("running_var") else values)
    return layer


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.dim() - 2))


def reference(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    stats: tuple[Tensor, Tensor] | None = None,
    eps: float = 1e-5,
    act: Callable[[Tensor], Tensor] = lambda z: z,
    pool: int | None = None,
) -> Tensor:
    """Batch norm in the batch's statistics, or in the given ones, and what follows."""
    if stats is None:
        var, mean = torch.var_mean(x, [0, *range(2, x.dim())], correction=0)
    else:
        mean, var = (s.to(x.dtype) for s in stats)
    y = (x - per_channel(mean, x)) / per_channel((var + eps).sqrt(), x)
    if weight is not None:
        y = y * per_channel(weight, x)
    if bias is not None:
        y = y + per_channel(bias, x)
    if residual is not None:
        y = y + residual
    y = act(y)
    return y if pool is None else F.max_pool2d(y, *POOLS[pool])


def with_gradients(
    function: Callable[..., Tensor], inputs: dict[str, Tensor], seed: int = 99
) -> dict[str, Tensor]:
    """The output and, under ``d<name>``, each input's gradient for a random cotangent."""
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    y = function(**leaves)
    dy = randn(*y.shape, seed=seed, dtype=torch.float64).to(y.dtype)
    grads = torch.autograd.grad(y, list(leaves.values()), dy)
    return {"y": y.detach(), **{f"d{n}": g for n, g in zip(leaves, grads, strict=True)}}


def assert_matches(
    subject: Callable[..., Tensor],
    expected: Callable[..., Tensor],
    inputs: dict[str, Tensor],
    **tolerances: float,
) -> None:
    """Compare output and every gradient with those of the oracle, which works in float64."""
    got = with_gradients(subject, inputs)
    want = with_gradients(expected, {name: t.double() for name, t in inputs.items()})
    dtype = inputs["x"].dtype
    assert got["y"].dtype == dtype, f"y is {got['y'].dtype}, not {dtype}"
    assert got["y"].shape == want["y"].shape
    tolerances = tolerances or TOLERANCES[dtype]
    for name, tensor in got.items():
        size = max(1.0, float(want[name].abs().max())) if want[name].numel() else 1.0
        torch.testing.assert_close(
            tensor.double() / size,
            want[name] / size,
            msg=lambda message, name=name: f"{name}: {message}",
            equal_nan=True,
            **tolerances,
        )


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Compare two sets of tensors bit by bit; NaN equals NaN."""
    assert list(got) == list(want)
    for name, tensor in got.items():
        torch.testing.assert_close(
            tensor,
            want[name],
            rtol=0,
            atol=0,
            equal_nan=True,
            msg=lambda message, name=name: f"{name}: {message}",
        )
