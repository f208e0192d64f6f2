"""What the process computes with is chosen by rule, said in words, and worth its trouble."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from gammabeta import runtime
from gammabeta.errors import GammabetaError
from training_helpers import environment


@pytest.fixture(autouse=True)
def _threads_given_back():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_precision_that_is_asked_for_is_taken(precision):
    assert runtime.choose_precision(precision) == (precision, "as asked")


@pytest.mark.parametrize(
    ("flags", "precision", "reason"),
    [
        ({"avx512_bf16": True}, "bf16", "this CPU has bf16 instructions"),
        ({"amx_bf16": True, "avx2": True}, "bf16", "this CPU has bf16 instructions"),
        ({"avx512_bf16": False, "avx2": True}, "fp32", "this CPU has no bf16 instructions"),
        ({}, "fp32", "this CPU has no bf16 instructions"),
    ],
    ids=["avx512", "amx", "neither", "unknown"],
)
def test_auto_follows_the_cpus_flags(monkeypatch, flags, precision, reason):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert runtime.choose_precision("auto") == (precision, reason)


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc/cpuinfo")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags' names are those of x86")
def test_the_flags_of_torch_are_those_of_the_kernel():
    with open("/proc/cpuinfo", encoding="ascii") as file:  # noqa: PTH123 - not a regular file
        words = file.read().split()
    assert runtime.has_bf16_instructions() == bool({"avx512_bf16", "amx_bf16"} & set(words))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"precision": "fp16"}, "precision is 'fp16', but must be auto, fp32 or bf16"),
        ({"device": "tpu"}, "device is 'tpu', but must be auto, cpu or cuda"),
        ({"threads": 0}, "threads is 0, but"),
        ({"threads": -2}, "threads is -2, but"),
    ],
    ids=str,
)
def test_an_unknown_choice_is_refused_with_its_value(given, message):
    with pytest.raises(GammabetaError, match=message):
        runtime.configure(**given)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_an_absent_cuda_is_refused_and_auto_is_the_cpu():
    with pytest.raises(GammabetaError, match="--device cpu"):
        runtime.choose_device("cuda")
    assert runtime.choose_device("auto") == "cpu"


def python(code, **variables):
    done = subprocess.run([sys.executable, "-c", code], env=environment(**variables),
                          capture_output=True, text=True, check=True, timeout=120)  # fmt: skip
    return done.stdout.strip()


def test_threads_are_applied_and_described():
    code = (
        "import torch; from gammabeta import runtime as r; m = r.configure('fp32', 'cpu', 3);"
        "print(torch.get_num_threads(), m.threads, m.describe())"
    )
    said = python(code)
    assert said.startswith("3 3 runtime: torch ")
    assert "cpu, 3 threads, fp32 (as asked)" in said


@pytest.mark.skipif(not hasattr(__import__("os"), "sched_setaffinity"), reason="no affinity here")
def test_threads_are_by_default_the_cores_that_may_be_used():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from gammabeta import runtime as r; print(r.configure().threads)"
    )
    assert python(code) == "1"


FAULTS = """
import resource, torch
from gammabeta import runtime
said = runtime.tune_allocator()
def churn():
    for _ in range(10):
        torch.empty(64 * 2**20, dtype=torch.uint8).fill_(1)
churn()  # glibc needs some rounds until freed neighbours join
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
churn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, said)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is tuned")
def test_a_tuned_allocator_keeps_its_pages_and_the_switch_leaves_it_alone():
    tuned, said = python(FAULTS).split(" ", 1)
    alone, why = python(FAULTS, GAMMABETA_TUNE_ALLOCATOR="0").split(" ", 1)
    assert (said, why) == ("tuned", "left alone (GAMMABETA_TUNE_ALLOCATOR=0)")
    assert int(alone) > 100, "this test needs a system that faults pages in"
    assert int(tuned) * 5 < int(alone)


def test_peak_memory_grows_with_what_is_held():
    code = (
        "import torch; from gammabeta.runtime import peak_memory_bytes as peak; a = peak();"
        "x = torch.ones(100 * 2**20, dtype=torch.uint8); print(peak() - a)"
    )
    assert 90 * 2**20 < int(python(code)) < 200 * 2**20
