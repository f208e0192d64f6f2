"""Looking at every batch norm of a model in a forward and a backward pass, and leaving no trace."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _LazyNormBase, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from gammabeta.errors import GammabetaError
from gammabeta.norm.act import _BatchNormAct
from gammabeta.norm.renorm import _BatchRenorm
from gammabeta.probe.seen import Keep, Record, copied
from gammabeta.probe.untouched import untouched
from gammabeta.probe.watch import Watch


@contextmanager
def probe(model: nn.Module, keep: Keep = copied) -> Iterator[Record]:
    """Record what each batch norm sees in the passes run within the block, and restore the model.

    Parameters are stand-ins within the block: read their gradients there, as they are gone after
    it. Layers inside activation checkpointing are recorded once, with the gradients of their second
    run. An exception inside the block passes through after everything is put back.

    Args:
        model: Any module. Mode, buffers, parameters, gradients, hooks, plain attributes and random
            generators are the same bits and objects after the block as before it.
        keep: What to keep of each tensor; a copy by default. See :data:`Keep`.

    Yields:
        The record, which fills as the passes run.

    Raises:
        GammabetaError: If the model holds lazy or scripted modules.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU())
        >>> with probe(model) as record:
        ...     y = model(torch.randn(8, 2))
        ...     y.backward(torch.randn(8, 3))
        >>> seen = record.calls[0]
        >>> seen.path, seen.x.shape, seen.dx.shape
        ('1', torch.Size([8, 3]), torch.Size([8, 3]))
        >>> model[1].num_batches_tracked, model[0].weight.grad
        (tensor(0), None)
    """
    refuse(model)
    watched = list(targets(model))
    record = Record([path for path, _, _ in watched])
    with ExitStack() as stack:
        stack.enter_context(not_compiled())
        stack.enter_context(untouched(model))
        for target in watched:
            for handle in Watch(record, keep, *target).attach():
                stack.callback(handle.remove)
        yield record


def is_batch_norm(module: nn.Module) -> bool:
    """Tell whether a module is a batch norm; batch renorm and instance norm follow other formulas.

    Example:
        >>> is_batch_norm(nn.SyncBatchNorm(3)), is_batch_norm(nn.InstanceNorm1d(3))
        (True, False)
    """
    return isinstance(module, _NormBase) and not isinstance(module, _InstanceNorm | _BatchRenorm)


@contextmanager
def not_compiled() -> Iterator[None]:
    """Run compiled models as they were written: compiled code would not run new hooks."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def refuse(model: nn.Module) -> None:
    """Raise for a model that hides its layers, or has none yet.

    Raises:
        GammabetaError: If the model holds lazy or scripted modules.
    """
    for path, module in model.named_modules():
        where = f"{path or 'the model'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise GammabetaError(f"{where} is scripted, which hides its layers: hand in its source")
        if isinstance(module, _LazyNormBase) or (
            isinstance(module, nn.modules.lazy.LazyModuleMixin)
            and module.has_uninitialized_params()  # type: ignore[misc]
        ):
            raise GammabetaError(f"{where} is lazy: run the model once on a batch, then look at it")


def targets(
    model: nn.Module, wanted: Callable[[nn.Module], bool] = is_batch_norm
) -> Iterator[tuple[str, nn.Module, Any]]:
    """Yield the path, the module to watch, and the batch norm of each.

    The three differ where a ``BatchNormAct`` computes its batch norm in the same call.
    """
    inside = set()
    for path, module in model.named_modules():
        if isinstance(module, _BatchNormAct) and type(module.bn) is module._norm:
            inside.add(id(module.bn))
            yield path, module, module.bn
        elif wanted(module) and id(module) not in inside:
            yield path, module, module
