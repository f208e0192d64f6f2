"""Very many channels: right values, the same bits for any threads, little scratch memory."""

from __future__ import annotations

import pytest
import torch

from gammabeta.norm.kernels import fused
from gammabeta.norm.kernels.program import Run, plan_of, program
from kernel_helpers import fused as kernels
from kernel_helpers import inputs_of
from norm_helpers import assert_matches, assert_same, reference, running, with_gradients

# Around the length of a row that is cut into tiles, the length of a tile, and blocks of 128 rows.
SHAPES = [(7, 4095), (9, 4097), (3, 5003), (130, 4163), (70, 4160), (3, 20_011), (66, 1001)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_wide_rows_match_the_oracle(shape, training):
    stats = None if training else running(shape[1])
    subject = kernels("rows", stats=stats, activation="relu")

    def oracle(**t):
        return reference(**t, stats=stats, act=torch.relu)

    assert_matches(subject, oracle, inputs_of(shape), rtol=1e-4, atol=1e-5)


def test_any_number_of_threads_gives_the_same_bits():
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            subject = kernels("rows", activation="relu")
            found.append(with_gradients(subject, inputs_of((5, 40_003))))
    finally:
        torch.set_num_threads(before)
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


@pytest.mark.parametrize(
    "shape", [(64, 300_001), (64, 50_001), (4096, 8192), (64, 1001), (1 << 16, 96)], ids=str
)
def test_scratch_memory_is_a_part_of_the_data(shape):
    plan = plan_of(torch.float32, "rows", "relu", 0.01, 0, 1e-5)
    scratch = Run(program(plan, torch.Size(shape), False, False)).scratch
    assert scratch <= max(0.2 * shape[0] * shape[1], 2**17 * 5)


def test_much_scratch_memory_is_not_kept():
    x = torch.zeros(2, 300_001)
    kernels("rows")(x)
    assert sum(t.numel() for t in fused._scratch) <= 8 * fused._MOST_KEPT
    assert all(t.numel() <= fused._MOST_KEPT for t in fused._scratch)
