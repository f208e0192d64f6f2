"""Where torch crashes or errs on strided 1x1 convolutions in channels-last memory.

    python -m benchmarks.pointwise [--isa AVX2]

Forward and backward of one convolution after the other against float64, in a process of its own
for each number of input channels. ``--isa`` caps what oneDNN uses, as on a lesser CPU.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from benchmarks.harness import print_machine, print_table, save_rows

CHANNELS = (1, 2, 3, 5, 7, 8, 9, 12, 13, 15, 16, 17, 20, 24, 31, 32)
SECONDS = 12
PROBE = """
import sys, torch
channels = int(sys.argv[1])
worst = 0.0
for stride in (2, 3, 4):
    for size in (16, 32, 33, 64):
        for outputs in (8, 16, 48):
            torch.manual_seed(0)
            x, w = torch.randn(4, channels, size, size), torch.randn(outputs, channels, 1, 1)
            x = x.to(memory_format=torch.channels_last).requires_grad_()
            y = torch.conv2d(x, w.requires_grad_(), None, stride)
            dy = torch.randn(y.shape)
            got = y, *torch.autograd.grad(y, (x, w), dy.to(memory_format=torch.channels_last))
            x, w = (t.detach().double().contiguous().requires_grad_() for t in (x, w))
            y = torch.conv2d(x, w, None, stride)
            expected = y, *torch.autograd.grad(y, (x, w), dy.double())
            for a, b in zip(got, expected):
                worst = max(worst, float((a.detach() - b.detach()).abs().max() / b.abs().max()))
print(worst)
"""


def probe(channels: int, isa: str | None) -> str:
    """Return in words how 36 convolutions of so many input channels ended."""
    environment = dict(os.environ)
    if isa:
        environment |= {"ONEDNN_MAX_CPU_ISA": isa, "ATEN_CPU_CAPABILITY": isa.lower()}
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PROBE, str(channels)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "hangs"
    if done.returncode:
        return f"crashes (signal {-done.returncode})"
    error = float(done.stdout)
    return f"off by {100 * error:.3g} %" if error > 1e-4 else "right"


def main() -> None:
    """Probe one number of channels after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--isa", choices=("AVX2",), help="the most that oneDNN may use")
    parser.add_argument("--rounds", type=int, default=1, help="probes of each; the worst counts")
    options = parser.parse_args()
    print_machine()
    rows: list[dict[str, object]] = []
    for channels in CHANNELS:
        found = {probe(channels, options.isa) for _ in range(options.rounds)}
        worst = next((f for f in sorted(found) if f != "right"), "right")
        rows.append({"isa": options.isa or "all", "input channels": channels, "found": worst})
    print_table(rows)
    save_rows("pointwise", rows)


if __name__ == "__main__":
    main()
