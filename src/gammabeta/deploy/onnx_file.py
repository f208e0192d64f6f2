"""Turning a recorded program into the bytes of an ONNX file, and checking what is in them.

Opset 18 is the one that PyTorch's translation is written in, so nothing is converted afterwards,
and that every runtime since early 2023 reads (ONNX 1.13, ONNX Runtime 1.14).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch.export import ExportedProgram

from gammabeta.errors import GammabetaError

OPSET = 18
MOST_BYTES = 2**31 - 1
"""A protocol buffer's limit, which a single file has to keep."""
PRODUCER = "gammabeta"


def translate(
    program: ExportedProgram, names: tuple[Sequence[str], Sequence[str]], *, optimize: bool
) -> Any:
    """Return a program as an ``onnx.ModelProto``.

    Args:
        program: From :func:`gammabeta.deploy.capture.capture`.
        names: Of the inputs and of the outputs.
        optimize: Let the translator rewrite the graph: it would merge batch norms into
            convolutions. If not, only constants are folded.

    Raises:
        GammabetaError: If an operator has no counterpart, or the file would be too large.
    """
    import torch

    try:
        with _quiet():
            made: Any = torch.onnx.export(
                program, (), dynamo=True, opset_version=OPSET, verbose=False,
                input_names=names[0], output_names=names[1], optimize=optimize,
            )  # fmt: skip
            if not optimize:
                _fold_constants(made.model)
            proto = made.model_proto
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise GammabetaError(f"the model cannot be written as ONNX: {reason}") from error
    if proto.ByteSize() > MOST_BYTES:
        raise GammabetaError(
            f"the model takes {proto.ByteSize() / 2**30:.1f} GiB, but an ONNX file holds 2: "
            "export it as .pt2"
        )
    clean(proto)
    return proto


def clean(proto: Any) -> None:
    """Keep what a runtime needs: no stack traces, no source paths, and a batch axis named so."""
    symbols = {
        dim.dim_param
        for value in proto.graph.input
        for dim in value.type.tensor_type.shape.dim[:1]
        if dim.dim_param
    }
    del proto.graph.value_info[:]
    for value in (*proto.graph.input, *proto.graph.output):
        value.ClearField("metadata_props")
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_param = "batch"
    for graph in graphs(proto):
        graph.ClearField("metadata_props")
        graph.ClearField("doc_string")
        for part in (*graph.node, *graph.initializer):
            part.ClearField("metadata_props")
            part.ClearField("doc_string")
    used = {node.domain for graph in graphs(proto) for node in graph.node} | {""}
    kept = [opset for opset in proto.opset_import if opset.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)


def label(proto: Any, entries: Mapping[str, str]) -> None:
    """Give a file its metadata, in place of any that it has."""
    from gammabeta import __version__

    del proto.metadata_props[:]
    for name, value in entries.items():
        proto.metadata_props.add(key=name, value=value)
    proto.producer_name, proto.producer_version = PRODUCER, __version__
    proto.graph.name = "main_graph"


def check(proto: Any) -> int:
    """Check a file by ONNX's own rules and by ours, and return how many batch norms it holds.

    Raises:
        GammabetaError: If it is invalid, holds an operator outside of ONNX, or a batch norm that
            uses its batch's statistics.
    """
    import onnx

    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise GammabetaError(f"the ONNX file would be invalid: {reason}") from error
    found = 0
    for graph in graphs(proto):
        for node in graph.node:
            if node.domain not in {"", "ai.onnx"}:
                raise GammabetaError(
                    f"{node.domain}::{node.op_type} is no ONNX operator, so that only some "
                    "runtimes would read the file"
                )
            if node.op_type == "BatchNormalization":
                found += 1
                if any(a.name == "training_mode" and a.i for a in node.attribute):
                    raise GammabetaError(f"{node.name} is a batch norm in training mode")
    return found


def graphs(proto: Any) -> Iterator[Any]:
    """Yield the graph, and those inside its nodes."""
    waiting = [proto.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _fold_constants(model: Any) -> None:
    from onnxscript import optimizer

    optimizer.fold_constants(model, onnx_shape_inference=True)
    optimizer.remove_unused_nodes(model)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the translator, which warns of its own internals."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
