"""What torch's tools do with a layer: copying, saving, hooks, tracing and conversion."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.testing.behaviours.values import SMALL
from gammabeta.testing.case import Case, state
from gammabeta.testing.registry import behaviour

TWINS: dict[int, type[nn.Module]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}


def _independent(case: Case, clone: Callable[[nn.Module], nn.Module]) -> None:
    """See that a clone does a step as the layer does, and leaves the layer alone."""
    shape = SMALL[case.dims[0]]
    mode = case.modes[0]
    layer, x, dy = case.layer(shape[1], mode), case.input(shape, mode), case.normal(shape)
    other, before = clone(layer), state(layer)
    got = case.step(other, x, dy)
    case.all_close(state(layer), before)
    case.all_close(got, case.step(layer, x, dy))
    case.all_close(state(other), state(layer))


@behaviour("deepcopy gives an independent equal")
def copying(case: Case) -> None:
    """A step of the copy does not move the original."""
    _independent(case, copy.deepcopy)


@behaviour("pickle gives an independent equal")
def pickling(case: Case) -> None:
    """The class must be importable by its name, as for any pickle."""
    _independent(case, lambda layer: pickle.loads(pickle.dumps(layer)))  # noqa: S301 (our own)


@behaviour("state_dict loads strictly into torch.nn's twin and back")
def states(case: Case) -> None:
    """Through torch.save and a weights-only torch.load."""
    shape = SMALL[case.dims[0]]
    layer, twin = case.layer(shape[1], "eval"), TWINS[case.dims[0]](shape[1]).eval()
    x = case.input(shape, "eval")
    twin.load_state_dict(_saved(layer), strict=True)
    want = twin(x).relu() if case.relu else twin(x)
    case.close(layer(x), want, "the twin's y")
    back = case.layer(shape[1], "eval")
    back.load_state_dict(_saved(twin), strict=True)
    case.close(back(x), want, "y")


def _saved(layer: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@behaviour("forward and backward hooks run, and may replace the output")
def hooks(case: Case) -> None:
    """Each once a step: forward pre-hook, forward hook and full backward hook."""
    shape = SMALL[case.dims[0]]
    layer, x = case.layer(shape[1], case.modes[0]), case.input(shape, case.modes[0])
    ran: list[str] = []
    want = copy.deepcopy(layer)(x) * 2

    def doubles(_module: nn.Module, _args: Any, y: Tensor) -> Tensor:
        ran.append("forward")
        return y * 2

    layer.register_forward_pre_hook(lambda *_: ran.append("pre"))
    layer.register_forward_hook(doubles)
    layer.register_full_backward_hook(lambda *_: ran.append("backward"))
    y = layer(x)
    case.close(y, want, "y")
    y.sum().backward()
    if ran != ["pre", "forward", "backward"]:
        case.fail(f"hooks ran: {', '.join(ran)}")


def _same_in_eval(case: Case, change: Callable[[nn.Module, Tensor], Any]) -> None:
    """Compare a changed model with the original on an input that it has not seen."""
    shape = SMALL[case.dims[0]]
    model = nn.Sequential(case.layer(shape[1], "eval", with_activation=True)).eval()
    seen, x = (case.input(shape, "eval").detach() for _ in range(2))
    want = model(x)
    case.close(change(model, seen)(x), want, "y")


@behaviour("torch.jit.trace keeps eval output")
def jit(case: Case) -> None:
    """Of a Sequential that holds the layer, with its activation if it has one."""
    _same_in_eval(case, lambda model, x: torch.jit.trace(model, x))


@behaviour("torch.export keeps eval output")
def export(case: Case) -> None:
    """Of a Sequential that holds the layer, with its activation if it has one."""
    _same_in_eval(case, lambda model, x: torch.export.export(model, (x,)).module())


@behaviour("torch.fx.symbolic_trace keeps eval output")
def symbolic(case: Case) -> None:
    """Of a Sequential that holds the layer, with its activation if it has one."""
    _same_in_eval(case, lambda model, _: torch.fx.symbolic_trace(model))


@behaviour("convert_sync_batchnorm keeps eval output, or raises")
def sync(case: Case) -> None:
    """What it replaces must not lose an activation or the running statistics in silence."""

    def converted(model: nn.Module, _: Tensor) -> Any:
        try:
            return nn.SyncBatchNorm.convert_sync_batchnorm(model)
        except Exception:  # noqa: BLE001 (any refusal will do)
            return copy.deepcopy(model)

    _same_in_eval(case, converted)
