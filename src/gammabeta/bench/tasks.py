"""What a subject is timed at: a block on random data, or a whole training step of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.bench.floor import pooled
from gammabeta.bench.memory import live_bytes, peak_bytes
from gammabeta.bench.subjects import Block, Subject
from gammabeta.errors import GammabetaError
from gammabeta.training.recipe import Recipe
from gammabeta.training.step import make_optimizer, train_step

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MODES = ("backward", "forward", "eval")
_RECIPE = Recipe(lr=1e-6)  # random data must not drive the weights to NaN; the work is the same
_LABELS = 10


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Task:
    """Something to time, and what it holds in memory.

    Args:
        call: Does the work once and returns what it computed.
        resident: Returns the tensors that exist before and after.
        release: Frees what the last call left behind, gradients for one.
    """

    call: Callable[[], Any]
    resident: Callable[[], Iterable[Tensor]]
    release: Callable[[], None] = _nothing

    def peak_bytes(self) -> int:
        """Return the live tensor bytes at their peak; call it after a first call."""
        self.release()
        return live_bytes(self.resident()) + peak_bytes(self.call)


def random_tensor(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, seed: int
) -> Tensor:
    """Return normal values that depend on shape and seed alone, in that layout."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator).to(dtype)
    return values.contiguous(memory_format=layout)


def block_task(subject: Subject, block: Block, precision: str, mode: str = "backward") -> Task:
    """Return the work of a block on random data, the same for every subject.

    Args:
        subject: Who does it.
        block: Shape and pooling.
        precision: "fp32" or "bf16", of the data; parameters are float32 as under autocast.
        mode: "backward" (forward and backward in training), "forward" (in training, without
            gradients) or "eval" (with the running statistics, without gradients).

    Returns:
        A task whose call gives the output, and in mode "backward" the gradients of input, γ and β.
    """
    module = subject.finish(subject.of_block(block)).train(mode != "eval")
    x = random_tensor(block.shape, DTYPES[precision], subject.layout, seed=0)
    if mode != "backward":

        @torch.no_grad()
        def infer() -> tuple[Tensor, ...]:
            return (module(x),)

        return Task(infer, lambda: [x, *module.parameters()])
    dy = random_tensor(pooled(block.shape, block.pool), DTYPES[precision], subject.layout, seed=1)
    leaves = [x.requires_grad_(), *module.parameters()]

    def train() -> tuple[Tensor, ...]:
        y = module(x)
        return y.detach(), *torch.autograd.grad(y, leaves, dy)

    return Task(train, lambda: [dy, *leaves])


def random_images(batch_size: int, image_size: int, layout: torch.memory_format) -> Tensor:
    """Return images (batch_size, 3, image_size, image_size) of normal values."""
    return random_tensor((batch_size, 3, image_size, image_size), torch.float32, layout, seed=0)


def step_task(subject: Subject, model: nn.Module, images: Tensor, precision: str) -> Task:
    """Return a training step: forward, loss, backward and update, as ``gammabeta train`` takes it.

    Args:
        subject: Who takes it.
        model: In plain torch; it is copied.
        images: (N, 3, H, W).
        precision: "fp32", or "bf16" for autocast.

    Returns:
        A task whose call gives the :class:`~gammabeta.training.step.Outcome`.
    """
    module = subject.finish(subject.of_model(model)).train()
    optimizer = make_optimizer(module, _RECIPE)
    images = images.contiguous(memory_format=subject.layout)
    labels = torch.arange(len(images)) % _LABELS

    def call() -> object:
        outcome = train_step(
            module, optimizer, images, labels, label_smoothing=0.0, bf16=precision == "bf16"
        )
        if outcome.loss - outcome.loss != 0.0:  # then no backward pass was made, and time is wrong
            raise GammabetaError(f"the loss of {subject.name} is {outcome.loss} on random data")
        return outcome

    def resident() -> Iterable[Tensor]:
        yield from (images, labels, *module.parameters(), *module.buffers())
        for state in optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))

    return Task(call, resident, optimizer.zero_grad)


def check_model(model: nn.Module, images: Tensor, name: str) -> None:
    """Refuse a model that does not turn such images into logits.

    Raises:
        GammabetaError: With the model's own reason.
    """
    try:
        with torch.no_grad():
            logits = model(images[:2])
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise GammabetaError(
            f"{name} does not take images of shape {tuple(images[:2].shape)}: {reason}; "
            "try another --image-size, or another model"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] < _LABELS:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise GammabetaError(
            f"{name} returns {got} in training, where logits of at least {_LABELS} classes are "
            "needed; name a classifier"
        )
