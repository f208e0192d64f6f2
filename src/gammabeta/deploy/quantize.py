"""Eight-bit integers instead of float32: a quarter of the size, calibrated on real samples.

Activations become uint8, weights int8 with a scale for each output channel, and seven of its eight
bits are used. On x86 processors without VNNI the product of a uint8 and an int8 pair is summed in
16 bits, and 2 · 255 · 127 does not fit; 2 · 255 · 64 does. So the file gives the same numbers on
both kinds of machine. On those with VNNI this costs no time and hardly any accuracy;
``docs/results.md`` has the figures.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from gammabeta.deploy.exported import Quantized
from gammabeta.deploy.onnx_file import clean
from gammabeta.deploy.verify import Expectation, Runner, checked_run, count_classes
from gammabeta.errors import GammabetaError

Calibration = Tensor | Iterable[Tensor | Sequence[Tensor]]
CHUNK = 64
MOST_NOISE = 0.5
"""A file whose outputs are off by half their deviation is not left behind."""


def samples(calibration: Calibration, count: int) -> list[tuple[Tensor, ...]]:
    """Return calibration batches as tuples of the model's inputs.

    Args:
        calibration: A tensor, or batches; of a pair (images, labels) the images are taken.
        count: How many inputs the model has.

    Raises:
        GammabetaError: If there are none.

    Example:
        >>> [len(x) for (x,) in samples([(torch.ones(100, 3), torch.ones(100))], 1)]
        [64, 36]
    """
    found: list[tuple[Tensor, ...]] = []
    for batch in [calibration] if isinstance(calibration, Tensor) else calibration:
        inputs = (batch,) if isinstance(batch, Tensor) else tuple(batch)[:count]
        parts = [x.detach().cpu().split(CHUNK) for x in inputs]
        found += [part for part in zip(*parts, strict=True) if len(part[0])]
    if not found:
        raise GammabetaError("int8 needs samples to calibrate with, but there are none")
    return found


def quantize(proto: Any, calibration: list[tuple[Tensor, ...]], names: Sequence[str]) -> Any:
    """Return a float32 ONNX model with eight-bit weights and activations.

    Args:
        proto: The model.
        calibration: Batches of its inputs.
        names: Of its inputs.

    Raises:
        GammabetaError: If onnxruntime cannot quantize it.
    """
    import onnx
    from onnxruntime.quantization import (  # type: ignore[import-untyped]
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import (  # type: ignore[import-untyped]
        quant_pre_process,
    )

    try:
        with TemporaryDirectory(prefix="gammabeta-") as folder, _quiet():
            source, prepared, made = (Path(folder) / f"{i}.onnx" for i in range(3))
            source.write_bytes(proto.SerializeToString())
            quant_pre_process(source, prepared)
            quantize_static(
                prepared, made, _reader(calibration, names), quant_format=QuantFormat.QDQ,
                per_channel=True, reduce_range=True, activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )  # fmt: skip
            quantized = onnx.load_model_from_string(made.read_bytes())
    except OSError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise GammabetaError(f"onnxruntime cannot quantize the model: {reason}") from error
    _keep_outputs_exact(quantized)
    clean(quantized)
    if not any(node.op_type == "QuantizeLinear" for node in quantized.graph.node):
        raise GammabetaError("the model has no convolution or linear layer to quantize")
    return quantized


def judge(
    expected: Expectation, run: Runner, name: str, before: int, calibration: int
) -> Quantized:
    """Measure what quantization changed, and refuse a file that it broke.

    Args:
        expected: What the model gives.
        run: Runs the quantized file.
        name: Of the file.
        before: Size of the float32 file in bytes.
        calibration: Samples that it was calibrated with.

    Raises:
        GammabetaError: If it fails at some batch size, or its noise is above ``MOST_NOISE``.
    """
    wrong = 0.0
    classified = same = done = 0
    for batch, outputs in zip(expected.inputs, expected.outputs, strict=True):
        got = checked_run(run, batch, outputs, name)
        if done < expected.samples:
            wrong += _square(got[0] - outputs[0])
            counted, alike = count_classes(outputs, got)
            classified, same, done = classified + counted, same + alike, done + len(batch[0])
    spread = _spread([outputs[0] for outputs in expected.outputs[: -_extra(expected)]])
    noise = (wrong / spread) ** 0.5 if spread else 0.0
    if not noise <= MOST_NOISE:
        raise GammabetaError(
            f"{name}: int8 changes the outputs by {100 * noise:.0f} % of their deviation, which "
            "leaves no use for them; no file was left. Calibrate with real samples, or stay with "
            "float32"
        )
    return Quantized(
        float_size_bytes=before,
        calibration_images=calibration,
        noise=noise,
        classified=classified,
        same=same,
    )


def _extra(expected: Expectation) -> int:
    """Count the batches at the end that repeat samples."""
    done = 0
    for i, batch in enumerate(expected.inputs):
        done += len(batch[0])
        if done >= expected.samples:
            return len(expected.inputs) - 1 - i
    return 0


def _spread(outputs: list[Tensor]) -> float:
    whole = torch.cat(outputs).double()
    return _square(whole - whole.mean())


def _square(x: Tensor) -> float:
    return float(x.double().pow(2).sum())


def _reader(calibration: list[tuple[Tensor, ...]], names: Sequence[str]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            if batch is None:
                return None
            return {name: x.contiguous().numpy() for name, x in zip(names, batch, strict=True)}

    return Reader()


def _keep_outputs_exact(proto: Any) -> None:
    """Take the rounding to 256 steps off the outputs: nothing is computed with them any more."""
    made = {node.output[0]: node for node in proto.graph.node}
    for output in proto.graph.output:
        back = made.get(output.name)
        if back is None or back.op_type != "DequantizeLinear":
            continue
        there = made[back.input[0]]
        source = made.get(there.input[0])
        users = sum(there.input[0] in node.input for node in proto.graph.node)
        if there.op_type == "QuantizeLinear" and source is not None and users == 1:
            source.output[list(source.output).index(there.input[0])] = output.name
            proto.graph.node.remove(back)
            proto.graph.node.remove(there)
    _drop_unused(proto)


def _drop_unused(proto: Any) -> None:
    used = {name for node in proto.graph.node for name in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantizer, which logs advice that is followed here already."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
