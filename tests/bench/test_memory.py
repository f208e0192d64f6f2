"""Peaks against what is known to be allocated, and without a word on stderr."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from gammabeta.bench.memory import live_bytes, peak_bytes
from training_helpers import environment

MB = 10**6


def block():
    return torch.empty(MB, dtype=torch.uint8)


def two_at_once():
    first = block()
    second = block()
    del first
    return second


def one_after_the_other():
    for _ in range(5):
        last = block()
        del last


def inside_an_operator():
    x = torch.ones(MB // 4, requires_grad=True)
    (x * 2).exp().backward(torch.ones(MB // 4))  # what the graph keeps, and gradients


@pytest.mark.parametrize(
    ("call", "expected"), [(two_at_once, 2), (one_after_the_other, 1), (block, 1)]
)
def test_the_peak_is_what_was_alive_at_once(call, expected):
    assert peak_bytes(call) == expected * MB


def test_the_peak_counts_what_the_graph_keeps():
    # x and dy, then x * 2 (freed by exp), exp's output, and two gradients on the way back
    assert 4 * MB <= peak_bytes(inside_an_operator) <= 6 * MB


def test_what_was_there_before_does_not_count_even_if_it_is_freed():
    before = [block()]

    def call():
        before.clear()
        return block()

    assert peak_bytes(call) == MB


def test_the_peak_is_the_same_every_time():
    assert len({peak_bytes(inside_an_operator) for _ in range(3)}) == 1


def test_shared_storage_is_counted_once_and_views_with_all_of_it():
    x = torch.zeros(100)
    assert live_bytes([x, x[:1], x.view(10, 10), torch.zeros(5)]) == 420


def test_nothing_is_printed_to_stderr():
    code = "from gammabeta.bench.memory import peak_bytes; peak_bytes(lambda: None)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), text=True,
                          capture_output=True, check=True)  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")


RESIDENT = """
import torch
from gammabeta.bench.memory import resident_peak_bytes
peak = torch.ones(200 * 2**20, dtype=torch.uint8)  # a peak before, which must be forgotten
del peak
print(resident_peak_bytes(lambda: torch.ones(100 * 2**20, dtype=torch.uint8)))
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
def test_resident_growth_is_that_of_the_call_though_it_was_freed():
    done = subprocess.run([sys.executable, "-c", RESIDENT], env=environment(), text=True,
                          capture_output=True, check=True)  # fmt: skip
    assert 95 * 2**20 < int(done.stdout) < 150 * 2**20
