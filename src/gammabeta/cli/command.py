"""A command that knows what other programs call its options."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

_ELSEWHERE = {
    "--batch-size": "--batch --bs --mini-batch",
    "--budget": "--minutes --time --max-time --time-limit",
    "--data": "--dataset --data-dir --data-path --images --input",
    "--device": "--gpu --gpus --cuda --no-cuda --cpu",
    "--epochs": "--num-epochs --n-epochs --max-epochs --nepochs",
    "--image-size": "--size --img-size --imgsz --resolution --input-size",
    "--json": "--format --output-format",
    "--label-smoothing": "--smoothing",
    "--lang": "--language --locale",
    "--lr": "--learning-rate --lrate --eta --lr0 --max-lr",
    "--out": "--output --output-dir --outdir --dir --save --save-dir --run --logdir --project",
    "--precision": "--amp --fp16 --fp32 --bf16 --half --dtype --mixed-precision",
    "--quiet": "--silent --no-progress",
    "--resume": "--continue --restart --resume-from",
    "--root": "--cifar --cifar-dir --download-dir --data-root --data-dir --cache",
    "--samples": "--images --num-samples --batches",
    "--seed": "--random-seed --manual-seed --rng",
    "--tensorboard": "--tb",
    "--threads": "--workers --num-workers --jobs --cores --cpus --num-threads --nproc",
    "--top": "--topk --top-k --k",
    "--verbose": "--info",
    "--weight-decay": "--wd --decay --l2",
    "--weights": "--checkpoint --ckpt --model --pretrained --state-dict --load",
}


class Command(TyperCommand):
    """Answers an option of another program with its own one for it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, and add our names to the error for an unknown option."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            asked = str(getattr(error, "option_name", "")).replace("_", "-").lower()
            if hasattr(error, "possibilities"):
                own = {name for parameter in self.params for name in parameter.opts}
                known = [ours for ours in _ELSEWHERE if asked in {ours, *_ELSEWHERE[ours].split()}]
                error.possibilities = own.intersection(known) or error.possibilities
            raise
