"""How large the gradients are, layer by layer, with batch norm and with batch norm removed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gammabeta.insight.explanation.numbers import brief
from gammabeta.insight.explanation.passes import leaf, run
from gammabeta.norm.act import _BatchNormAct
from gammabeta.probe import is_batch_norm, untouched


def norms(model: nn.Module) -> dict[str, float]:
    """Return ‖∂L/∂W‖ of each convolution and linear layer that has a gradient, by path."""
    return {
        path: float(module.weight.grad.double().norm())
        for path, module in model.named_modules()
        if isinstance(module, _ConvNd | nn.Linear)
        and isinstance(module.weight, Tensor)
        and module.weight.is_leaf
        and module.weight.grad is not None
    }


def without(
    model: nn.Module,
    images: Tensor,
    loss: Callable[[Tensor], Tensor],
    mode: Callable[[nn.Module], None],
) -> tuple[float, dict[str, float]]:
    """Return loss and gradient norms of the same weights with every batch norm left out.

    Activations, poolings and residual sums stay. The model itself is left as it is.

    Args:
        model: The model.
        images: (N, ...).
        loss: From the output to a scalar.
        mode: Puts the model into its training mode.
    """
    with untouched(model):
        mode(model)
        for module in list(model.modules()):
            _leave_out(module)
        value = loss(run(model, leaf(images)))
        value.backward()
        return value.item(), norms(model)


def _leave_out(module: nn.Module) -> None:
    """Give a batch norm a forward that passes its input on; ``untouched`` takes it away again."""
    if isinstance(module, _BatchNormAct):
        epilogue = module.epilogue
        vars(module)["forward"] = lambda input, residual=None: epilogue(input, residual)  # noqa: A006
    elif is_batch_norm(module):
        inner = [c for c in (getattr(module, n, None) for n in ("drop", "act")) if callable(c)]
        vars(module)["forward"] = lambda input: _through(inner, input)  # noqa: A006


def _through(steps: list[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    x = x.clone() if steps else x  # an activation in place must not write into the convolution's
    for step in steps:
        x = step(x)
    return x


def gradients(
    loss: float, with_norms: dict[str, float], other: tuple[float, dict[str, float]]
) -> dict[str, Any] | None:
    """Return the comparison; None if no weight has a gradient."""
    if not with_norms:
        return None
    return {
        "loss": brief(loss),
        "loss_without": brief(other[0]),
        "layers": [
            {"path": path, "with": brief(norm), "without": brief(other[1].get(path, torch.nan))}
            for path, norm in with_norms.items()
        ],
    }
