"""Enters our layers into other libraries' tables of layers that go by the exact class.

Most tools find a batch norm by ``isinstance``, and so find ours. Some look ``type(layer)`` up, and
take what is not there for a layer that needs no care: Opacus would train privately through a batch
norm, which it is to refuse, and thop would count nothing. So ours are entered wherever torch's are.
No library is imported for this; it is done when somebody else does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from operator import attrgetter
from types import ModuleType
from typing import Any

import wrapt
from torch import nn

from gammabeta.errors import GammabetaError

_AO = "torch.ao.quantization"
REFUSALS = (("opacus.validators", "ModuleValidator.VALIDATORS"),)
COUNTS = (("thop.profile", "register_hooks"),)
REPLACEMENTS = (
    ("opacus.validators", "ModuleValidator.FIXERS"),
    (f"{_AO}.quantization_mappings", "DEFAULT_STATIC_QUANT_MODULE_MAPPINGS"),
    (f"{_AO}.fuser_method_mappings", "_DEFAULT_OP_LIST_TO_FUSER_METHOD"),
)
_log = logging.getLogger("gammabeta")


def enter(twins: Mapping[type, type], tables: tuple[tuple[str, str], ...]) -> None:
    """Have what the tables say of torch's classes hold for ours.

    Args:
        twins: Torch's class to ours.
        tables: Each as a module and the name of a table in it, now or when it is imported.
    """
    for home, name in tables:
        wrapt.register_post_import_hook(partial(_enter, twins, name), home)


def _enter(twins: Mapping[type, type], name: str, module: ModuleType) -> None:
    try:
        table: dict[Any, Any] = attrgetter(name)(module)
    except AttributeError:
        _log.warning(
            "%s has no %s and may not know gammabeta's layers; "
            'use convert(model, to="torch") before you give it a model',
            module.__name__,
            name,
        )
        return
    for key, value in list(table.items()):
        if key in twins:
            table[twins[key]] = value
        elif isinstance(key, tuple) and not twins.keys().isdisjoint(key):
            table[tuple(twins.get(kind, kind) for kind in key)] = _given_torchs(value, twins)


def _given_torchs(fuse: Callable[..., Any], twins: Mapping[type, type]) -> Callable[..., Any]:
    """Return torch.ao's way of fusing layers for ours: it asks again for exact classes."""
    back = {ours: torchs for torchs, ours in twins.items()}

    def fuse_ours(is_qat: bool, *layers: nn.Module) -> Any:
        for layer in layers:
            if type(layer) in back:
                _refuse_ghosts(layer)
                layer.__class__ = back[type(layer)]  # they hold the same
        return fuse(is_qat, *layers)

    return fuse_ours


def _refuse_ghosts(layer: Any) -> None:
    if layer.training and layer.virtual_batch_size is not None:
        raise GammabetaError(
            "layers fused for training have no ghost batches; set the batch norm's "
            "virtual_batch_size to None first"
        )
