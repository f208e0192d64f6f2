"""Batch norm with what follows it: activation, residual add and pooling in one call.

A ``BatchNormAct`` holds a batch norm rather than being one. Tools that replace, freeze or fold
what they take for a batch norm (``convert_sync_batchnorm``, timm's ``freeze_batch_norm_2d``) know
nothing of an activation, and would drop it in silence from a subclass; here they find the plain
layer inside, and the activation stays. ``fuse_conv_bn_eval`` handed the whole fails, naming the
attribute it misses. The state_dict has the keys of a plain batch norm all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from gammabeta.errors import GammabetaError
from gammabeta.norm.activation import Epilogue
from gammabeta.norm.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d

_INNER = "bn."


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

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:  # noqa: A002
        """Return the activated output for an input and a residual of the same shape."""
        bn = self.bn
        if type(bn) is self._norm and not _has_hooks(bn):
            return bn.forward_with(input, residual, self.epilogue)
        return self.epilogue(bn(input), residual)

    def extra_repr(self) -> str:
        """Name what follows the batch norm."""
        return self.epilogue.describe()

    def state_dict(self, *args: Any, prefix: str = "", **options: Any) -> Any:
        """Return the state under a plain batch norm's keys."""
        state = super().state_dict(*args, prefix=prefix, **options)
        inner = prefix + _INNER
        for key in [key for key in state if key.startswith(inner)]:
            state[prefix + key.removeprefix(inner)] = state.pop(key)
        return state

    def _fqn_modifiers(self) -> dict[str, str]:
        """Tell torch.distributed.checkpoint where the keys of the state_dict lead."""
        names = [*self.bn._parameters, *self.bn._buffers]
        return dict.fromkeys(names, _INNER.removesuffix("."))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Mapping[str, Any], *args: Any
    ) -> None:
        own = [key for key in state_dict if key.startswith(prefix)]
        for key in own:
            name = key.removeprefix(prefix)
            if "." not in name:
                state_dict[prefix + _INNER + name] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


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
