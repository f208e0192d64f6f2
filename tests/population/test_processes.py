"""Two and three processes with unequal shares, one with none: all end with the same statistics."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

from gammabeta import GammabetaError, recalibrate
from population_helpers import assert_same, images, network, statistics
from surgery_helpers import twin

SHARES = {2: [slice(0, 17), slice(17, 23)], 3: [slice(0, 0), slice(0, 5), slice(5, 23)]}
MODES = {"sequential": True, "one pass": False}


def broken(rank):
    """A forward that fails in one process only, at its second batch."""
    calls = []

    def forward(model, batch):
        calls.append(batch)
        if rank == 1 and len(calls) == 2:
            raise RuntimeError("the cable is out")
        model(batch)

    return forward


def message(call):
    try:
        call()
    except (GammabetaError, RuntimeError) as error:
        return str(error)
    return "nothing was wrong"


def work(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    mine, found = images()[SHARES[world][rank]].split(4), {}
    mine = [batch for batch in mine if len(batch)]
    for mode, sequential in MODES.items():
        model = network("residual")
        report = recalibrate(model, mine, sequential=sequential)
        found[mode] = statistics(model), report.batches, report.samples
        wrapped = DistributedDataParallel(network("residual"))
        recalibrate(wrapped, mine, sequential=sequential)
        found[mode, "wrapped"] = statistics(wrapped.module)
        for name, forward in {"broken": broken(rank), "fine": None}.items():
            model = network("residual")
            before = statistics(model)
            loader = [] if name == "fine" else [*mine, images(4)]
            says = message(lambda: recalibrate(
                model, loader, forward=forward, sequential=sequential))  # noqa: B023  # fmt: skip
            found[mode, name] = says, statistics(model), before
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


# One test a size, for starting processes takes longer than all they do.
@pytest.mark.parametrize("world", SHARES)
def test_processes_agree_to_the_bit_and_with_one_process_that_has_all(world, tmp_path):
    multiprocessing.spawn(work, (world, str(tmp_path)), nprocs=world)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(world)]
    for mode, sequential in MODES.items():
        alone = network("residual")
        parts = [b for share in SHARES[world] for b in images()[share].split(4) if len(b)]
        recalibrate(alone, parts, sequential=sequential)
        for result in results:
            got, batches, samples = result[mode]
            assert (batches, samples) == (len(parts), 23)
            assert_same(got, statistics(alone))
            assert_same(result[mode, "wrapped"], got, bound=1e-14)
            for name, (mean, var) in results[0][mode][0].items():
                assert torch.equal(got[name][0], mean)
                assert torch.equal(got[name][1], var)
        for rank, result in enumerate(results):
            says, after, before = result[mode, "broken"]
            assert "the cable is out" in says
            assert says.startswith("process 1 failed: RuntimeError") == (rank != 1)
            assert all(torch.equal(after[n][i], before[n][i]) for n in before for i in (0, 1))
            assert "no batch" in result[mode, "fine"][0]


def test_a_process_alone_agrees_with_itself():
    model = network("plain")
    reference = twin(model)
    recalibrate(model, images().split(4))
    recalibrate(reference, [images()])
    assert_same(statistics(model), statistics(reference))
