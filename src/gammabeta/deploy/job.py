"""Writing a recorded program as one file or another, and verifying the very file that will stay.

A file lies under a temporary name in its folder until it has been run and held against the model.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, TypeVar

from torch import Tensor
from torch.export import ExportedProgram

from gammabeta.deploy import onnx_file, pt2_file
from gammabeta.deploy.capture import count_batch_norms
from gammabeta.deploy.exported import Checked, Exported, Quantized
from gammabeta.deploy.metadata import Metadata, as_text, describe
from gammabeta.deploy.quantize import judge, quantize
from gammabeta.deploy.session import open_session, read_file, run_session
from gammabeta.deploy.verify import Expectation, Runner, compare
from gammabeta.errors import GammabetaError
from gammabeta.files import write_atomically
from gammabeta.surgery.report import Report

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """What is to be written, whatever the format.

    Args:
        target: The file.
        inputs: The example.
        metadata: What the caller knows of images and classes.
        with_preprocessing: Whether the program takes bytes.
    """

    target: Path
    inputs: tuple[Tensor, ...]
    metadata: Metadata
    with_preprocessing: bool

    def entries(self, precision: str) -> dict[str, Any]:
        """Return the file's metadata."""
        return describe(
            self.metadata, with_preprocessing=self.with_preprocessing, precision=precision
        )

    def names(self, expected: Expectation) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Name inputs and outputs by what they are."""
        first, outputs = self.inputs[0], expected.outputs[0]
        pictures = first.dim() == 4 and 3 in {first.shape[1], first.shape[3]}
        if pictures and len(self.inputs) == len(outputs) == 1 and outputs[0].dim() == 2:
            return ("images",), ("logits",)
        return _numbered("input", len(self.inputs)), _numbered("output", len(outputs))

    def write_pt2(
        self, program: ExportedProgram, expected: Expectation, fold: Report | None
    ) -> Exported:
        """Write an archive for ``torch.export.load``; errors as of :func:`export`."""
        content = pt2_file.archive(program, self.entries("float32"))

        def check(file: Path) -> Checked:
            return compare(expected, pt2_file.runner(file), str(self.target))

        inputs, outputs = self.names(expected)
        return Exported(
            path=self.target,
            size_bytes=len(content),
            opset=None,
            inputs=inputs,
            outputs=outputs,
            batch_norms=count_batch_norms(program),
            checked=_write(self.target, content, check),
            fold=fold,
            int8=None,
        )

    def write_onnx(
        self,
        program: ExportedProgram,
        expected: Expectation,
        fold: Report | None,
        calibration: list[tuple[Tensor, ...]] | None,
    ) -> Exported:
        """Write an ONNX file, of int8 where samples to calibrate with are given."""
        inputs, outputs = names = self.names(expected)
        proto = onnx_file.translate(program, names, optimize=fold is not None)
        onnx_file.label(proto, as_text(self.entries("float32")))
        batch_norms = onnx_file.check(proto)
        content = proto.SerializeToString()
        if calibration is None:
            checked, quantized = self._write_float(self.target, content, expected), None
        else:
            with TemporaryDirectory(prefix="gammabeta-") as folder:
                checked = self._write_float(Path(folder) / "float.onnx", content, expected)
            before = len(content)
            content, quantized = self._write_int8(proto, expected, calibration, before)
        return Exported(
            path=self.target,
            size_bytes=len(content),
            opset=onnx_file.OPSET,
            inputs=inputs,
            outputs=outputs,
            batch_norms=batch_norms,
            checked=checked,
            fold=fold,
            int8=quantized,
        )

    def _write_float(self, file: Path, content: bytes, expected: Expectation) -> Checked:
        name = str(self.target)
        return _write(file, content, lambda path: compare(expected, _runner(path), name))

    def _write_int8(
        self,
        proto: Any,
        expected: Expectation,
        calibration: list[tuple[Tensor, ...]],
        before: int,
    ) -> tuple[bytes, Quantized]:
        made = quantize(proto, calibration, self.names(expected)[0])
        onnx_file.label(made, as_text(self.entries("int8")))
        onnx_file.check(made)
        content: bytes = made.SerializeToString()
        count = sum(len(batch[0]) for batch in calibration)

        def check(file: Path) -> Quantized:
            return judge(expected, _runner(file), str(self.target), before, count)

        return content, _write(self.target, content, check)


def _write(target: Path, content: bytes, check: Callable[[Path], T]) -> T:
    """Write a file, check it where it lies under its temporary name, and rename it."""
    found: list[T] = []

    def fill(file: BinaryIO) -> None:
        file.write(content)
        file.flush()
        found.append(check(Path(file.name)))
        refuse_existing(target)

    write_atomically(target, fill)
    return found[0]


def _runner(file: Path) -> Runner:
    session = open_session(read_file(file), file)
    return lambda batch: run_session(session, batch)


def refuse_existing(path: Path) -> None:
    """Raise a GammabetaError if there is anything of this name."""
    if os.path.lexists(path):
        raise GammabetaError(
            f"{path}: already exists and is not overwritten; choose another name or delete it"
        )


def _numbered(stem: str, count: int) -> tuple[str, ...]:
    return (stem,) if count == 1 else tuple(f"{stem}_{i}" for i in range(count))
