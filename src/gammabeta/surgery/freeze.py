"""Freezing batch norms so that they stay frozen.

``model.train()`` puts every layer back into training mode, which is how most freezing in the wild
comes undone. A layer frozen here answers ``train()`` itself. Class, parameters, keys and hooks
stay what they are, so it works on torch's layers as on ours; copies and pickles are frozen too.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from gammabeta.errors import GammabetaError

M = TypeVar("M", bound=nn.Module)

_AFFINE = "_gammabeta_frozen_affine"  # which parameters had a gradient before


def freeze(model: M, stats: bool = True, affine: bool = False) -> M:
    """Freeze every batch norm of a model, in place, until :func:`unfreeze`.

    Args:
        model: The model, or a single layer.
        stats: Normalise with the running statistics and never update them, also after
            ``model.train()``.
        affine: Stop the gradient of γ and β.

    Returns:
        The model.

    Raises:
        GammabetaError: If the model holds no batch norm, or one to be frozen has no running
            statistics.

    Example:
        >>> model = freeze(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
        >>> model.train()[1].training
        False
        >>> model[1]
        BatchNorm1d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, \
track_running_stats=True, frozen=stats)
    """
    layers = list(_layers(model))
    if stats:
        _refuse_without_statistics(layers)
    for _, layer in layers:
        if stats:
            layer.__dict__["train"] = partial(_stay_in_eval, layer)
            layer.__dict__["reset_running_stats"] = _keep_statistics
            layer.eval()
        if affine and _AFFINE not in layer.__dict__:
            layer.__dict__[_AFFINE] = [
                name for name, p in layer.named_parameters() if p.requires_grad
            ]
            layer.requires_grad_(False)
        layer.__dict__["extra_repr"] = partial(_frozen_repr, layer)
    return model


def unfreeze(model: M) -> M:
    """Undo :func:`freeze`, in place: layers take the model's mode, gradients are as before.

    Example:
        >>> model = unfreeze(freeze(nn.Sequential(nn.BatchNorm1d(3)), affine=True))
        >>> model[0].training, model[0].weight.requires_grad
        (True, True)
    """
    for _, layer in _layers(model):
        layer.__dict__.pop("reset_running_stats", None)
        if layer.__dict__.pop("train", None) is not None:
            layer.training = model.training if layer is not model else True
        for name in layer.__dict__.pop(_AFFINE, []):
            layer.get_parameter(name).requires_grad_(True)
        layer.__dict__.pop("extra_repr", None)
    return model


def frozen_parts(layer: nn.Module) -> list[str]:
    """Return which parts of a layer are frozen: "stats", "affine", both or none."""
    return [
        name for name, key in (("stats", "train"), ("affine", _AFFINE)) if key in layer.__dict__
    ]


def _layers(model: nn.Module) -> Iterator[tuple[str, _NormBase]]:
    found = [(n, m) for n, m in model.named_modules() if _is_batch_norm(m)]
    if not found:
        raise GammabetaError(f"{type(model).__name__} holds no batch norm to freeze or unfreeze")
    yield from found


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, _NormBase) and not isinstance(
        module, nn.modules.instancenorm._InstanceNorm
    )


def _refuse_without_statistics(layers: list[tuple[str, _NormBase]]) -> None:
    lacking = [name or "the layer" for name, layer in layers if layer.running_mean is None]
    if lacking:
        raise GammabetaError(
            f"no running statistics to freeze in {', '.join(lacking)}: made with "
            "track_running_stats=False, such a layer always uses the batch's; freeze with "
            "stats=False, or train it with statistics"
        )


def _stay_in_eval(layer: nn.Module, mode: bool = True) -> nn.Module:  # noqa: ARG001
    return type(layer).train(layer, False)


def _keep_statistics() -> None:
    """Stand for ``reset_running_stats``, which torch's ``update_bn`` calls on every batch norm."""


def _frozen_repr(layer: nn.Module) -> str:
    return f"{type(layer).extra_repr(layer)}, frozen={'+'.join(frozen_parts(layer))}"
