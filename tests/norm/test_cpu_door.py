"""Which calls the compiled CPU kernels take, why not the others, and what compilers see of them."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor

from gammabeta import BatchNorm2d, BatchNormAct2d, GammabetaError, batch_norm
from gammabeta.norm.kernels import cpu, operator
from kernel_helpers import BF16, F32, LAYOUTS, MODES, inputs_of, laid, python
from norm_helpers import assert_same, fill, randn, with_gradients

X = randn(4, 20, 6, 6)
CL = torch.channels_last
OPERATORS = operator.torch.ops.gammabeta  # defined by that module
REFUSED = {
    "float64": (lambda: (X.double(), {}), "torch.float64, not float32 or bfloat16"),
    "float16": (lambda: (X.half(), {}), "torch.float16, not float32 or bfloat16"),
    "sliced": (lambda: (X[..., ::2], {}), r"strides \(720, 36, 6, 2\), is not dense"),
    "expanded": (lambda: (X[:1].expand(4, -1, -1, -1), {}), "is not dense"),
    "transposed": (lambda: (X.transpose(2, 3), {}), "is not dense"),
    "empty": (lambda: (X[:0], {}), r"the memory of the input \(0, 20, 6, 6\)"),
    "meta": (lambda: (X.to("meta"), {}), "the input is on meta"),
    "sparse": (lambda: (randn(4, 20).to_sparse(), {}), "not a plain tensor"),
    "subclass": (lambda: (TwoTensor(X, X), {}), "the input is a TwoTensor, not a plain tensor"),
    "weight": (lambda: (X, {"weight": torch.ones(20).double()}), "a parameter is torch.float64"),
    "shape": (lambda: (X, {"weight": torch.ones(1)}), r"a parameter is torch.float32 \(1,\)"),
    "half": (lambda: (X, {"bias": torch.ones(20).half()}), "a parameter is torch.float16"),
    "residual": (lambda: (X, {"residual": X[:1]}), r"the residual is torch.float32 \(1, 20"),
    "residual-dtype": (lambda: (X, {"residual": X.to(BF16)}), "the residual is torch.bfloat16"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_served_is_an_error_that_says_why(case):
    make, message = REFUSED[case]
    x, options = make()
    message = f"backend='numba' cannot serve this call: .*{message}.*\"auto\""
    with pytest.raises(GammabetaError, match=message):
        batch_norm(x, None, None, training=True, backend="numba", **options)


@pytest.mark.parametrize(
    "case", ["float64", "float16", "sliced", "expanded", "transposed", "empty", "meta"]
)
def test_auto_serves_it_eagerly_and_says_nothing(case, caplog):
    x, options = REFUSED[case][0]()
    with caplog.at_level(logging.DEBUG):
        y = batch_norm(x, None, None, training=True, **options)
    assert not caplog.records
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    if case not in {"meta", "empty"}:
        want = torch.nn.functional.batch_norm(x, None, None, training=True)
        loose = {"rtol": 2e-3, "atol": 2e-3} if case == "float16" else {}
        torch.testing.assert_close(y, want, **loose)


SUBCLASSED = {
    "weight": lambda two: (None, None, two(torch.full((20,), 2.0)), None, True, None),
    "bias": lambda two: (None, None, None, two(torch.full((20,), 2.0)), True, None),
    "stats": lambda two: (two(torch.zeros(20)), two(torch.ones(20)), None, None, False, None),
    "residual": lambda two: (None, None, None, None, True, two(X)),
}


@pytest.mark.parametrize("case", SUBCLASSED)
def test_memory_of_a_tensor_that_only_wraps_others_is_not_read(case):
    def run(two):
        *vectors, training, residual = SUBCLASSED[case](two)
        return batch_norm(X, *vectors, training, residual=residual, activation="relu")

    got = run(lambda t: TwoTensor(t, t))
    torch.testing.assert_close(got.a, run(lambda t: t))


@pytest.mark.parametrize(
    ("x", "kernel"),
    [(X, True), (X.contiguous(memory_format=CL), True), (X.to(BF16), True), (X.double(), False)],
    ids=["planes", "rows", "bfloat16", "float64"],
)
def test_auto_takes_the_kernels_where_they_serve(x, kernel, monkeypatch):
    called = []
    run = cpu._run
    monkeypatch.setattr(cpu, "_run", lambda *args: called.append(1) or run(*args))
    batch_norm(x, None, None, training=True)
    assert bool(called) == kernel


def test_functorch_goes_the_eager_way_and_by_name_is_refused():
    weight, dy = randn(20), randn(4, 20, 6, 6, seed=2)

    def loss(weight, backend="auto"):
        return (batch_norm(X, None, None, weight, None, True, backend=backend) * dy).sum()

    leaf = weight.clone().requires_grad_()
    (want,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(grad(loss)(weight), want, rtol=1e-4, atol=1e-4)
    many = vmap(loss)(torch.stack([weight, 2 * weight]))
    torch.testing.assert_close(many, torch.stack([loss(weight), loss(2 * weight)]))
    with pytest.raises(GammabetaError, match="recorded, transformed or watched"):
        grad(lambda w: loss(w, "numba"))(weight)


def test_what_records_operators_sees_torchs():
    traced = make_fx(lambda x: batch_norm(x, None, None, training=True, activation="relu"))(X)
    assert not any("gammabeta" in str(node.target) for node in traced.graph.nodes)
    torch.testing.assert_close(traced(X * 2), batch_norm(X * 2, None, None, training=True).relu())
    with FakeTensorMode():
        fake = torch.empty(4, 20, 6, 6)
        assert batch_norm(fake, None, None, training=True).shape == X.shape


def compiled(module, graphs):
    """The module through Dynamo and AOT autograd, whose graphs are kept."""

    def keep(graph, _):
        graphs.append([str(n.target) for n in graph.graph.nodes if n.op == "call_function"])
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    torch.compiler.reset()
    return torch.compile(module, backend=backend, fullgraph=True)


COMPILED = {
    "plain": lambda: BatchNorm2d(20, backend="numba"),
    "relu": lambda: BatchNormAct2d(20),
    "pooled": lambda: BatchNormAct2d(20, pool=2),
    "silu": lambda: BatchNormAct2d(20, activation="silu"),
}


@pytest.mark.parametrize("make", COMPILED.values(), ids=COMPILED)
@pytest.mark.parametrize("layout", ["planes", "rows"])
@MODES
def test_a_compiled_graph_has_one_node_a_batch_norm(make, layout, training):
    if (make, layout) == (COMPILED["silu"], "planes"):
        return  # loops that no other test compiles
    layer = fill(make()).train(training)
    twin, graphs = copy.deepcopy(layer), []
    x = laid(X, layout)
    got = with_gradients(compiled(layer, graphs), {"input": x})
    torch.testing.assert_close(got, with_gradients(twin, {"input": x}))
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())
    forward, backward = ([target for target in graph if "batch_norm" in target] for graph in graphs)
    assert forward == ["gammabeta.batch_norm.default"]
    assert backward == ["gammabeta.batch_norm_backward.default"]
    assert not any("max_pool" in t for graph in graphs for t in graph) or layout == "planes"


OPERATOR = {
    "train": ("rows", False, "relu", 0, True),
    "eval": ("rows", False, "relu", 0, False),
    "pooled": ("rows", False, "relu", 2, True),
    "added": ("planes", True, "relu", 0, True),
    "added-smooth": ("planes", True, "silu", 0, True),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck looks at its own copies
@pytest.mark.parametrize("case", OPERATOR)
def test_the_operators_keep_their_contract(case):
    layout, residual, activation, pool, training = OPERATOR[case]
    t = {n: v.requires_grad_() for n, v in inputs_of((4, 20, 6, 6), residual=residual).items()}
    x = laid(t["x"].detach(), layout).requires_grad_()
    stats = (None, None) if training else (randn(20), randn(20).square() + 0.5)
    arguments = (
        *(x, t["weight"], t["bias"], t.get("residual"), *stats),
        *(1e-5, activation, 0.01, pool),
    )
    torch.library.opcheck(OPERATORS.batch_norm, arguments)
    with torch.no_grad():
        y, _, _, saved, codes = OPERATORS.batch_norm(*arguments)
        kept = t.get("residual") if activation == "silu" else None
        backward = (
            *(randn(*y.shape, seed=3), x, t["weight"], kept),
            *(saved, codes, 1e-5, activation, 0.01, pool, residual, not training, True, True),
        )
        detached = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in backward)
        torch.library.opcheck(OPERATORS.batch_norm_backward, detached)


@LAYOUTS
def test_an_operator_called_directly_has_the_same_derivatives(layout):
    t = inputs_of((4, 20, 6, 6))

    def operator(x, weight, bias):
        options = (None, None, None, 1e-5, "relu", 0.01, 0)
        return OPERATORS.batch_norm(laid(x, layout), weight, bias, *options)[0]

    def door(x, weight, bias):
        return batch_norm(
            laid(x, layout), None, None, weight, bias, True, activation="relu", backend="numba"
        )

    assert_same(with_gradients(operator, t), with_gradients(door, t))


ELSEWHERE = """
import torch
from gammabeta import BatchNorm2d, BatchNormAct2d, BatchRenorm2d
torch.manual_seed(0)
x = torch.randn(4, 16, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
layers = BatchNormAct2d(16, pool=2), BatchNorm2d(16, momentum=None), BatchRenorm2d(16)
twins = BatchNormAct2d(16, pool=2, backend="eager"), torch.nn.BatchNorm2d(16, momentum=None)
wanted = [twin(x) for twin in twins]
with torch.device("meta"):
    found = [layer(x) for layer in layers]
    for y in found:
        dy = torch.ones(y.shape, device="cpu")
        for again in (False, True):
            (dx,) = torch.autograd.grad(y, x, dy, retain_graph=True, create_graph=again)
            assert dx.is_cpu and y.is_cpu
    for layer in layers:
        assert layer.eval()(x).is_cpu
torch.testing.assert_close(found[:2], wanted)
"""


def test_another_default_device_is_not_taken_for_scratch_memory():
    done = python(ELSEWHERE)
    assert done.returncode == 0, done.stderr


@MODES
def test_an_exported_program_holds_torchs_operators_only(training):
    layer = nn.Sequential(BatchNormAct2d(20, pool=2)).train(training)
    x = X.contiguous(memory_format=CL)
    program = torch.export.export(copy.deepcopy(layer), (x,))
    assert "gammabeta" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), copy.deepcopy(layer)(x))


def test_the_dtype_of_the_output_is_the_inputs_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert batch_norm(X, None, None, training=True, backend="numba").dtype == F32
        assert batch_norm(X.to(BF16), None, None, training=True, backend="numba").dtype == BF16
