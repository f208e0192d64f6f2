"""All that decides a run's numbers: ``config.json``, written with a checksum and read strictly."""

from __future__ import annotations

import dataclasses
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

import gammabeta
from gammabeta import data
from gammabeta.data.dataset import Dataset, Files, Normalization, Progress
from gammabeta.errors import DamagedError
from gammabeta.files import NO_SEAL, is_intact, seal, to_json, write_atomically
from gammabeta.models import Net
from gammabeta.runtime import MOST_THREADS
from gammabeta.schema import STRICT, parse
from gammabeta.training.recipe import Recipe

CONFIG = "config.json"
_UNSEAL = (
    'undo what was changed; a change on purpose stands once the field "sha256" is taken out, and '
    "the run is then no longer checked"
)


UNKNOWN_SPLIT = (
    "the run kept no list of its images, so the split was drawn anew: images that it was trained "
    "on may be in the test split, and accuracy may look better than it is; train a new run to know"
)
MOST_PIXELS = 1 << 15
"""Of an image's edge: more in a configuration is damage, not a wish."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """All that decides a run's numbers, as saved in ``config.json``.

    Args:
        data: "cifar10", "digits" or an absolute folder.
        root: Where CIFAR-10 was looked for, or None for the default place.
        image_size: Height and width of the network's input.
        skip_unreadable: Whether unreadable images were left out.
        classes: Class names in the order of the logits.
        normalization: How bytes become numbers.
        recipe: How it is trained.
        precision: "fp32" or "bf16".
        device: "cpu" or "cuda".
        threads: Threads inside one operator; another number may change the last bits.
        grid: See :class:`gammabeta.Net`; None in runs that older versions wrote.
        files: The images of a folder that it is trained and measured on; None for other data.
        init: The checkpoint that it began with, or None for new weights.
        version: The gammabeta that wrote it.
    """

    __pydantic_config__ = STRICT

    data: Annotated[str, Field(min_length=1)]
    root: str | None
    image_size: Annotated[int, Field(ge=8, le=MOST_PIXELS, multiple_of=8)]
    skip_unreadable: bool
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    normalization: Normalization
    recipe: Recipe
    precision: Annotated[str, Field(pattern="^(fp32|bf16)$")]
    device: Annotated[str, Field(pattern="^(cpu|cuda)$")]
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)]
    grid: Annotated[int, Field(ge=1, le=MOST_PIXELS)] | None = None
    files: Files | None = None
    init: str | None = None
    version: str = gammabeta.__version__

    def build_model(self) -> Net:
        """Return a new, untrained network of the run's shape."""
        return Net(len(self.classes), self.image_size, grid=self.grid)

    def load_data(
        self,
        root: Path | None = None,
        progress: Progress | None = None,
        *,
        measure: str | None = None,
    ) -> Dataset:
        """Read the run's data set again.

        Of a folder, the images that the run began with are read, in their order.

        Args:
            root: Where CIFAR-10 lies, if not where it did.
            progress: Called while data is read.
            measure: Read only what is to be measured; see :func:`gammabeta.data.load`.
        """
        found = data.load(
            self.data,
            root=root or self.root,
            image_size=self.image_size,
            skip_unreadable=self.skip_unreadable,
            files=self.files,
            measure=measure,
            progress=progress,
        )
        if self.files is None and found.files and found.files.drawn:
            return dataclasses.replace(found, notes=(*found.notes, UNKNOWN_SPLIT))
        return found


@dataclass(frozen=True, kw_only=True)
class _Sealed(Config):
    sha256: str | None = None


def write_config(path: Path, config: Config) -> None:
    """Write ``config.json``, sealed by its last field.

    Raises:
        RunError: If it cannot be written, or holds what could not be read back.
    """
    fields = dataclasses.asdict(config) | {"sha256": NO_SEAL.decode()}
    content = to_json(fields, indent=2).encode() + b"\n"
    parse(_Sealed, content, path)
    parts = seal(content, content.rindex(NO_SEAL))
    write_atomically(path, lambda file: file.writelines(parts))


def read_config(path: Path) -> Config:
    """Read ``config.json``; one without a seal is of an older version, or changed on purpose.

    Raises:
        OSError: If there is no such file.
        RunError: If it is not what was written; the message names the field.
    """
    content = path.read_bytes()
    found = re.search(rb'"sha256": "([0-9a-f]{64})"\s*}\s*$', content)
    if found and not is_intact(io.BytesIO(content), found.start(1)):
        raise DamagedError(path, _UNSEAL)
    read: _Sealed = parse(_Sealed, content, path)
    if read.sha256 and not found:
        raise DamagedError(path, _UNSEAL)
    return Config(**{field.name: getattr(read, field.name) for field in dataclasses.fields(Config)})
