"""What the bench does one after the other: blocks and a training step, in each precision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gammabeta.bench.floor import Copy, LayersAlone, block_bytes
from gammabeta.bench.measure import Call
from gammabeta.bench.models import TorchNet, build
from gammabeta.bench.subjects import SUBJECTS, Block, Subject, compiler
from gammabeta.bench.tasks import (
    DTYPES,
    Task,
    block_task,
    check_model,
    random_images,
    step_task,
)
from gammabeta.errors import GammabetaError
from gammabeta.surgery.channels_last import unsafe

BLOCKS = 3
"""How many of a model's blocks are measured: those with the largest inputs."""


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Args:
        model: "net", "torchvision:NAME" or "timm:NAME".
        precisions: Of "fp32" and "bf16".
        batch_size: Images a step, at least 2; by default 128 for net, else 32.
        image_size: Pixels; by default 32 for net, else 64.
        rounds: Of every measurement; by default as many as ``seconds`` allow.
        seconds: For everything together, about: what has begun is finished.
        compile_model: Whether Inductor compiles the whole model; by default for net alone, since
            a deep model takes it minutes.
        compile_blocks: Whether Inductor compiles the blocks.

    Raises:
        GammabetaError: For a number out of range.
    """

    model: str = "net"
    precisions: Sequence[str] = ("fp32",)
    batch_size: int | None = None
    image_size: int | None = None
    rounds: int | None = None
    seconds: float = 85.0
    compile_model: bool | None = None
    compile_blocks: bool = True

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 2), ("image_size", 1), ("rounds", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise GammabetaError(f"{name} is {value}, but must be at least {least}")
        for precision in self.precisions:
            if precision not in DTYPES:
                raise GammabetaError(f"precision is {precision!r}, but must be fp32 or bf16")

    @property
    def batch(self) -> tuple[int, int]:
        """The batch size and the image size that apply."""
        batch, size = (128, 32) if self.model == "net" else (32, 64)
        return self.batch_size or batch, self.image_size or size


@dataclass(frozen=True)
class Job:
    """Subjects at one piece of work; what they need is made when its turn has come.

    Args:
        kind: "block" or "step".
        what: Which.
        precision: In which.
        weight: Its share of the time, relative to the others'.
        subjects: Who takes part.
        task: Makes a subject's task.
        floor: Makes what nothing can beat.
    """

    kind: str
    what: str
    precision: str
    weight: float
    subjects: tuple[Subject, ...]
    task: Callable[[Subject], Task]
    floor: Callable[[], Call]


def plan(settings: Settings) -> tuple[list[Job], list[str]]:
    """Return the jobs, and notes on what is left out.

    Raises:
        GammabetaError: For a model that is not known, does not take such images, or that torch may
            get wrong channels last.

    Example:
        >>> jobs, _ = plan(Settings(batch_size=4, image_size=16))
        >>> [job.what for job in jobs]  # doctest: +NORMALIZE_WHITESPACE
        ['block (4, 64, 16, 16)', 'block (4, 128, 8, 8)', 'block (4, 256, 4, 4)',
         'training step of net']
    """
    batch_size, image_size = settings.batch
    model = build(settings.model, image_size)
    images = random_images(batch_size, image_size, torch.channels_last)
    check_model(model, images, settings.model)
    _refuse_unsafe(model, settings.model)
    blocks = blocks_of(model, images)
    of_blocks, of_model, notes = _who(settings)
    if not blocks:
        notes.append(f"{settings.model} has no two-dimensional batch norm")
    jobs = []
    for precision in settings.precisions:
        jobs += [block_job(block, precision, of_blocks) for block in blocks]
        jobs.append(step_job(settings.model, model, images, precision, of_model))
    return jobs, notes


def _refuse_unsafe(model: nn.Module, name: str) -> None:
    """Refuse a model that torch itself may get wrong in a layout that is measured."""
    paths = unsafe(model)
    if paths:
        raise GammabetaError(
            f"{name} has strided 1x1 convolutions of few channels ({', '.join(paths[:3])}): torch "
            "may crash on them channels last, which is half of this comparison; choose another "
            "model (accelerate keeps such convolutions contiguous: docs/accelerate.md)"
        )


def _who(settings: Settings) -> tuple[tuple[Subject, ...], tuple[Subject, ...], list[str]]:
    """Return who takes part in blocks and in the step, and notes on who does not."""
    # Inductor decides on layouts itself, and compiling takes time: one of the two is enough here.
    everyone = tuple(s for s in SUBJECTS if s.name != "torch.compile NCHW")
    eager = tuple(s for s in everyone if not s.compiled)
    if compiler() is None:
        return eager, eager, ["no C++ compiler ($CXX, g++) found: torch.compile is left out"]
    notes = []
    compile_model = settings.compile_model
    if compile_model is None:
        compile_model = settings.model == "net"
        if not compile_model:
            notes.append(f"torch.compile of all of {settings.model} takes long: --compile adds it")
    return (
        everyone if settings.compile_blocks else eager,
        everyone if compile_model else eager,
        notes,
    )


def block_job(
    block: Block, precision: str, subjects: tuple[Subject, ...], mode: str = "backward"
) -> Job:
    """Return the job of a block, in a mode of :func:`~gammabeta.bench.tasks.block_task`."""
    moved = block_bytes(block.shape, DTYPES[precision], block.pool, mode)
    return Job(
        "block",
        str(block),
        precision,
        1.0,
        subjects,
        lambda subject: block_task(subject, block, precision, mode),
        lambda: Copy(moved),
    )


def step_job(
    name: str, model: nn.Module, images: Tensor, precision: str, subjects: tuple[Subject, ...]
) -> Job:
    """Return the job of a model's training step."""
    return Job(
        "step",
        f"training step of {name}",
        precision,
        3.0,
        subjects,
        lambda subject: step_task(subject, model, images, precision),
        lambda: LayersAlone(
            copy.deepcopy(model).to(memory_format=torch.channels_last),
            images,
            bf16=precision == "bf16",
        ),
    )


def blocks_of(model: nn.Module, images: Tensor) -> list[Block]:
    """Return the blocks with the largest inputs among a model's batch norms, largest first.

    Each is taken to be followed by a ReLU, and in the reference network by 2x2 max pooling.
    """
    shapes: set[tuple[int, ...]] = set()

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes.add(tuple(inputs[0].shape))

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [module.register_forward_pre_hook(note) for module in norms]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    largest = sorted(shapes, key=lambda shape: (-torch.Size(shape).numel(), shape))[:BLOCKS]
    pool = 2 if isinstance(model, TorchNet) else None
    return [Block((n, c, h, w), pool) for n, c, h, w in largest]
