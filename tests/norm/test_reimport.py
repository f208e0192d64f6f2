"""gammabeta imported anew in one process, as notebooks, autoreload and some test runners do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import gammabeta
from kernel_helpers import python

USE = """
import importlib, sys
import torch

X = torch.randn(4, 20, 6, 6, generator=torch.Generator().manual_seed(0))

def compiled(layer):
    torch._dynamo.reset()
    return torch.compile(layer, backend="aot_eager", fullgraph=True)

def check(layer):
    '''The layer does as torch's, forward and backward, on X and its square.'''
    plain = torch.nn.BatchNorm2d(20)
    got, want = [], []
    for module, found in ((layer, got), (plain, want)):
        x = X.clone().requires_grad_()
        y = module(x)
        y.backward(X.square())
        found += [y.detach(), x.grad]
    torch.testing.assert_close(got, want)
    return y

def check_operator():
    x = X.clone().requires_grad_()
    arguments = x, None, None, None, None, None, 1e-5, "identity", 0.0, 0
    torch.ops.gammabeta.batch_norm(*arguments)[0].backward(X.square())
    want = X.clone().requires_grad_()
    torch.nn.functional.batch_norm(want, None, None, training=True).backward(X.square())
    torch.testing.assert_close(x.grad, want.grad)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(x), *arguments[1:]
        assert torch.ops.gammabeta.batch_norm(*fake)[0].shape == X.shape

def purge():
    for name in [name for name in sys.modules if name.split(".")[0] == "gammabeta"]:
        del sys.modules[name]
"""
PURGED = """
import gammabeta
first, old = gammabeta.BatchNorm2d, gammabeta.BatchNorm2d(20)
old_compiled = compiled(gammabeta.BatchNorm2d(20))
check(old_compiled)
for _ in range(2):
    purge()
    import gammabeta
    assert gammabeta.BatchNorm2d is not first
    check(gammabeta.BatchNorm2d(20, backend="numba"))
    check(gammabeta.BatchNormAct2d(20, activation=None, backend="numba"))
    check_operator()
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(gammabeta.BatchNorm2d(20)))
    assert "_forward" in traced.code
    check(traced)
check(old)
check(old_compiled)
"""
COMPILED = """
import gammabeta
check(gammabeta.BatchNorm2d(20, backend="numba"))
purge()
import gammabeta
check(compiled(gammabeta.BatchNorm2d(20, backend="numba")))
"""
RELOADED = """
import gammabeta
check(gammabeta.BatchNorm2d(20, backend="numba"))
check(compiled(gammabeta.BatchNorm2d(20, backend="numba")))
for name in sorted(name for name in sys.modules if name.startswith("gammabeta.norm")):
    importlib.reload(sys.modules[name])
importlib.reload(gammabeta)
check(gammabeta.BatchNorm2d(20, backend="numba"))
check(compiled(gammabeta.BatchNorm2d(20, backend="numba")))
"""


@pytest.mark.parametrize(
    "code", [PURGED, COMPILED, RELOADED], ids=["purged", "compiled", "reloaded"]
)
def test_kernels_and_compiled_models_work_before_and_after(code):
    done = python(USE + code)
    assert done.returncode == 0, done.stderr


EDITED = """
sys.path.insert(0, sys.argv[1])
import gammabeta
check(gammabeta.BatchNorm2d(20, backend="numba"))
check_operator()
path = sys.argv[1] + "/gammabeta/norm/kernels/operator.py"
assert sys.modules["gammabeta.norm.kernels.operator"].__file__ == path
with open(path, "a") as file:
    file.write('''
_before = _forward_operator, _backward_operator, _forward_shapes

def _forward_operator(*inputs):
    print("new forward")
    return _before[0](*inputs)

def _backward_operator(*inputs):
    print("new backward")
    return _before[1](*inputs)

def _forward_shapes(*inputs):
    print("new shapes")
    return _before[2](*inputs)
''')
if sys.argv[2] == "purge":
    purge()
    import gammabeta
else:
    importlib.reload(sys.modules["gammabeta.norm.kernels.operator"])
print("edited")
check(gammabeta.BatchNorm2d(20, backend="numba"))
check_operator()
"""


@pytest.mark.parametrize("how", ["purge", "reload"])
def test_the_newest_code_is_used(how, tmp_path):
    source = Path(gammabeta.__file__).parent
    shutil.copytree(source, tmp_path / "gammabeta")
    done = python(USE + EDITED, str(tmp_path), how, env={"PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 0, done.stderr
    before, _, after = done.stdout.partition("edited\n")
    assert not before
    assert {"new forward", "new backward", "new shapes"} <= set(after.splitlines())


FORKED = """
import os, time
import gammabeta
torch.set_num_threads(2)
x = torch.randn(24, 20, 23, 17)
torch.nn.functional.gelu(torch.randn(64, 64, 32, 32))  # torch's threads are running
gammabeta.batch_norm(x, None, None, training=True, backend="numba")
child = os.fork()
if child == 0:
    purge()
    import gammabeta
    gammabeta.batch_norm(x, None, None, training=True, backend="numba")
    os._exit(0)
for _ in range(300):
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        sys.exit(status)
    time.sleep(0.1)
os.kill(child, 9)
sys.exit("the child hangs")
"""


def test_anew_in_a_forked_child_it_knows_of_the_fork():
    done = python(USE + FORKED)
    assert done.returncode == 0, done.stderr
