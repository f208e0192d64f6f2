"""What a line of a comparison's journal may hold, by its kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from gammabeta.insight.compare.plan import Plan
from gammabeta.insight.compare.settings import Settings
from gammabeta.schema import STRICT

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
Known = float | None
"""None stands for a number that was not finite."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """Validation images measured within a training."""

    __pydantic_config__ = STRICT

    step: Count
    epoch: Seconds
    seconds: Seconds
    train_loss: Known
    accuracy: Share


@dataclass(frozen=True, kw_only=True)
class Walk:
    """A look at the landscape."""

    __pydantic_config__ = STRICT

    step: Count
    epoch: Seconds
    loss: Known
    gradient_norm: Known
    losses: list[Known]
    distances: list[Known]
    smoothness: list[Known]


@dataclass(frozen=True, kw_only=True)
class Tested:
    """Test images measured after a training."""

    __pydantic_config__ = STRICT

    last: Share
    best: Share


@dataclass(frozen=True, kw_only=True)
class Job:
    """A finished training."""

    __pydantic_config__ = STRICT

    kind: Literal["job"]
    stage: Literal["sweep", "full", "batch"]
    variant: str
    lr: Annotated[float, Field(gt=0)]
    seed: Count
    steps: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=2)]
    outcome: Literal["trained", "chance", "nonfinite"]
    steps_taken: Count
    final_loss: Known
    train_seconds: Seconds
    wall_seconds: Seconds
    points: list[Point]
    test: Tested | None
    loss: list[Known]
    gradient_norm: list[Known]
    landscape: list[Walk]


@dataclass(frozen=True, kw_only=True)
class Session:
    """When a session began; what is said of its machine is for the reader."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "ignore"}

    kind: Literal["session"]
    began: str


@dataclass(frozen=True, kw_only=True)
class End:
    """Why a session ended."""

    __pydantic_config__ = STRICT

    kind: Literal["end"]
    by: str
    at: str


@dataclass(frozen=True, kw_only=True)
class Begun(Settings):
    """The first line: what is compared, on what, and by which versions."""

    kind: Literal["settings"]
    classes: Annotated[int, Field(ge=2)]
    images: tuple[Count, Count, Count]
    gammabeta: str
    torch: str


@dataclass(frozen=True, kw_only=True)
class Planned(Plan):
    """The plan that was kept."""

    kind: Literal["plan"]


Line = Annotated[Begun | Planned | Session | Job | End, Field(discriminator="kind")]
