"""Exported files run as a stranger to gammabeta would run them, and models noted to the bit."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from gammabeta.data import Normalization
from gammabeta.data.loader import Loader
from gammabeta.deploy import Metadata
from training_helpers import digits, slice_of, trained_run

SIZE = 16
HALVES = Normalization()


def run_onnx(path: Path, *inputs: torch.Tensor) -> list[np.ndarray]:
    """The outputs of a file for inputs in the order of the file's own."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {value.name: x.numpy() for value, x in zip(session.get_inputs(), inputs, strict=True)}
    return session.run(None, feeds)


def run_pt2(path: Path, *inputs: torch.Tensor) -> torch.Tensor:
    """The output of an archive."""
    with path.open("rb") as file:
        return torch.export.load(io.BytesIO(file.read())).module()(*inputs)


def op_types(path: Path) -> list[str]:
    """The operators of a file, in order."""
    return [node.op_type for node in onnx.load(path).graph.node]


def expected(model: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    """What a model gives in eval mode; its modes are given back."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    with torch.no_grad():
        y = model(*inputs)
    for m, mode in modes:
        m.training = mode
    return y


def near(got: object, wanted: torch.Tensor, share: float = 1e-5) -> None:
    """Compare outputs; the bound is a share of the largest value."""
    bound = share * float(wanted.abs().max())
    torch.testing.assert_close(torch.as_tensor(got), wanted, rtol=0, atol=bound)


def trained(folder: Path) -> nn.Module:
    """The network that learned digits in one epoch, anew from its file."""
    return trained_run(folder).load_model()


def raw_bytes(count: int = 40) -> torch.Tensor:
    """Images as a decoder gives them: uint8 (N, H, W, 3)."""
    return torch.from_numpy(digits(SIZE).test.images[:count].copy())


def normalized(count: int = 40, part: str = "test") -> torch.Tensor:
    """The same images as the network takes them."""
    dataset = digits(SIZE)
    split = slice_of(getattr(dataset, part), count)
    return next(Loader(split, count, dataset.normalization).epoch(0))[0]


def about_digits() -> Metadata:
    """What a file of the digits' network is told."""
    dataset = digits(SIZE)
    return Metadata(
        classes=dataset.classes,
        normalization=dataset.normalization,
        image_size=SIZE,
        data="digits",
    )


def noted(model: nn.Module) -> list[object]:
    """All that an export could change in a model, to compare before and after."""
    found: list[object] = [torch.get_rng_state().tolist()]
    for module in model.modules():
        found.append((id(module), type(module), module.training, sorted(vars(module))))
        found += [[id(hook) for hook in module._forward_hooks.values()]]
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                bits = tensor.detach().numpy().tobytes()
                found.append((id(tensor), tensor._version, tensor.requires_grad, tensor.grad, bits))
    return found


def warmed(model: nn.Module, *inputs: torch.Tensor) -> nn.Module:
    """A model whose running statistics and affine parameters are not the initial ones."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator))
        model.train()(*inputs)
    return model
