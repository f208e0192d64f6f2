"""Derivatives of other kinds: numerical, second, and forward-mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call

from gammabeta.testing.behaviours.values import SMALL
from gammabeta.testing.case import Case, find
from gammabeta.testing.registry import behaviour


def _numerically(case: Case, check: Any) -> None:
    """Run torch's check on a tiny float64 input, as a function of x, γ and β."""
    shape = (3, 2, 2, 1, 1)[: case.dims[0]]
    for mode in case.modes:
        layer = case.layer(2, mode, torch.float64)
        x = case.input(shape, mode, torch.float64)
        names, values = (
            zip(*layer.named_parameters(), strict=True) if list(layer.parameters()) else ((), ())
        )
        leaves = [value.detach().clone().requires_grad_() for value in values]

        def call(x: Tensor, *leaves: Tensor, layer: Any = layer, names: Any = names) -> Any:
            return functional_call(layer, dict(zip(names, leaves, strict=True)), (x,))

        check(call, (x, *leaves))


@behaviour("gradcheck passes")
def first(case: Case) -> None:
    """torch.autograd.gradcheck in float64, for x and every parameter."""
    _numerically(case, gradcheck)


@behaviour("gradgradcheck passes")
def second(case: Case) -> None:
    """torch.autograd.gradgradcheck in float64, for x and every parameter."""
    _numerically(case, gradgradcheck)


@behaviour("forward-mode derivatives are right, or refused")
def forward_mode(case: Case) -> None:
    """A RuntimeError or NotImplementedError refuses; a tangent that is missing or wrong fails."""
    shape = SMALL[case.dims[0]]
    for mode in case.modes:
        layer = case.layer(shape[1], mode, torch.float64)
        x, dx = case.input(shape, mode, torch.float64).detach(), case.normal(shape)
        found = find(layer, "weight"), find(layer, "bias")
        weight, bias = (None if t is None else t.detach() for t in found)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, dx)
            want = forward_ad.unpack_dual(case.oracle(layer, dual, weight, bias, mode=mode)).tangent
            try:
                got = forward_ad.unpack_dual(layer(dual)).tangent
            except (RuntimeError, NotImplementedError):
                return
            case.close(torch.zeros_like(x) if got is None else got, want, "the tangent")
