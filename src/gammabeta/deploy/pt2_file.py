"""The bytes of a ``.pt2`` archive, which ``torch.export.load`` reads, and a check of them."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from gammabeta.deploy.metadata import PT2_NAME
from gammabeta.deploy.verify import Runner, tensors
from gammabeta.errors import GammabetaError


def archive(program: ExportedProgram, entries: Mapping[str, Any]) -> bytes:
    """Return a program as an archive, with its metadata as the extra file ``gammabeta.json``."""
    buffer = io.BytesIO()
    text = json.dumps(entries, ensure_ascii=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, buffer, extra_files={PT2_NAME: text})
    return buffer.getvalue()


def runner(path: Path) -> Runner:
    """Load an archive as its user will, and return what runs it.

    Raises:
        GammabetaError: If torch cannot read it.
    """
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.export.load(io.BytesIO(file.read())).module()
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise GammabetaError(f"torch.export.load refuses the file: {reason}") from error

    def run(batch: tuple[Tensor, ...]) -> list[Tensor]:
        return tensors(module(*batch))

    return run
