"""Where Numba is missing, broken or off, torch's operators serve, and that is said once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import llvmlite
import pytest
import torch

from gammabeta import batch_norm
from kernel_helpers import python
from norm_helpers import randn

USE = """
import json, logging, sys
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stdout)
import torch
from gammabeta import BatchNorm2d, GammabetaError, batch_norm
from gammabeta.norm.measure import channel_moments
from norm_helpers import randn

x = randn(4, 20, 6, 6).requires_grad_()
y = batch_norm(x, None, None, training=True, activation="silu")
y.backward(randn(4, 20, 6, 6, seed=1))
BatchNorm2d(20)(x)
channel_moments(x)
torch.compile(BatchNorm2d(20), backend="eager")(x).sum().backward()
try:
    batch_norm(x, None, None, training=True, backend="numba")
except GammabetaError as refused:
    print("RESULT", json.dumps([y.tolist(), x.grad.tolist(), str(refused)]))
"""
# What happens before gammabeta is imported, and the reason that is given.
BROKEN = {
    "missing": ("sys.modules['numba'] = None", "numba"),
    "numpy": ("import numpy; numpy.__version__ = '9.0'", "Numba needs NumPy"),
    "old": ("import numba.extending; del numba.extending.overload", "name 'overload'"),
    "compiler": (
        "from numba.core.ccallback import CFunc\ndef fail(self): raise RuntimeError('no target')\n"
        "CFunc.compile = fail",
        "no target",
    ),
    "disabled": ("import os; os.environ['NUMBA_DISABLE_JIT'] = '1'", "NUMBA_DISABLE_JIT is set"),
    "switched off": ("import numba; numba.config.DISABLE_JIT = 1", "NUMBA_DISABLE_JIT is set"),
}  # fmt: skip


def assert_served(before, reason, path=()):
    done = python(f"import sys; sys.path[:0] = {[str(p) for p in path]!r}\n{before}\n{USE}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    (result,) = (line.removeprefix("RESULT ") for line in lines if line.startswith("RESULT "))
    y, dx, refusal = json.loads(result)
    x = randn(4, 20, 6, 6).requires_grad_()
    want = batch_norm(x, None, None, training=True, activation="silu", backend="eager")
    want.backward(randn(4, 20, 6, 6, seed=1))
    torch.testing.assert_close((torch.tensor(y), torch.tensor(dx)), (want, x.grad))
    (warning,) = (line for line in lines if line.startswith("WARNING"))
    assert "torch's own operators" in warning
    for text in (warning, refusal):
        assert reason in text
        assert "\n" not in text
    assert refusal.startswith("backend='numba' cannot serve this call")


@pytest.mark.parametrize("case", BROKEN)
def test_auto_is_eager_and_says_why_once(case):
    assert_served(*BROKEN[case])


def test_llvmlite_without_its_library(tmp_path):
    shutil.copytree(
        Path(llvmlite.__file__).parent, tmp_path / "llvmlite", ignore=shutil.ignore_patterns("*.so")
    )
    assert_served("", "llvmlite", [tmp_path])


LATER = """
import numba, torch
from gammabeta import batch_norm
from norm_helpers import randn

x = randn(4, 20, 6, 6).requires_grad_()
batch_norm(x, None, None, training=True, activation="relu", backend="numba")
numba.config.DISABLE_JIT = 1  # as for debugging somebody's own loops
y = batch_norm(x, None, None, training=True, activation="silu", backend="numba")
y.backward(randn(4, 20, 6, 6, seed=1))
assert numba.config.DISABLE_JIT == 1
"""


def test_switched_off_later_the_kernels_go_on():
    done = python(LATER)
    assert done.returncode == 0, done.stderr


FIRST = {
    "compiled": "torch.compile(layer, backend='aot_eager', fullgraph=True)(x)",
    "exported": "torch.export.export(layer.eval(), (x,)); layer.train()",
    "exported strictly": "torch.export.export(layer.eval(), (x,), strict=True); layer.train()",
    "traced": "torch.jit.trace(layer.eval(), x); layer.train()",
    "symbolic": "torch.fx.symbolic_trace(torch.nn.Sequential(layer))(x)",
    "transformed": "torch.func.vmap(layer.eval())(x.unsqueeze(0)); layer.train()",
    "fake": "with torch._subclasses.FakeTensorMode(): BatchNorm2d(20)(torch.randn(4, 20, 6, 6))",
    "meta": "with torch.device('meta'): layer(x)",
    "inference": "with torch.inference_mode(): layer(x)",
}
THEN = """
import warnings
import torch
from gammabeta import BatchNorm2d
warnings.simplefilter("ignore")
x, layer = torch.randn(4, 20, 6, 6), BatchNorm2d(20)
{first}
assert "FusedBatchNorm" in layer(x.requires_grad_()).grad_fn.name()
"""


@pytest.mark.parametrize("how", FIRST)
def test_a_first_call_of_any_kind_leaves_the_kernels_usable(how):
    done = python(THEN.format(first=FIRST[how]))
    assert done.returncode == 0, done.stderr
    assert "cannot be used" not in done.stderr


WITHOUT_OPENMP = """
import ctypes
import numba, torch

class Without(ctypes.CDLL):
    def __getattr__(self, name):
        if name.startswith("GOMP_"):
            raise AttributeError(name)
        return super().__getattr__(name)

ctypes.CDLL = Without
from gammabeta import batch_norm
from norm_helpers import randn

torch.set_num_threads(2)
y = batch_norm(randn(24, 20, 23, 17), None, None, training=True, backend="numba")
torch.save(y, __import__("sys").argv[1])
"""


def test_without_openmps_entry_point_the_calling_thread_computes_the_same(tmp_path):
    done = python(WITHOUT_OPENMP, str(tmp_path / "y.pt"))
    assert done.returncode == 0, done.stderr
    want = batch_norm(randn(24, 20, 23, 17), None, None, training=True, backend="numba")
    assert torch.equal(torch.load(tmp_path / "y.pt"), want)
