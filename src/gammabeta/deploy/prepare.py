"""A model as it is to be exported: a copy, in eval mode, of operators that every runtime knows."""

from __future__ import annotations

import copy
from typing import TypeVar, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from gammabeta.errors import GammabetaError
from gammabeta.norm.layers import _Layer
from gammabeta.surgery.convert import convert

M = TypeVar("M", bound=nn.Module)


def evaluating(model: M) -> M:
    """Return a deep copy on the CPU, every module of it in eval mode.

    Wrappers of ``torch.compile`` and of data-parallel training are taken off.

    Raises:
        GammabetaError: If the model cannot be copied, has lazy or half-precision parameters, or a
            batch norm without running statistics.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(2))
        >>> evaluating(model)[0].training, model[0].training
        (False, True)
    """
    model = _unwrapped(model)
    _refuse_lazy(model)
    _refuse_without_statistics(model)
    try:
        copied = copy.deepcopy(model).cpu()
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise GammabetaError(f"{type(model).__name__} cannot be copied: {reason}") from error
    _refuse_other_precision(copied)
    copied.eval()
    for module in copied.modules():
        module.training = False  # a module whose train() does other things is no exception
    return copied


def plain(model: M) -> M:
    """Return a copy with torch's layers where gammabeta's fused ones were: the same function.

    Args:
        model: What :func:`evaluating` returned.

    Example:
        >>> from gammabeta import BatchNormAct1d
        >>> type(plain(BatchNormAct1d(2).eval()).bn).__module__
        'torch.nn.modules.batchnorm'
    """
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, _Layer):
            module.virtual_batch_size = None  # of training only
    return convert(copied, to="torch", inplace=True)


def _unwrapped(model: M) -> M:
    while True:
        inner = getattr(model, "_orig_mod", None)  # torch.compile's
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = cast("M", inner)


def _refuse_lazy(model: nn.Module) -> None:
    if any(map(nn.parameter.is_lazy, (*model.parameters(), *model.buffers()))):
        raise GammabetaError("the model has lazy layers: call it once, then export it")


def _refuse_without_statistics(model: nn.Module) -> None:
    lacking = [
        path or type(module).__name__
        for path, module in model.named_modules()
        if isinstance(module, _NormBase)
        and not isinstance(module, _InstanceNorm)
        and (module.running_mean is None or module.running_var is None)
    ]
    if lacking:
        raise GammabetaError(
            f"no running statistics in {', '.join(lacking)} (track_running_stats=False): such a "
            "layer normalises with its batch in eval mode too, so that an image's class would "
            "depend on its neighbours; give it statistics with track_running_stats=True and "
            "gammabeta.recalibrate"
        )


def _refuse_other_precision(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise GammabetaError(f"{name} is {kind}, but float32 is exported: pass model.float()")
