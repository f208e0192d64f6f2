"""What ``fold`` finds in known models, how exact it is, and how much faster inference becomes.

    python -m benchmarks.fold [NAME ...]

Models in eval mode, float32, with random weights, statistics, γ and β. The folded model races the
unfolded one and ``torch.fx.experimental.optimization.fuse``, whose outputs are compared as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks import rivals
from benchmarks.harness import print_table, save_rows
from gammabeta import fold
from gammabeta.bench.measure import Samples, interleave
from gammabeta.bench.models import build
from gammabeta.bench.tasks import random_images
from gammabeta.runtime import Runtime
from gammabeta.surgery.folding.report import FoldReport

SIZES = {"net": 32, "torchvision:densenet121": 64}
"""Pixels where they are not ``PIXELS``."""
PIXELS = 96
MODELS = (
    "net",
    *(
        f"torchvision:{name}"
        for name in (
            *("resnet18", "resnet50", "vgg11_bn", "densenet121", "googlenet", "mobilenet_v2"),
            *("mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5", "efficientnet_b0"),
            "regnet_y_400mf",
        )
    ),
    *(
        f"timm:{name}"
        for name in ("resnet26t", "resnetv2_50", "efficientnet_lite0", "mobilenetv3_small_100",
                     "repvgg_a0", "hrnet_w18_small", "dla34", "dpn48b")
    ),
)  # fmt: skip
UNFOLDED, FOLDED, FX = "unfolded", "folded", "torch.fx fuse"


def awake(model: nn.Module) -> nn.Module:
    """Give every batch norm statistics, γ and β that a folding must not lose."""
    source = torch.Generator().manual_seed(1)
    ranges = {"weight": (0.5, 1.5), "bias": (-0.5, 0.5), "running_mean": (-0.5, 0.5)}
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            for name, (low, high) in (ranges | {"running_var": (0.5, 1.5)}).items():
                getattr(module, name).data.uniform_(low, high, generator=source)
    return model.eval()


def fx_fused(model: nn.Module, x: Tensor) -> tuple[nn.Module | None, str]:
    """Return the rival's model, and its largest error or why there is none."""
    from torch.fx.experimental.optimization import fuse

    try:
        fused = fuse(model)
        with torch.no_grad():
            error = float((fused(x) - model(x)).abs().max())
    except Exception as failure:  # noqa: BLE001 (whatever it stops at)
        return None, f"fails: {type(failure).__name__}"
    return fused, f"{error:.2g}"


def race(subjects: dict[str, nn.Module], x: Tensor, rounds: int | None) -> dict[str, Samples]:
    """Time the models in turn."""

    def call(model: nn.Module) -> Callable[[], object]:
        return lambda: model(x)

    with torch.inference_mode():
        calls = {name: call(model) for name, model in subjects.items()}
        for warm in calls.values():
            warm()
        return interleave(calls, rounds=rounds, seconds=4.0)


def row(
    name: str, x: Tensor, report: FoldReport, timed: dict[str, Samples], fx: str, machine: Runtime
) -> dict[str, object]:
    """Return what was found and measured of a model at one batch size."""
    folded, theirs, verified = timed[FOLDED], timed.get(FX), report.verified
    kept = [entry for entry in report.left if not entry.what.startswith("not merged")]
    return {
        "model": name.removeprefix("torchvision:"),
        "batch": len(x),
        "pixels": x.shape[-1],
        "merged": report.merged,
        "affine": report.affine,
        "left": len(kept),
        "reasons": "; ".join(dict.fromkeys(entry.what for entry in kept)),
        "error": f"{verified.error:.2g}" if verified else "",
        "bound": f"{verified.bound:.2g}" if verified else "",
        "unfolded ms": f"{1e3 * timed[UNFOLDED].median:.4g}",
        "folded ms": f"{1e3 * folded.median:.4g}",
        "folded is faster by": f"{timed[UNFOLDED].times(folded):.2f}",
        "fx ms": f"{1e3 * theirs.median:.4g}" if theirs else "",
        "fx error": fx,
        "folded beats fx by": f"{theirs.times(folded):.2f}" if theirs else "",
        "rounds": len(folded.seconds),
        "layout": "channels last" if _last(x) else "NCHW",
        "threads": machine.threads,
        "allocator": machine.allocator,
    }


def _last(x: Tensor) -> bool:
    return x.stride(1) == 1


def measure(name: str, options: argparse.Namespace, machine: Runtime) -> list[dict[str, object]]:
    """Fold a model and race it at every batch size."""
    size = SIZES.get(name, PIXELS)
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    model = awake(build(name, size)).to(memory_format=layout)
    rows = []
    for batch in options.batch or (1, 32):
        x = random_images(batch, size, layout)
        folded = fold(model, x)
        report = folded.gammabeta_report
        assert isinstance(report, FoldReport)
        subjects = {UNFOLDED: model, FOLDED: folded}
        theirs, fx = fx_fused(model, x)
        if theirs is not None:
            subjects[FX] = theirs
        rows.append(row(name, x, report, race(subjects, x, options.rounds), fx, machine))
    return rows


def main() -> None:
    """Measure the models, one after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(MODELS), metavar="NAME")
    parser.add_argument("--rounds", type=int, help="default: as many as 4 s allow, 3 to 50")
    parser.add_argument("--batch", type=int, action="append", help="default: 1 and 32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--no-save", action="store_true", help="only print")
    options = parser.parse_args()
    machine = rivals.start()
    rows: list[dict[str, object]] = []
    for name in options.names:
        rows += measure(name, options, machine)
        print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    print_table(rows)
    if not options.no_save:
        save_rows("fold", rows)


if __name__ == "__main__":
    main()
