"""Running ONNX files: our own to verify them, anybody's to name and count images.

A file is untrusted. It is read once and handed to the runtime as bytes, and is refused if its
weights are to come from elsewhere: such a file names paths that the runtime would open.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.data.dataset import Normalization
from gammabeta.deploy import metadata
from gammabeta.deploy.onnx_file import graphs
from gammabeta.errors import GammabetaError
from gammabeta.extras import require

BYTES = Normalization((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
"""The scaling after which a byte is itself again, to within rounding."""
_QUIET = 3  # onnxruntime's severity from which it prints: errors


class OnnxModel(nn.Module):
    """An ONNX image classifier in the place of a network.

    ``evaluate`` and ``predict`` take it as they take any model, with its ``normalization``.

    Args:
        session: Runs the file.
        labelled: What the file says about itself.

    Shapes: input (N, 3, H, W), scaled by ``normalization``; output (N, K).
    """

    def __init__(self, session: Any, labelled: metadata.Labelled) -> None:
        super().__init__()
        self.session = session
        self.labelled = labelled
        self.normalization = BYTES if labelled.with_preprocessing else labelled.normalization
        self.classes = labelled.classes
        self.image_size = labelled.image_size

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images."""
        if self.labelled.with_preprocessing:
            images = images.round().to(torch.uint8).permute(0, 2, 3, 1)
        return run_session(self.session, (images,))[0]


def open_onnx(path: Path, threads: int | None = None) -> OnnxModel:
    """Open an ONNX image classifier that :func:`gammabeta.export` wrote.

    Args:
        path: The file.
        threads: Threads inside one operator; by default as many as torch uses.

    Raises:
        GammabetaError: If the file is missing, damaged, reads other files, or does not say what
            its images and classes are; or if onnxruntime is not installed.
    """
    require("export", "onnx", "onnxruntime")
    content = read_file(path)
    proto = parse(content, path)
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    try:
        labelled = metadata.read(entries)
    except GammabetaError as error:
        raise GammabetaError(
            f"{path}: {error}; write the file with `gammabeta export RUN {path.name}`"
        ) from None
    session = open_session(content, path, threads)
    _check_shape(path, session, labelled)
    return OnnxModel(session, labelled)


def read_file(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        GammabetaError: If it cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "a pipe or a device"
            raise GammabetaError(f"{path}: is {kind}, but a file was expected")
        return path.read_bytes()
    except OSError as error:
        raise GammabetaError(f"{path}: {error.strerror}") from None


def parse(content: bytes, path: Path) -> Any:
    """Return a file's content as ``onnx.ModelProto``, without opening another file.

    Raises:
        GammabetaError: If it is damaged, or has weights in other files.
    """
    import onnx

    try:
        proto = onnx.load_model_from_string(content)
    except Exception as error:  # noqa: BLE001 - protobuf raises its own, of several classes
        raise GammabetaError(f"{path}: is not a whole ONNX file: {error}") from None
    if not proto.graph.node:
        raise GammabetaError(f"{path}: is not a whole ONNX file: there is no operator in it")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(proto)):
        raise GammabetaError(
            f"{path}: keeps its weights in other files, which are not opened; save it as one file"
        )
    return proto


def open_session(content: bytes, path: Path, threads: int | None = None) -> Any:
    """Return an ``onnxruntime.InferenceSession`` on the CPU.

    Raises:
        GammabetaError: If the runtime refuses the file.
    """
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = _QUIET
    # Idle threads that spin would take torch's cores, in one and the same process: 13 times slower.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise GammabetaError(f"{path}: onnxruntime refuses the file: {reason}") from error


def run_session(session: Any, batch: tuple[Tensor, ...]) -> list[Tensor]:
    """Return a session's outputs for a batch."""
    feeds = {
        value.name: x.contiguous().numpy()
        for value, x in zip(session.get_inputs(), batch, strict=True)
    }
    return [torch.from_numpy(y) for y in session.run(None, feeds)]


def _check_shape(path: Path, session: Any, labelled: metadata.Labelled) -> None:
    """Refuse a file whose graph is not what its metadata says."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    size = labelled.image_size
    inside = labelled.with_preprocessing
    wanted = ("tensor(uint8)", [size, size, 3]) if inside else ("tensor(float)", [3, size, size])
    got = (inputs[0].type, list(inputs[0].shape[1:])) if len(inputs) == 1 else ("", [])
    if got != wanted or list(outputs[0].shape[1:]) != [len(labelled.classes)]:
        raise GammabetaError(
            f"{path}: is no classifier of {size}x{size} images into {len(labelled.classes)} "
            "classes, as its metadata says"
        )


def _tensors(proto: Any) -> Iterator[Any]:
    """Yield every constant of a file, wherever it is kept."""
    for graph in graphs(proto):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        yield from _constants(graph.node)
    for function in proto.functions:
        yield from _constants(function.node)


def _constants(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            yield from ([attribute.t] if attribute.HasField("t") else [])
            yield from attribute.tensors
