"""Two processes: DDP with two forwards before one backward, which torch's layers cannot serve."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import gammabeta
from norm_helpers import randn


def network(kind):
    torch.manual_seed(0)
    norms = {
        "torch": nn.BatchNorm1d,
        "ours": gammabeta.BatchNorm1d,
        "act": gammabeta.BatchNormAct1d,
        "frozen": lambda c: gammabeta.freeze(gammabeta.BatchNorm1d(c)),
        "renorm": gammabeta.BatchRenorm1d,
    }
    return nn.Sequential(nn.Linear(3, 4), norms[kind](4), nn.Linear(4, 2))


def two_forwards(model, rank, between=lambda: None):
    """One step as in a GAN or a siamese network; returns the gradients."""
    ys = []
    for i in range(2):
        between()
        ys.append(model(randn(6, 3, seed=2 * rank + i)))
    dys = [randn(6, 2, seed=10 + 2 * rank + i) for i in range(2)]
    torch.autograd.backward(ys, dys)
    return [p.grad for p in model.parameters() if p.grad is not None]


def one(kind, broadcast, rank):
    """The gradients, or the error; buffers are broadcast by DDP, averaged by hand, or left."""
    inner = network(kind)
    model = DistributedDataParallel(inner, broadcast_buffers=broadcast == "ddp")

    @torch.no_grad()
    def by_hand():
        for buffer in inner.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer.div_(2)

    try:
        return two_forwards(model, rank, by_hand if broadcast == "by-hand" else lambda: None)
    except RuntimeError as error:
        return str(error)


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    torch.save({case: one(*case, rank) for case in CASES}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


CASES = [(kind, broadcast) for kind in ("ours", "act", "frozen", "renorm")
         for broadcast in ("ddp", "by-hand", "none")] + [("torch", "by-hand")]  # fmt: skip


# One test, for starting two processes takes longer than all they do.
def test_two_forwards_before_a_backward_give_the_mean_gradient(tmp_path):
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    # Averaging breaks torch's layer (DDP hides its own writes), so that this proves something.
    assert any("modified by an inplace" in str(r.pop(("torch", "by-hand"))) for r in results)
    for kind, broadcast in results[0]:
        alone = [two_forwards(network(kind), rank) for rank in range(2)]
        expected = [(a + b) / 2 for a, b in zip(*alone, strict=True)]
        for result in results:
            got = result[kind, broadcast]
            assert not isinstance(got, str), f"{kind}, {broadcast}: {got}"
            torch.testing.assert_close(
                got, expected, msg=lambda m, case=(kind, broadcast): f"{case}: {m}"
            )
