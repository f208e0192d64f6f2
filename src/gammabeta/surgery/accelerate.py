"""Making a model that exists faster, in place, and without changing what it computes.

Batch norms get gammabeta's class; where an activation, a sum or a pooling follows, the module that
calls them gets a forward that computes all of it in one call; convolution weights are laid out
channels last. Nothing else of the model changes: modules, names, parameters, hooks, modes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

from gammabeta.errors import GammabetaError
from gammabeta.surgery import check, layout
from gammabeta.surgery.convert import convert_layers
from gammabeta.surgery.report import Entry, Report
from gammabeta.surgery.rewrite import restore, rewrite
from gammabeta.surgery.survey import Survey

M = TypeVar("M", bound=nn.Module)

ALTERNATIVE = 'torch.compile(model, backend="gammabeta") fuses what it finds while the model runs'


def accelerate(model: M, example_inputs: Tensor | tuple[Any, ...] | None = None) -> M:
    """Fuse batch norms with what follows them, in place.

    In each module's own forward, batch norm → [+ residual] → activation → [max pooling] becomes one
    call. The module keeps its children, parameters, hooks and other methods, so an optimizer made
    before goes on, and ``state_dict`` keys stay. Where something is not as it was at the rewriting
    (a hook on a skipped activation, another setting), the original forward runs.
    ``convert(model, to="torch")`` goes back.

    Precision: outputs and gradients equal the original's up to rounding.

    Args:
        model: The model; a single module counts as one.
        example_inputs: What the model is called with: a tensor or a tuple. If given, the outputs in
            evaluation mode before and after are compared. The comparison leaves no trace.

    Returns:
        The model. ``model.gammabeta_report`` lists what was fused, and what was not and why.

    Raises:
        GammabetaError: If the model fails on the example inputs, or if its outputs would change;
            the model is then as it was.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU())
        >>> print(accelerate(model).gammabeta_report)
        done  1: fused BN + relu after 0 (Linear)
    """
    example = None if example_inputs is None else _Example(model, example_inputs)
    report = Report()
    with _unchanged_on_error(model):
        for module in model.modules():
            restore(module)  # of an earlier call: the model may have changed since
        survey = Survey(model)
        if survey.hopeless:
            _leave(survey, report)
        else:
            _fuse(model, survey, report, example)
            _lay_out(model, report, example)
    model.gammabeta_report = report  # type: ignore[assignment]
    return model


@contextmanager
def _unchanged_on_error(model: nn.Module) -> Iterator[None]:
    before = [(module, type(module)) for module in model.modules()]
    try:
        yield
    except BaseException:
        for module, kind in before:
            module.__class__ = kind
        raise


class _Example:
    """What a model is called with, and what it returned then."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self.inputs = inputs
        try:
            self.expected = check.outputs(model, inputs)
        except GammabetaError:
            raise
        except Exception as error:
            raise GammabetaError(f"the model fails on example_inputs: {error}") from error

    def difference(self, model: nn.Module) -> str | None:
        """Return in words what the model does not return as before, or None."""
        try:
            return check.difference(self.expected, check.outputs(model, self.inputs))
        except Exception as error:  # noqa: BLE001 (any code of the user's runs here)
            return f"it fails with: {error}"


def _leave(survey: Survey, report: Report) -> None:
    if not survey.norms:
        report.left.append(Entry("", "the model holds no batch norm"))
    for path, why in survey.untraceable.items():
        report.left.append(Entry(path, f"{why}; {ALTERNATIVE}"))


def _fuse(model: nn.Module, survey: Survey, report: Report, example: _Example | None) -> None:
    for path in survey.norms:
        fused, what = survey.outcome(path)
        if fused:
            report.done.append(Entry(path, what))
        else:
            alone = "BN alone: " if survey.is_plain(path) else ""
            report.left.append(Entry(path, alone + what))
    for module, plan in survey.plans:
        rewrite(module, plan)
    convert_layers(model, "gammabeta", Report())
    wrong = example.difference(model) if example else None
    if wrong:
        raise GammabetaError(
            f"accelerate would change what the model returns ({wrong}), so the model was left as "
            f"it was; {ALTERNATIVE}"
        )


def _lay_out(model: nn.Module, report: Report, example: _Example | None) -> None:
    user = None if example else layout.uses_view(model)
    if user:
        why = f"{user} uses view, which may refuse such tensors; example_inputs would show"
        report.left.append(Entry("", f"not channels last: {why}"))
        return
    undo = layout.channels_last(model)
    wrong = example.difference(model) if example and undo else None
    if wrong:
        for step in undo:
            step()
        report.left.append(Entry("", f"not channels last: {wrong}"))
    elif undo:
        report.done.append(Entry("", f"weights of {len(undo)} convolutions channels last"))
