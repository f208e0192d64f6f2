"""Batch norm with what follows it: activation, residual add and pooling in one call.

A ``BatchNormAct`` holds a batch norm rather than being one. Tools that replace, freeze or fold
what they take for a batch norm (``convert_sync_batchnorm``, timm's ``freeze_batch_norm_2d``) know
nothing of an activation, and would drop it in silence from a subclass; here they find the plain
layer inside, and the activation stays. What a batch norm is read and set by (``weight``, ``eps``,
``momentum``, ...) is there on the whole too, but for the running statistics: ``fuse_conv_bn_eval``
handed the whole fails, naming them. The state_dict has the keys of what is inside by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX, _has_any_global_hook

from gammabeta.errors import GammabetaError
from gammabeta.norm.activation import Epilogue
from gammabeta.norm.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d

_STATISTICS = frozenset({"running_mean", "running_var"})


class _Shared(property):
    """An attribute of the batch norm that the whole offers as its own."""

    def __init__(self, name: str) -> None:
        super().__init__(
            lambda layer: getattr(layer.bn, name),
            lambda layer, value: setattr(layer.bn, name, value),
            doc=f"The batch norm's ``{name}``.",
        )


class _BatchNormAct(nn.Module):
    """``pool(activation(BN(x) + residual))``; the batch norm is the child ``bn``.

    Args:
        num_features: Channels C; this and the next are the batch norm's.
        args: ``eps, momentum, affine, track_running_stats, device, dtype``.
        activation: "relu", "relu6", "leaky_relu", "gelu", "silu", "hardswish" or None.
        negative_slope: Of "leaky_relu".
        approximate: Of "gelu", "none" or "tanh".
        pool: In two dimensions: 2 (2x2, stride 2), 3 (3x3, stride 2, padding 1) or None.
        options: ``bias``, ``virtual_batch_size``, ``backend``.

    Raises:
        GammabetaError: For an unknown activation, or a pooling in other than two dimensions.
    """

    _norm: type[BatchNorm1d | BatchNorm2d | BatchNorm3d]
    _version = 2  # that of the batch norm whose keys these are

    def __init__(
        self,
        num_features: int,
        *args: Any,
        activation: str | None = "relu",
        negative_slope: float = 0.01,
        approximate: str = "none",
        pool: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.epilogue = Epilogue(activation, negative_slope, approximate, pool)
        if pool is not None and self._norm is not BatchNorm2d:
            raise GammabetaError(f"{type(self).__name__} has no pooling; BatchNormAct2d has")
        self.bn = self._norm(num_features, *args, **options)
        self.register_state_dict_post_hook(_drop_inner)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_drop_inner_from_errors)  # type: ignore[no-untyped-call]

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:  # noqa: A002
        """Return the activated output for an input and a residual of the same shape."""
        bn: Any = self._modules["bn"]
        if type(bn) is self._norm and not _has_hooks(bn):
            return bn.forward_with(input, residual, self.epilogue)
        return self.epilogue(bn(input), residual)

    def extra_repr(self) -> str:
        """Name what follows the batch norm."""
        return self.epilogue.describe()

    weight = _Shared("weight")
    bias = _Shared("bias")
    num_batches_tracked = _Shared("num_batches_tracked")
    eps = _Shared("eps")
    momentum = _Shared("momentum")
    num_features = _Shared("num_features")
    affine = _Shared("affine")
    track_running_stats = _Shared("track_running_stats")

    def __getattr__(self, name: str) -> Any:
        if name in _STATISTICS:
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}: what folds by it would "
                f"drop what follows; its batch norm has, use .bn.{name}"
            )
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _STATISTICS or isinstance(getattr(type(self), name, None), _Shared):
            setattr(self.bn, name, value)  # torch would keep a tensor here as well
        else:
            super().__setattr__(name, value)

    def _fqn_modifiers(self) -> dict[str, str]:
        """Tell torch.distributed.checkpoint where the keys of the state_dict lead."""
        inside = set().union(*map(_names, self.bn.modules()))  # a wrapper may hide its own name
        return dict.fromkeys(inside - _own(self), "bn")

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name = key.removeprefix(prefix)
            if not _stays(self, name) and f"{prefix}bn.{name}" not in state_dict:
                state_dict[f"{prefix}bn.{name}"] = state_dict.pop(key)
        self._loading = prefix, error_msgs
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _drop_inner(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Give a state_dict just made the keys that the batch norm would have by itself."""
    inner = f"{prefix}bn."
    for key in [key for key in state if key.startswith(inner)]:
        name = key.removeprefix(inner)
        if name.partition(".")[0] not in _own(module):
            state[prefix + name] = state.pop(key)


def _drop_inner_from_errors(module: Any, wrong: Any) -> None:
    """Name keys that did not load as they are in the dict that they were to come from."""
    prefix, messages = module.__dict__.pop("_loading", (None, None))
    if prefix is None:
        return
    inner = re.compile(rf"(?<![\w.]){re.escape(prefix)}bn\.")
    for texts in (wrong.missing_keys, wrong.unexpected_keys, messages):
        texts[:] = [inner.sub(prefix, text) for text in texts]


def _stays(module: Any, name: str) -> bool:
    """Tell whether a key is not of the batch norm, or says itself that it is."""
    first = name.partition(".")[0]
    if first == "bn":
        return first not in _names(module.bn)
    return first in _own(module)


def _own(module: nn.Module) -> set[str]:
    """Return what begins the keys that a subclass may have added."""
    return _names(module) - {"bn"}


def _names(module: nn.Module) -> set[str]:
    """Return what the keys of a module's state begin with."""
    names = {*module._parameters, *module._buffers, *module._modules}
    extra = type(module).get_extra_state is not nn.Module.get_extra_state
    return names | {_EXTRA_STATE_KEY_SUFFIX} if extra else names


def _has_hooks(module: nn.Module) -> bool:
    """Tell whether calling the module does more than its forward."""
    return bool(
        "forward" in vars(module)
        or _has_any_global_hook()
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


class BatchNormAct1d(_BatchNormAct):
    """Batch norm and activation over (N, C) or (N, C, L).

    Example:
        >>> import torch
        >>> bool((BatchNormAct1d(3)(torch.randn(4, 3)) >= 0).all())
        True
    """

    _norm = BatchNorm1d


class BatchNormAct2d(_BatchNormAct):
    """Batch norm, activation and max pooling over (N, C, H, W).

    Example:
        >>> import torch
        >>> layer = BatchNormAct2d(3, activation="relu", pool=2)
        >>> layer(torch.randn(4, 3, 8, 8)).shape
        torch.Size([4, 3, 4, 4])
        >>> list(layer.state_dict())
        ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    """

    _norm = BatchNorm2d


class BatchNormAct3d(_BatchNormAct):
    """Batch norm and activation over (N, C, D, H, W).

    Example:
        >>> import torch
        >>> BatchNormAct3d(3, activation="silu")(torch.randn(4, 3, 2, 5, 5)).shape
        torch.Size([4, 3, 2, 5, 5])
    """

    _norm = BatchNorm3d
