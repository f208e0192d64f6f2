"""Compiled CPU kernels are kept on disk; where they cannot be, speed is lost.

And one run in which every access to memory is checked.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import gammabeta
from kernel_helpers import python

RUN = """
import json, logging, sys
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stdout)
import torch
import gammabeta
from gammabeta import batch_norm

x = torch.randn(4, 20, 6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
y = batch_norm(x, None, None, training=True, activation="relu")
found = gammabeta.__file__, y.grad_fn.name(), y.sum(0).flatten().tolist()
print("RESULT", json.dumps(found))
"""


@pytest.fixture
def copied(tmp_path):
    """A copy of the package without compiled code, and the environment that imports it."""
    source = Path(gammabeta.__file__).parent
    shutil.copytree(source, tmp_path / "gammabeta", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "gammabeta"


def run(package, code=RUN, **env):
    done = python(f"import sys; sys.path.insert(0, {str(package.parent)!r})\n{code}", env=env)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    (result,) = (line.removeprefix("RESULT ") for line in lines if line.startswith("RESULT "))
    path, function, values = json.loads(result)
    assert Path(path).parent == package
    logged = [line for line in lines if not line.startswith("RESULT ")]
    return function, values, logged, done.stderr


def test_the_second_process_compiles_nothing(copied):
    function, values, first, _ = run(copied)
    assert "FusedBatchNorm" in function
    warnings = [line for line in first if line.startswith("WARNING")]
    assert len(warnings) == 1
    assert "compiled the first CPU kernel in " in warnings[0]
    assert "kept on disk" in warnings[0]
    assert len(first) > len(warnings)  # and of each loop to who listens
    assert run(copied) == (function, values, [], "")
    changed = copied / "norm/kernels/native/activations.py"
    changed.write_text(changed.read_text() + "\n# another version\n")
    assert len(run(copied)[2]) == len(first), "code compiled from other sources was used"


def test_nowhere_to_keep_it_only_costs_speed(copied):
    """Files stand where directories would be made, so not even root can write there."""
    (copied / "norm/kernels/native/__pycache__").write_text("")
    nowhere = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"), "/dev/null/x")
    nowhere["PYTHONDONTWRITEBYTECODE"] = "1"
    function, values, first, _ = run(copied, **nowhere)
    again = run(copied, **nowhere)
    assert "FusedBatchNorm" in function
    assert again[1] == values
    assert len(again[2]) == len(first) > 1


@pytest.mark.parametrize(
    ("suffix", "damage"), [("nbi", b""), ("nbc", b"not compiled code")], ids=["index", "code"]
)
def test_damaged_files_only_cost_speed(copied, damage, suffix):
    function, values, first, _ = run(copied)
    files = list((copied / "norm/kernels/native/__pycache__").glob(f"*.{suffix}"))
    assert files
    for file in files:
        file.write_bytes(damage)
    again = run(copied)
    assert again[:2] == (function, values)
    assert len(again[2]) == len(first)


CHECKED = """
import itertools, torch
from gammabeta import batch_norm
from gammabeta.norm.kernels.native import compile
from kernel_helpers import laid
from norm_helpers import randn

assert compile.numba.config.BOUNDSCHECK

def run(shape, layout, activation, residual=False, pool=None, dtype=torch.float32):
    x = laid(randn(*shape, dtype=dtype), layout).requires_grad_()
    r = laid(randn(*shape, seed=1, dtype=dtype), layout) if residual else None
    for stats in ((None, None), (torch.zeros(shape[1]), torch.ones(shape[1]))):
        y = batch_norm(
            x, *stats, torch.ones(shape[1], requires_grad=True), None, stats[0] is None,
            residual=r, activation=activation, pool=pool, backend="numba",
        )
        y.backward(randn(*y.shape, dtype=dtype))
"""
MATRIX = """
for shape in [(2, 1), (2, 65), (70, 3), (67, 65), (1100, 64)]:
    run(shape, "rows", "relu")
for shape in [(2, 3, 1, 2), (3, 17, 5, 7), (5, 64, 3, 3), (2, 3, 90, 100)]:
    run(shape, "rows", "relu", True)
    run(shape, "planes", "silu", True, dtype=torch.bfloat16)
for h, w, c in itertools.product([1, 2, 3, 6], [1, 3, 5], [1, 16, 19]):
    run((2, c, h, w), "rows", "relu", pool=3)
    run((2, c, h + 1, w + 1), "rows", "relu", pool=2)
"""
WRONG = """
from gammabeta.norm.kernels import program
cut = program._cut_rows

def too_far(task):
    cut(task)
    task.rows += 1

program._cut_rows = too_far
run((64, 64), "rows", "relu")
"""
OUTSIDE = "a kernel reached outside its memory"


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """Compiled code that checks is kept apart from code that does not."""
    return {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path_factory.mktemp("checked"))}


def test_no_loop_leaves_its_memory(checked):
    done = python(CHECKED + MATRIX, env=checked)
    assert done.returncode == 0, done.stderr
    assert OUTSIDE not in done.stderr
    assert "Error" not in done.stderr


def test_a_loop_that_does_would_be_noticed(checked):
    assert OUTSIDE in python(CHECKED + WRONG, env=checked).stderr
