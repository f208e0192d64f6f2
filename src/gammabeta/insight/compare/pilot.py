"""What a step of each variant costs, measured before anything is planned."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from gammabeta.bench.measure import Call, interleave
from gammabeta.bench.memory import live_bytes, peak_bytes
from gammabeta.data.dataset import Split
from gammabeta.data.loader import Loader
from gammabeta.insight.compare.job import SWEEP, Job, prepare
from gammabeta.insight.compare.settings import HeldOut
from gammabeta.training.evaluate import evaluate
from gammabeta.training.step import train_step

WARM_UP = 2  # steps that compile kernels and fill caches
LR = 0.001
SAMPLE = 512  # images whose evaluation is timed


@dataclass(frozen=True)
class Pilot:
    """A request to time every variant.

    Args:
        variants: Names.
        batch_size: Images a step.
        threads: Threads inside an operator.
        rounds: Times that everyone takes a turn.
        memory: Whether to measure the memory of a step too.
    """

    variants: tuple[str, ...]
    batch_size: int
    threads: int
    rounds: int
    memory: bool


def measure(pilot: Pilot, data: HeldOut, *, bf16: bool) -> dict[str, Any]:
    """Time a training step of each variant in turn, and the evaluation of an image.

    Returns:
        By variant ``step_seconds`` (median), ``evaluation_seconds`` (an image, in the training's
        precision), and ``step_bytes`` and ``model_bytes`` if memory was asked for: live tensors
        at the peak of a step above those that are always there, and these.
    """
    calls, models = {}, {}
    for name in pilot.variants:
        calls[name], models[name] = _step(name, pilot.batch_size, data, bf16=bf16)
        for _ in range(WARM_UP):
            calls[name]()
    timed = interleave(calls, rounds=pilot.rounds)
    found: dict[str, Any] = {
        "step_seconds": {name: samples.median for name, samples in timed.items()},
        "evaluation_seconds": {
            name: _evaluation(models[name][0], data, bf16=bf16) for name in calls
        },
    }
    if pilot.memory:
        found["step_bytes"] = {name: peak_bytes(call) for name, call in calls.items()}
        found["model_bytes"] = {name: _resident(*pair) for name, pair in models.items()}
    return found


def _step(
    name: str, batch_size: int, data: HeldOut, *, bf16: bool
) -> tuple[Call, tuple[torch.nn.Module, torch.optim.SGD]]:
    job = Job(stage=SWEEP, variant=name, lr=LR, seed=0, steps=1, batch_size=batch_size)
    model, optimizer = prepare(job, data)
    loader = Loader(data.train, batch_size, data.dataset.normalization, data.dataset.augmentation)
    images, labels = next(iter(loader.epoch(0)))

    def call() -> object:
        done = train_step(model, optimizer, images, labels, label_smoothing=0.1, bf16=bf16)
        optimizer.zero_grad()
        return done

    return call, (model, optimizer)


def _evaluation(model: torch.nn.Module, data: HeldOut, *, bf16: bool) -> float:
    split = data.validation
    few = Split(split.images[:SAMPLE], split.labels[:SAMPLE])
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        evaluate(model, Split(few.images[:8], few.labels[:8]), data.dataset.normalization)
        began = time.perf_counter()
        evaluate(model, few, data.dataset.normalization)
    return (time.perf_counter() - began) / len(few)


def _resident(model: torch.nn.Module, optimizer: torch.optim.SGD) -> int:
    """Return the bytes of parameters, buffers and the optimizer's memory."""
    momentum = (v for s in optimizer.state.values() for v in s.values())
    kept = [v for v in momentum if isinstance(v, torch.Tensor)]
    return live_bytes([*model.parameters(), *model.buffers(), *kept])
