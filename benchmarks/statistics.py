"""How right batch norm is: its error against float64, beside torch's, where means are large.

    python -m benchmarks.statistics

Per case, ten draws of (32, 16, 14, 14): the largest relative error of the batch's variance, and of
the output as a share of its own largest value. Data are what the dtype holds, the reference is
float64 on the same data. Cases that bfloat16 cannot tell from a constant are left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.harness import print_machine, print_table, save_rows
from gammabeta import BatchNorm2d

CASES = [(0.0, 1.0), (1e2, 1.0), (1e4, 1.0), (1e4, 1e-2), (1e6, 1.0), (1e6, 1e3)]
SHAPE = (32, 16, 14, 14)
DRAWS = 10


def errors(norm: nn.BatchNorm2d, x: Tensor) -> tuple[float, float]:
    """Return the relative errors of variance and output for one batch."""
    y = norm(x).detach().double()
    exact = x.double()
    var, mean = torch.var_mean(exact, (0, 2, 3), correction=0, keepdim=True)
    want = (exact - mean) / (var + norm.eps).sqrt()
    count = x.numel() / x.shape[1]
    got = norm.running_var.double() * (count - 1) / count
    scale = (var + norm.eps).flatten()
    return ((got - var.flatten()) / scale).abs().max().item(), (
        ((y - want).abs().max() / want.abs().max()).item()
    )


def measure(
    kind: type[nn.BatchNorm2d],
    dtype: torch.dtype,
    layout: torch.memory_format,
    mean: float,
    std: float,
) -> tuple[float, float]:
    """Return the worst errors over the draws."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(DRAWS):
        x = torch.randn(SHAPE, generator=generator, dtype=torch.float64) * std + mean
        x = x.to(dtype).contiguous(memory_format=layout)
        found.append(errors(kind(SHAPE[1], momentum=1.0, affine=False), x))
    return max(v for v, _ in found), max(y for _, y in found)


def main() -> None:
    """Print and save one row a case."""
    print_machine()
    rows: list[dict[str, object]] = []
    layouts = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}
    for dtype in (torch.float32, torch.bfloat16):
        for layout, memory_format in layouts.items():
            for mean, std in CASES:
                if mean * torch.finfo(dtype).eps > std:
                    continue
                row: dict[str, object] = {
                    "dtype": str(dtype).removeprefix("torch."),
                    "layout": layout,
                    "mean": f"{mean:g}",
                    "std": f"{std:g}",
                }
                for name, kind in (("torch", nn.BatchNorm2d), ("gammabeta", BatchNorm2d)):
                    var, y = measure(kind, dtype, memory_format, mean, std)
                    row |= {f"{name}: variance": f"{var:.1e}", f"{name}: output": f"{y:.1e}"}
                rows.append(row)
    print_table(rows)
    save_rows("statistics", rows)


if __name__ == "__main__":
    main()
