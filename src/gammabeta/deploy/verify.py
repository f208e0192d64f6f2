"""Whether a file computes what the model computes, by a bound that the model's own noise gives.

The model is run in float32 (y) and, as a copy, in float64 (z). Another order of summation, another
kernel or a folded batch norm gives another sample of the same rounding noise max|y - z|, so with u
the unit roundoff of float32 the largest difference between file and model may be

    8 · max|y - z| + 16 · u · max|y|

where the second term keeps the bound from vanishing where the noise happens to be small. It is
never above max|y| / 100, from where on agreement would say nothing. If the float64 copy cannot run,
the noise is unknown and the bound is 10⁻⁴ · max|y|: more than what a network of some hundred layers
shows. All are taken over all samples, output by output.

The class is the place of the largest logit. Where it differs although the logits agree within the
bound, the model itself is as near to a tie as twice the bound, and the difference says nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gammabeta.deploy.exported import Checked
from gammabeta.errors import GammabetaError

Runner = Callable[[tuple[Tensor, ...]], Sequence[Tensor]]
"""Runs a file on a batch and returns its outputs."""

CHUNK = 128
"""Samples of a batch at most: a thousand at once would need gigabytes of activations."""
SIZES = (1, 3)
"""Batch sizes that are tried besides the example's own."""
UNIT = 2.0**-24
_UNKNOWN, _MOST = 1e-4, 1e-2  # bounds as shares of the largest value


def batches(inputs: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """Yield the example in chunks, then its first rows in batches of other sizes.

    Example:
        >>> [len(x) for (x,) in batches((torch.zeros(130, 3),))]
        [128, 2, 1, 3]
    """
    yield from zip(*(x.split(CHUNK) for x in inputs), strict=True)
    for size in SIZES:
        yield tuple(rows(x, size) for x in inputs)


def rows(x: Tensor, count: int) -> Tensor:
    """Return the first rows, from the beginning again where there are too few.

    Example:
        >>> rows(torch.tensor([1, 2]), 3)
        tensor([1, 2, 1])
    """
    return x[torch.arange(count) % len(x)]


@dataclass
class Expectation:
    """What the model gives for each batch, and how far a file may be from it.

    Args:
        inputs: Each batch.
        outputs: For each batch, the outputs in float32.
        bounds: For each output, how far a file may be from it.
        samples: How many samples the example has.
    """

    inputs: list[tuple[Tensor, ...]] = field(default_factory=list)
    outputs: list[list[Tensor]] = field(default_factory=list)
    bounds: list[float] = field(default_factory=list)
    samples: int = 0


def expect(model: nn.Module, ordinary: nn.Module, inputs: tuple[Tensor, ...]) -> Expectation:
    """Run a model on an example, as it is and in float64.

    Args:
        model: In eval mode.
        ordinary: The same function in torch's own layers.
        inputs: The example, with the batch as each tensor's first axis.

    Raises:
        GammabetaError: If the model fails, or its outputs cannot be compared.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> expect(model, model, (torch.ones(4, 3),)).bounds[0] < 1e-4
        True
    """
    wide = copy.deepcopy(ordinary).double()
    found = Expectation(samples=len(inputs[0]))
    largest: list[float] = []
    noise: list[float] = []
    for batch in batches(inputs):
        outputs = _run_model(model, batch)
        exact = _run_wide(wide, batch)
        largest = _merge(largest, [_magnitude(y) for y in outputs])
        noise = _merge(noise, [_noise(y, exact, i) for i, y in enumerate(outputs)])
        found.inputs.append(batch)
        found.outputs.append(outputs)
    found.bounds = [_bound(n, m) for n, m in zip(noise, largest, strict=True)]
    return found


def compare(expected: Expectation, run: Runner, name: str) -> Checked:
    """Hold a file's outputs against the model's.

    Args:
        expected: What :func:`expect` returned.
        run: Runs the file.
        name: Of the file, for the message.

    Raises:
        GammabetaError: If they differ by more than the bound, in shape, or are not finite.
    """
    errors = [0.0] * len(expected.bounds)
    classified = same = done = 0
    for batch, outputs in zip(expected.inputs, expected.outputs, strict=True):
        got = checked_run(run, batch, outputs, name)
        errors = _merge(errors, [difference(y, z) for y, z in zip(outputs, got, strict=True)])
        if done < expected.samples:  # what follows are the same samples again
            counted, alike = count_classes(outputs, got)
            classified, same, done = classified + counted, same + alike, done + len(batch[0])
    pairs = list(zip(errors, expected.bounds, strict=True))
    worst = max(pairs, key=lambda pair: pair[0] / pair[1] if pair[1] else math.inf * bool(pair[0]))
    if not worst[0] <= worst[1]:
        raise GammabetaError(
            f"{name}: differs from the model by {worst[0]:.3g} on the example, and the bound is "
            f"{worst[1]:.3g}; no file was left"
        )
    return Checked(
        images=expected.samples,
        batch_sizes=tuple(dict.fromkeys(len(batch[0]) for batch in expected.inputs)),
        max_error=worst[0],
        bound=worst[1],
        classified=classified,
        same=same,
        ties=classified - same,
    )


def checked_run(
    run: Runner, batch: tuple[Tensor, ...], outputs: Sequence[Tensor], name: str
) -> Sequence[Tensor]:
    """Run a file on a batch, and refuse outputs of another number, shape or that are not finite."""
    size = len(batch[0])
    try:
        got = run(batch)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise GammabetaError(f"{name}: cannot run a batch of {size}: {reason}") from error
    if [y.shape for y in got] != [y.shape for y in outputs]:
        shapes = ", ".join(str(tuple(y.shape)) for y in got)
        wanted = ", ".join(str(tuple(y.shape)) for y in outputs)
        raise GammabetaError(f"{name}: gives {shapes} for a batch of {size}, the model {wanted}")
    return got


def count_classes(outputs: Sequence[Tensor], got: Sequence[Tensor]) -> tuple[int, int]:
    """Return how many samples have a class, and for how many of them both sides name the same.

    Example:
        >>> count_classes([torch.eye(3)], [torch.ones(3, 3)])
        (3, 1)
    """
    for y, z in zip(outputs, got, strict=True):
        if y.is_floating_point() and y.dim() == 2 and y.shape[1] > 1:
            return len(y), int((y.argmax(1) == z.argmax(1)).sum())
    return 0, 0


def difference(y: Tensor, z: Tensor) -> float:
    """Return the largest difference; infinite where one is not finite.

    Example:
        >>> difference(torch.ones(2), torch.tensor([1.0, float("nan")]))
        inf
    """
    if not y.numel():
        return 0.0
    largest = float((y.double() - z.double()).abs().max())
    return largest if math.isfinite(largest) else math.inf


def tensors(result: Any) -> list[Tensor]:
    """Return the tensors of a model's output, in the order of its structure."""
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def _run_model(model: nn.Module, batch: tuple[Tensor, ...]) -> list[Tensor]:
    before = torch.get_rng_state()
    try:
        with torch.no_grad():
            outputs = tensors(model(*(x.clone() for x in batch)))
    except Exception as error:
        reason = str(error).partition("\n")[0]
        shapes = ", ".join(str(tuple(x.shape)) for x in batch)
        raise GammabetaError(f"the model fails on inputs of shape {shapes}: {reason}") from error
    if not outputs:
        raise GammabetaError("the model returns no tensor that could be compared")
    if not torch.equal(before, torch.get_rng_state()):
        raise GammabetaError(
            "the model draws random numbers in eval mode too, so that no file could agree with it: "
            "F.dropout needs training=self.training"
        )
    if not all(bool(y.isfinite().all()) for y in outputs):
        raise GammabetaError("the model computes NaN or infinity on the example; mend it first")
    return [y.clone() for y in outputs]


def _run_wide(model: nn.Module, batch: tuple[Tensor, ...]) -> list[Tensor] | None:
    wide = [x.double() if x.is_floating_point() else x.clone() for x in batch]
    try:
        with torch.no_grad():
            return tensors(model(*wide))
    except Exception:  # noqa: BLE001 - any code of the user's, which may insist on float32
        return None


def _noise(y: Tensor, exact: list[Tensor] | None, index: int) -> float:
    if exact is None or len(exact) <= index or exact[index].shape != y.shape:
        return math.inf
    return difference(y, exact[index]) if y.is_floating_point() else 0.0


def _bound(noise: float, largest: float) -> float:
    if not math.isfinite(noise):
        return _UNKNOWN * largest
    return min(8 * noise + 16 * UNIT * largest, _MOST * largest)


def _magnitude(y: Tensor) -> float:
    return float(y.abs().max()) if y.is_floating_point() and y.numel() else 0.0


def _merge(a: list[float], b: list[float]) -> list[float]:
    return [max(pair) for pair in zip(a, b, strict=True)] if a else b
