"""The one door of exporting: copy, fold, record, translate, verify, and only then put in place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from gammabeta.data.dataset import Normalization
from gammabeta.deploy.capture import capture
from gammabeta.deploy.exported import Exported
from gammabeta.deploy.job import Job, refuse_existing
from gammabeta.deploy.metadata import Metadata
from gammabeta.deploy.prepare import evaluating, plain
from gammabeta.deploy.preprocess import Preprocess, Preprocessed
from gammabeta.deploy.quantize import Calibration, samples
from gammabeta.deploy.verify import CHUNK, Expectation, expect
from gammabeta.errors import GammabetaError
from gammabeta.extras import require
from gammabeta.surgery.report import Report

SUFFIXES = (".onnx", ".pt2")


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    example: Tensor | tuple[Tensor, ...],
    *,
    fold: bool = True,
    metadata: Metadata | None = None,
    with_preprocessing: bool = False,
    int8: Calibration | None = None,
) -> Exported:
    """Write a model as an ONNX file, or for ``torch.export.load``, and verify it on data.

    The file computes what the model computes in eval mode, whatever mode it is in, for any batch
    size, in float32. It is written under a temporary name, run by onnxruntime (or torch) on the
    example, at its batch size and at others, and held against the model; only a file that agrees
    up to rounding gets its name. The model itself is left as it is.

    Args:
        model: The model. Forward hooks are part of it, and run.
        path: A new file; ``.onnx`` or ``.pt2`` decides what it is.
        example: What the file will be called with, real samples at best: a tensor or a tuple, the
            batch first, N of 1 or more. All of it is compared.
        fold: Merge batch norms into their neighbours, as :func:`gammabeta.fold` does.
        metadata: What is written into the file about images and classes.
        with_preprocessing: Let the file take bytes, uint8 (N, H, W, 3) in RGB, and scale them by
            ``metadata.normalization``; the example is then such bytes.
        int8: Samples like the example, some hundred of them, a tensor or batches: makes an ONNX
            file of 8-bit weights and activations, calibrated on them.

    Returns:
        The file's size, names and measured error.

    Raises:
        GammabetaError: If the file exists or cannot be written; if the model is none that can be
            exported (a batch norm without running statistics, another dtype than float32); if
            the file differs from the model by more than the bound; if the ``[export]`` extra is
            not installed. No file is left behind then, nor on Ctrl-C.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
        >>> with TemporaryDirectory() as folder:
        ...     done = export(model, f"{folder}/model.pt2", torch.rand(2, 3, 8, 8))
        >>> done.batch_norms, done.checked.max_error <= done.checked.bound
        (0, True)
    """
    target = check_target(Path(path), int8=int8 is not None)
    metadata = metadata or Metadata()
    inputs = _inputs(example)
    scaling = _scaling(metadata, inputs) if with_preprocessing else None
    calibration = None if int8 is None else samples(int8, len(inputs))
    job = Job(target, inputs, metadata, with_preprocessing)
    with _aside():
        reference = evaluating(model)
        ordinary = plain(reference)
        expected = expect(_taking(reference, scaling), _taking(ordinary, scaling), inputs)
        _match(metadata, inputs, expected)
        folded, report = _folded(ordinary, inputs, scaling) if fold else (ordinary, None)
        program = capture(_taking(folded, scaling), inputs)
        if target.suffix == ".pt2":
            return job.write_pt2(program, expected, report)
        return job.write_onnx(program, expected, report, calibration)


def _taking(model: nn.Module, scaling: Normalization | None) -> nn.Module:
    """Return what the file is to compute."""
    return Preprocessed(scaling, model) if scaling else model


def _folded(
    model: nn.Module, inputs: tuple[Tensor, ...], scaling: Normalization | None
) -> tuple[nn.Module, Report]:
    from gammabeta.surgery.fold import fold

    few = tuple(x[:CHUNK] for x in inputs)
    folded = fold(model, (Preprocess(scaling)(few[0]).contiguous(),) if scaling else few)
    return folded, cast("Report", folded.gammabeta_report)


def check_target(path: Path, *, int8: bool = False) -> Path:
    """Refuse a file that could not be written, before anything is computed for it.

    Args:
        path: The file.
        int8: Whether it is to be quantized.

    Returns:
        The path.

    Raises:
        GammabetaError: For another suffix, an existing file, an absent folder or package.
    """
    if path.suffix not in SUFFIXES:
        raise GammabetaError(
            f"{path}: the name must end in .onnx (ONNX) or .pt2 (torch.export.load)"
        )
    if int8 and path.suffix != ".onnx":
        raise GammabetaError(f"{path}: int8 is for .onnx files")
    refuse_existing(path)
    if not path.parent.is_dir():
        raise GammabetaError(f"{path}: there is no folder {path.parent}; make it first")
    if path.suffix == ".onnx":
        require("export")
    return path


def _inputs(example: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    if not inputs or not all(isinstance(x, Tensor) and x.dim() and len(x) for x in inputs):
        raise GammabetaError("example must be a tensor or a tuple of them, the batch first")
    if len({len(x) for x in inputs}) > 1:
        sizes = ", ".join(str(len(x)) for x in inputs)
        raise GammabetaError(f"example's tensors hold {sizes} samples, but must hold as many each")
    return tuple(x.detach().cpu() for x in inputs)


def _scaling(metadata: Metadata, inputs: tuple[Tensor, ...]) -> Normalization:
    bytewise = [x.dtype == torch.uint8 and x.dim() == 4 and x.shape[3] == 3 for x in inputs]
    if metadata.normalization is None or bytewise != [True]:
        raise GammabetaError(
            "with_preprocessing needs metadata with a normalization, and one example of uint8 "
            "images (N, H, W, 3)"
        )
    return metadata.normalization


def _match(metadata: Metadata, inputs: tuple[Tensor, ...], expected: Expectation) -> None:
    """Refuse metadata that the file itself would contradict."""
    logits, size = tuple(expected.outputs[0][0].shape[1:]), metadata.image_size
    if metadata.classes is not None and logits != (len(metadata.classes),):
        raise GammabetaError(
            f"metadata names {len(metadata.classes)} classes, but the model's output for one "
            f"sample has shape {logits}"
        )
    shape = tuple(inputs[0].shape[1:])
    if size is not None and shape not in {(3, size, size), (size, size, 3)}:
        raise GammabetaError(f"metadata says images of {size} pixels, but the example has {shape}")


@contextmanager
def _aside() -> Iterator[None]:
    """Compute plainly in float32, whatever the caller is in, and give random generators back."""
    cuda = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    with (
        torch.random.fork_rng(list(cuda)),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
    ):
        yield
