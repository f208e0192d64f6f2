"""Running a model and its twin on the same data, and comparing all they give."""

from __future__ import annotations

import copy

import torch

from norm_helpers import generator, randn


def step(model, x):
    """Return output, gradients (input's last) and buffers of one forward and backward pass."""
    x = x.clone().requires_grad_(x.is_floating_point())
    model.zero_grad()
    torch.manual_seed(7)
    y = model(x)
    cotangent = torch.randn(y.shape, generator=generator(11), dtype=torch.float64).to(y.dtype)
    y.backward(cotangent)
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    return y.detach(), gradients | {"input": x.grad}, buffers


def evaluate(model, x):
    """Return the output in evaluation mode; the mode is what it was afterwards."""
    mode = model.training
    model.eval()
    with torch.no_grad():
        torch.manual_seed(7)
        y = model(x)
    model.train(mode)
    return y


def assert_twins(model, reference, x, bound=1e-9):
    """Compare outputs, gradients and statistics in training, then outputs in evaluation.

    The bound is a share of the largest value. Gradients are measured by the largest of the model:
    that of a bias before a batch norm is nought, and what is computed for it is rounding. So is
    many a running mean, and statistics are measured by one at least.
    """
    got, expected = step(model, x), step(reference, x)
    near(got[0], expected[0], bound, "output")
    assert got[1].keys() == expected[1].keys()
    scale = max(float(g.abs().max()) for g in expected[1].values())
    for name, gradient in expected[1].items():
        near(got[1][name], gradient, bound, f"gradient of {name}", scale)
    assert got[2].keys() == expected[2].keys()
    for name, buffer in expected[2].items():
        near(got[2][name], buffer, bound, name, max(1.0, float(buffer.abs().max())))
    near(evaluate(model, x), evaluate(reference, x), bound, "output in evaluation")


def near(got, expected, bound, name, scale=None):
    got, expected = got.detach(), expected.detach()
    scale = float(expected.abs().max()) if scale is None else scale
    torch.testing.assert_close(
        got, expected, rtol=0, atol=bound * scale, msg=lambda m: f"{name}: {m}"
    )


def twin(model):
    """Return a copy that shares nothing."""
    return copy.deepcopy(model)


def images(n=2, size=8, channels=3, dtype=torch.float64):
    """Return a batch of noise."""
    return randn(n, channels, size, size, seed=3, dtype=dtype)


class Doubled(torch.autograd.Function):
    """Twice its input, with a gradient of its own."""

    @staticmethod
    def forward(ctx, x):  # noqa: ARG004 (what torch passes)
        return x * 2

    @staticmethod
    def backward(ctx, g):  # noqa: ARG004
        return g * 2
