"""The compiled CPU kernels give the same bits on any number of threads, and in any company."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from gammabeta import batch_norm
from kernel_helpers import BF16, F32, fused, inputs_of, laid, python
from norm_helpers import ACTIVATIONS, assert_same, randn, with_gradients

# dtype, layout, activation, pool, residual: every family of loops.
CASES = [
    (F32, "rows", "relu", None, False),
    (F32, "rows", "relu", None, True),
    (F32, "rows", "relu", 2, False),
    (F32, "rows", "relu", 3, False),
    (F32, "planes", "relu", None, False),
    (F32, "planes", "silu", None, True),
    (BF16, "rows", "relu", None, False),
    (BF16, "rows", "relu", 2, False),
    (BF16, "planes", "relu", None, False),
]
EACH = pytest.mark.parametrize(("dtype", "layout", "case", "pool", "residual"), CASES, ids=str)
SHAPE = (24, 20, 23, 17)


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(dtype, layout, case, pool, residual, threads):
    torch.set_num_threads(threads)
    function = fused(layout, pool=pool, **ACTIVATIONS[case][0])
    return with_gradients(function, inputs_of(SHAPE, dtype, residual=residual))


@EACH
def test_any_number_of_threads_gives_the_same_bits(dtype, layout, case, pool, residual):
    alone = run(dtype, layout, case, pool, residual, 1)
    for threads in (2, 3, 8, 2):
        assert_same(run(dtype, layout, case, pool, residual, threads), alone)


def test_running_statistics_have_the_same_bits_on_any_number_of_threads():
    def statistics(threads):
        torch.set_num_threads(threads)
        stats = torch.zeros(20), torch.ones(20)
        batch_norm(randn(*SHAPE), *stats, training=True, backend="numba")
        return {"mean": stats[0], "var": stats[1]}

    alone = statistics(1)
    for threads in (2, 8):
        assert_same(statistics(threads), alone)


def together(work):
    """Run ``work(i)`` in four Python threads at once, and return what it returned."""
    results, start = {}, threading.Barrier(4)

    def one(i):
        start.wait()
        results[i] = work(i)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(results) == 4, "a thread failed or hangs"
    return results


def test_several_python_threads_at_once():
    arguments = [(F32, "rows", "relu", 2, False), (F32, "planes", "relu", None, False)]
    alone = [run(*arguments[i % 2], 2) for i in range(4)]

    def work(i):
        return [run(*arguments[i % 2], 2) for _ in range(8)]

    for i, results in together(work).items():
        for result in results:
            assert_same(result, alone[i])


def test_beside_torchs_own_operators():
    a, x = randn(300, 300), randn(8, 20, 64, 64)
    product, activated = a @ a, torch.nn.functional.gelu(x)
    alone = run(*CASES[0], 2)

    def work(i):
        if i % 2:
            return all(
                torch.equal(torch.nn.functional.gelu(x), activated)
                and torch.allclose(a @ a, product)
                for _ in range(20)
            )
        return [run(*CASES[0], 2) for _ in range(5)]

    for i, result in together(work).items():
        if i % 2:
            assert result
        else:
            for one in result:
                assert_same(one, alone)


def test_backward_on_another_thread_than_forward():
    x = laid(randn(*SHAPE), "rows").requires_grad_()
    dy = randn(*SHAPE, seed=3)
    y = fused("rows", activation="relu")(x)
    (want,) = torch.autograd.grad(y, x, dy, retain_graph=True)
    for got in together(lambda _: torch.autograd.grad(y, x, dy, retain_graph=True)[0]).values():
        assert torch.equal(got, want)


class Normalised(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        x = randn(*SHAPE, seed=i)
        return batch_norm(x, None, None, training=True, activation="relu", backend="numba")


def test_in_a_forked_worker_of_a_loader():
    torch.set_num_threads(2)
    want = [Normalised()[i] for i in range(4)]  # threads are running when the workers are forked
    loader = DataLoader(
        Normalised(), batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    for got, expected in zip(loader, want, strict=True):
        assert torch.equal(got, expected)


FORK = """
import os, sys, threading, time
import torch
from gammabeta import batch_norm
from norm_helpers import randn

torch.set_num_threads(2)
x = randn(24, 20, 23, 17)
torch.nn.functional.gelu(torch.randn(64, 64, 32, 32))  # torch's threads are running
if sys.argv[1] == "warm":
    batch_norm(x, None, None, training=True, activation="relu", backend="numba")
child = os.fork()
if child == 0:
    y = batch_norm(x, None, None, training=True, activation="relu", backend="numba")
    torch.save(y, sys.argv[2])
    os._exit(0)
for _ in range(600):
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        break
    time.sleep(0.1)
else:
    os.kill(child, 9)
    sys.exit("the child hangs")
y = batch_norm(x, None, None, training=True, activation="relu", backend="numba")
assert status == 0, status
assert torch.equal(torch.load(sys.argv[2]), y)
"""


@pytest.mark.parametrize("start", ["warm", "cold"])
def test_after_a_bare_fork(start, tmp_path):
    """Cold: the parent has torch's threads, but has not run a kernel yet."""
    done = python(FORK, start, str(tmp_path / "y.pt"))
    assert done.returncode == 0, done.stderr
