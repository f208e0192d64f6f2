"""The two pictures of a run: its curves, and who was taken for whom."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from gammabeta.files import write_atomically
from gammabeta.training.events import EpochDone, LossLogged, read_metrics

_BLUE, _ORANGE = "#1f5fa8", "#d9730d"


def plot_curves(metrics: Path, path: Path) -> None:
    """Draw loss and accuracy against epochs from ``metrics.jsonl`` into a PNG."""
    records = read_metrics(metrics)
    epochs = [r for r in records if isinstance(r, EpochDone)]
    if not epochs:
        return
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    _draw_losses(losses, [r for r in records if isinstance(r, LossLogged)], epochs)
    _draw_accuracies(accuracies, epochs)
    _save(figure, path)


def _draw_losses(axes: Axes, steps: list[LossLogged], epochs: list[EpochDone]) -> None:
    rate = epochs[0].step / epochs[0].epoch  # steps an epoch
    x = [r.epoch for r in epochs]
    if steps:
        losses = [r.loss for r in steps]
        at = [r.step / rate for r in steps]
        axes.plot(at, losses, c=_BLUE, alpha=0.35, label="100 batches")
    axes.plot(
        x,
        [r.train_loss for r in epochs],
        "o-",
        c=_BLUE,
        ms=4,
        label="training epoch, as optimised",
    )
    axes.plot(x, [r.test_loss for r in epochs], "s-", c=_ORANGE, ms=4, label="test, eval mode")
    axes.set(xlabel="epoch", ylabel="cross entropy", title="Loss")
    _finish(axes)


def _draw_accuracies(axes: Axes, epochs: list[EpochDone]) -> None:
    x = [r.epoch for r in epochs]
    train = [100 * r.train_accuracy for r in epochs]
    test = [100 * r.test_accuracy for r in epochs]
    axes.plot(x, train, "o-", c=_BLUE, ms=4, label="training, augmented")
    axes.plot(x, test, "s-", c=_ORANGE, ms=4, label="test, eval mode")
    axes.annotate(f"{test[-1]:.2f} %", (x[-1], test[-1]), (0, 7), textcoords="offset points",
                  ha="right", color=_ORANGE)  # fmt: skip
    axes.set(xlabel="epoch", ylabel="%", title="Accuracy")
    axes.margins(y=0.12)
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def plot_confusion(
    confusion: npt.NDArray[np.int64], classes: Sequence[str], title: str, path: Path
) -> None:
    """Draw a confusion matrix as a PNG: rows are true classes, columns what they were called."""
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    size = min(4 + 0.45 * len(classes), 16)
    figure = Figure(figsize=(size, size * 0.9), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, classes)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    if len(classes) <= 20:
        for (i, j), count in np.ndenumerate(confusion):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, str(count), ha="center", va="center", fontsize=8, color=colour)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # class names may hold dollar signs
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))
