"""Folding batch norms into their neighbours: what a model is at inference, without them."""

from __future__ import annotations

import copy
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from gammabeta.errors import GammabetaError
from gammabeta.surgery.folding.check import check
from gammabeta.surgery.folding.pairs import Pairs
from gammabeta.surgery.folding.report import FoldReport
from gammabeta.surgery.folding.verify import verify
from gammabeta.surgery.report import Entry

M = TypeVar("M", bound=nn.Module)


def fold(model: M, example_inputs: Tensor | tuple[Any, ...] | None = None) -> M:
    r"""Return a copy of a model whose batch norms are folded into its other layers.

    At inference, batch norm is a fixed affine map per channel, so a convolution or linear layer
    beside it can absorb it. With the scale :math:`s = \gamma / \sqrt{v + \epsilon}` and the shift
    :math:`t = \beta - s\,m`, a layer before it gets

    .. math:: W' = s\,W, \qquad b' = s\,b + t,

    and else a layer after it that does not pad with zeros

    .. math:: W' = W s, \qquad b' = b + W t.

    A batch norm with no such neighbour becomes a :class:`ChannelAffine`, y = s·x + t. One without
    fixed statistics, in training mode for instance, stays. Neighbours are found by data flow.

    Shapes: ``m, v, gamma, beta, s, t`` are ``(C,)``. The folded model takes and returns what the
    model does, and keeps its classes, its structure and its own Python forward; at the path of a
    folded batch norm is an ``Identity``, the ``ChannelAffine``, or the activation that it held.

    Precision: everything is computed in float64 and rounded once, to the dtype of the layer.

    Args:
        model: The model, in the modes in which it is to be folded: call ``model.eval()`` first.
            Left unchanged.
        example_inputs: What the model is called with: a tensor or a tuple. If given, the outputs of
            both models are compared, and must agree up to rounding. If not, every layer that
            changes is checked by itself.

    Returns:
        The copy. ``model.gammabeta_report`` lists what each batch norm became, and what was left
        and why; its ``verified`` holds the measured error and its bound.

    Raises:
        GammabetaError: If the model has lazy layers, cannot be copied or fails on the example
            inputs, or if the outputs differ by more than the bound.

    References:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2. arXiv:1712.05877.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> folded = fold(model)
        >>> folded[1], folded.gammabeta_report.done
        (Identity(), [Entry(path='1', what='merged into 0 (Conv2d)')])
        >>> x = torch.randn(2, 3, 9, 9)
        >>> torch.allclose(folded(x), model(x), atol=1e-5)
        True
    """
    folded = _copied(model)
    pairs = Pairs(folded)
    checked = check(pairs.foldings, pairs.affine)
    root: Any = pairs.apply()
    report = FoldReport(*pairs.entries(), verified=checked)
    if example_inputs is not None:
        report.verified = verify(_copied(model), root, example_inputs, pairs.alike())
    if not (report.done or report.left):
        report.left.append(Entry("", "the model holds no batch norm"))
    root.gammabeta_report = report
    return cast("M", root)


def _copied(model: M) -> M:
    if any(map(nn.parameter.is_lazy, (*model.parameters(), *model.buffers()))):
        raise GammabetaError("the model has lazy layers: call it once, then fold it")
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise GammabetaError(f"{type(model).__name__} cannot be copied: {error}") from error
