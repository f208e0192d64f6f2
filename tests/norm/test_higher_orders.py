"""Gradients of gradients, to third order, also where the inputs depend on each other.

The judge is batch norm written with torch's plain operators in float64.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian, hvp, jacobian, vhp
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from gammabeta import BatchNormAct1d, BatchRenorm1d, batch_norm
from kernel_helpers import BF16, LAYOUTS, MODES, laid
from norm_helpers import ACTIVATIONS, fill, per_channel, randn, reference, running

SHAPE = (4, 20, 6, 6)
C = SHAPE[1]
F32, F64 = torch.float32, torch.float64


def mixed(x, w):
    """A map of the channels: something upstream of the batch norm."""
    return torch.einsum("oc,nc...->no...", w, x)


def dot(x, values):
    """A number a channel that depends on x."""
    return (x * per_channel(values, x)).flatten(2).mean(dim=(0, 2)) + values


# From leaves x, w (C, C), v and u (C,) to the inputs x, γ, β and residual of a batch norm.
GRAPHS = {
    "apart": lambda x, _w, v, u: (x, v, u, None),
    "residual-upstream": lambda x, w, v, u: (mixed(x, w), v, u, x),
    "residual-downstream": lambda x, w, v, u: (x, v, u, mixed(x, w)),
    "residual-is-x": lambda x, _w, v, u: (x, v, u, x),
    "both-of-one": lambda x, w, v, u: ((h := mixed(x, w)), v, u, h),
    "gamma-of-x": lambda x, w, v, u: (mixed(x, w), dot(x, v), u, None),
    "beta-of-x": lambda x, w, v, u: (x, v, dot(x, u), mixed(x, w)),
    "gamma-is-beta": lambda x, _w, v, _u: (x, v, v, None),
}
EVERY_GRAPH = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)


SEEDS = ["y", "dy", "x", "w", "v", "u"]


def leaves(dtype=F32):
    made = {
        "x": randn(*SHAPE, dtype=F64) * 1.5 + 0.3,
        "w": randn(C, C, seed=1, dtype=F64) / C**0.5,
        "v": randn(C, seed=2, dtype=F64) + 0.2,
        "u": randn(C, seed=3, dtype=F64),
    }
    return {name: t.to(dtype).requires_grad_() for name, t in made.items()}


def orders(function, inputs, highest=3):
    """The gradients of a function for random cotangents, their gradients, and so on.

    A cotangent is a leaf too, of which the next order is taken as well.
    """
    inputs, found = dict(inputs), {}
    out = {"y": function(**inputs)}
    for order in range(1, highest + 1):
        dy = {
            name: randn(*o.shape, seed=50 * order + SEEDS.index(name)).to(o.dtype).requires_grad_()
            for name, o in out.items()
        }
        grads = torch.autograd.grad(
            list(out.values()),
            list(inputs.values()),
            list(dy.values()),
            create_graph=order < highest,
            allow_unused=True,
        )
        grads = {n: g for n, g in zip(inputs, grads, strict=True) if g is not None}
        found.update({f"order {order} by {n}": g.detach() for n, g in grads.items()})
        out = {n: g for n, g in grads.items() if g.requires_grad}
        if order == 1:
            inputs["dy"] = dy["y"]
    return found


def assert_close(got, want, **tolerances):
    """Compare with float64; a gradient that one of the two leaves out is zero."""
    tolerances = tolerances or {"rtol": 1e-3, "atol": 3e-4}
    assert {n for n in got if "order 1" in n} == {n for n in want if "order 1" in n}
    for name in {**got, **want}:
        one = got.get(name, torch.zeros(()))
        other = want.get(name, torch.zeros(()))
        size = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(
            *torch.broadcast_tensors(one.double() / size, other.double() / size),
            msg=lambda m, name=name: f"{name}: {m}",
            **tolerances,
        )


def pair(graph, layout="planes", act="silu", *, training=True, pool=None):
    """Our function of the leaves, and the judge's."""
    options, function = ACTIVATIONS[act]
    stats = None if training else running(C)
    given = (None, None) if stats is None else stats

    def subject(x, w, v, u):
        x, weight, bias, residual = graph(x, w, v, u)
        residual = None if residual is None else laid(residual, layout)
        return batch_norm(
            laid(x, layout), *given, weight, bias, training,
            residual=residual, pool=pool, backend="numba", **options,
        )  # fmt: skip

    def judge(x, w, v, u):
        return reference(*graph(x, w, v, u), act=function, pool=pool, stats=stats)

    return subject, judge


@EVERY_GRAPH
@MODES
@pytest.mark.parametrize(
    ("layout", "act"), [("planes", "silu"), ("rows", "relu"), ("rows", "hardswish")]
)
def test_inputs_may_depend_on_each_other(graph, layout, act, training):
    subject, judge = pair(graph, layout, act, training=training)
    assert_close(orders(subject, leaves()), orders(judge, leaves(F64)))


@pytest.mark.parametrize("act", ACTIVATIONS)
@LAYOUTS
def test_every_activation_to_the_third_order(act, layout):
    subject, judge = pair(GRAPHS["residual-upstream"], layout, act)
    assert_close(orders(subject, leaves()), orders(judge, leaves(F64)))


@pytest.mark.parametrize("pool", [2, 3])
@pytest.mark.parametrize("act", ["relu", "silu"])
@pytest.mark.parametrize("kind", ["gamma-of-x", "residual-upstream"])
def test_pooled_to_the_third_order(act, pool, kind):
    subject, judge = pair(GRAPHS[kind], "rows", act, pool=pool)
    assert_close(orders(subject, leaves()), orders(judge, leaves(F64)))


@pytest.mark.parametrize("vectors", [F32, BF16], ids=["float32", "bfloat16"])
def test_bfloat16_to_the_third_order(vectors):
    subject, judge = pair(GRAPHS["residual-upstream"])
    kinds = {"x": BF16, "w": BF16, "v": vectors, "u": F32}
    rounded = {n: t.detach().to(kinds[n]) for n, t in leaves().items()}
    got = orders(subject, {n: t.clone().requires_grad_() for n, t in rounded.items()})
    want = orders(judge, {n: t.double().requires_grad_() for n, t in rounded.items()})
    assert_close(got, want, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("hooked", ["nothing", "offloaded", "copied"])
def test_saved_tensors_in_other_memory_keep_their_history(hooked):
    subject, judge = pair(GRAPHS["residual-upstream"])
    contexts = {
        "nothing": torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t),
        "offloaded": torch.autograd.graph.save_on_cpu(),
        "copied": torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t),
    }
    inputs = leaves()
    with contexts[hooked]:
        y = subject(**inputs)
    assert_close(orders(lambda **_: y, inputs), orders(judge, leaves(F64)))


@pytest.mark.parametrize("graph", ["residual-upstream", "gamma-of-x"])
def test_many_cotangents_at_once_do_not_use_up_the_graph(graph):
    subject, _ = pair(GRAPHS[graph])
    inputs = leaves()
    y = subject(**inputs)
    dys = torch.stack([randn(*y.shape, seed=s) for s in (3, 4)])
    used = [inputs["x"], inputs["v"]]
    want = [torch.autograd.grad(y, used, dy, retain_graph=True) for dy in dys]
    many = torch.autograd.grad(y, used, dys, is_grads_batched=True)
    for i, one in enumerate(want):
        torch.testing.assert_close([g[i] for g in many], list(one), rtol=1e-4, atol=1e-4)


@EVERY_GRAPH
def test_a_watched_backward_pass_changes_nothing(graph):
    subject, _ = pair(graph)
    dy, found = randn(*SHAPE, seed=3), []
    for watch in (False, True):
        inputs = leaves()
        y = subject(**inputs)
        if watch:
            with FlopCounterMode(display=False):
                y.backward(dy)
        else:
            y.backward(dy)
        found.append({n: t.grad for n, t in inputs.items() if t.grad is not None})
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def small(activation="silu", backend="auto"):
    """A function of (8, 3) values whose residual lies upstream, ours and in float64."""
    w, dy = randn(3, 3, seed=1), randn(8, 3, seed=2)

    def subject(x):
        h = mixed(x, w.to(x.dtype))
        y = batch_norm(
            h, None, None, training=True, residual=x, activation=activation, backend=backend
        )
        return (y * dy.to(x.dtype)).tanh()

    def judge(x):
        y = reference(mixed(x, w.double()), residual=x, act=getattr(F, activation))
        return (y * dy.double()).tanh()

    return subject, judge


X = randn(8, 3, seed=4)
V = randn(8, 3, seed=5)
DY = randn(8, 3, seed=7)


def total(function):
    return lambda x: function(x).sum()


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("activation", ["silu", "relu6"])
def test_jacobians_and_hessians_of_autograd(vectorize, create_graph, activation):
    subject, judge = small(activation)
    how = {"vectorize": vectorize, "create_graph": create_graph}
    close = {"rtol": 1e-3, "atol": 1e-4}
    for get, of in ((jacobian, lambda f: f), (hessian, total)):
        got = get(of(subject), X.clone().requires_grad_(), **how)
        want = get(of(judge), X.double().requires_grad_(), **how)
        torch.testing.assert_close(got.double(), want, **close)
        if create_graph:
            x, twin = X.clone().requires_grad_(), X.double().requires_grad_()
            got, want = get(of(subject), x, **how), get(of(judge), twin, **how)
            weights = randn(*got.shape, seed=6)
            (third,) = torch.autograd.grad((got * weights).sum(), x)
            (expected,) = torch.autograd.grad((want * weights.double()).sum(), twin)
            torch.testing.assert_close(third.double(), expected, **close)


@pytest.mark.parametrize("product", [hvp, vhp])
def test_hessian_products_of_autograd(product):
    subject, judge = small()
    got = product(total(subject), X, V)[1]
    want = product(total(judge), X.double(), V.double())[1]
    torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-4)


def along(get):
    return lambda f: lambda x: get(f, x)


def by_vjp(f, x):
    _, back = torch.func.vjp(f, x)
    return back(DY.to(x.dtype))[0]


def by_jvp(f, x):
    return torch.func.jvp(f, (x,), (V.to(x.dtype),))[1]


TRANSFORMS = {
    "grad": lambda f: torch.func.grad(total(f)),
    "grad-of-grad": lambda f: torch.func.grad(total(torch.func.grad(total(f)))),
    "third": lambda f: torch.func.grad(
        total(torch.func.grad(total(torch.func.grad(lambda x: f(x).pow(2).sum()))))
    ),
    "vjp": along(by_vjp),
    "jvp": along(by_jvp),
    "jvp-of-jvp": lambda f: along(by_jvp)(along(by_jvp)(f)),
    "vjp-of-jvp": lambda f: along(by_vjp)(along(by_jvp)(f)),
    "jacrev": torch.func.jacrev,
    "jacfwd": torch.func.jacfwd,
    "jacrev-of-jacrev": lambda f: torch.func.jacrev(torch.func.jacrev(f)),
    "hessian": lambda f: torch.func.hessian(total(f)),
    "vmap": lambda f: lambda x: torch.func.vmap(f)(torch.stack([x, x.flip(0)])),
    "vmap-of-grad": lambda f: (
        lambda x: torch.func.vmap(torch.func.grad(total(f)))(torch.stack([x, x.flip(0)]))
    ),
    "linearize": lambda f: lambda x: torch.func.linearize(f, x)[1](V.to(x.dtype)),
}


FORWARD_OVER_REVERSE = {"jvp-of-jvp", "hessian"}  # which torch's silu has not


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")
@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_torch_func_sees_through(name, dtype):
    subject, judge = small("relu6" if name in FORWARD_OVER_REVERSE else "silu")

    def run(function, x):
        with torch.no_grad():
            return TRANSFORMS[name](function)(x)

    got, want = run(subject, X.to(dtype)), run(judge, X.double())
    torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("name", ["grad", "third", "vjp-of-jvp", "vmap"])
def test_torch_func_is_compiled_without_breaks(name):
    torch._dynamo.reset()
    subject, judge = small()
    run = torch.compile(TRANSFORMS[name](subject), backend="aot_eager", fullgraph=True)
    want = TRANSFORMS[name](judge)(X.double())
    torch.testing.assert_close(run(X).double(), want, rtol=1e-3, atol=1e-3)


class Block(nn.Module):
    """Two batch norms whose residual lies upstream, with something after."""

    def __init__(self, make):
        super().__init__()
        self.before, self.after = nn.Linear(3, 3), nn.Linear(3, 2)
        self.norm = make()

    def forward(self, x):
        h = self.before(x)
        y = self.norm(h, x) if isinstance(self.norm, BatchNormAct1d) else F.silu(self.norm(h) + x)
        return self.after(y)


def penalty(model, x):
    """A step of training on a gradient: the gradients of the parameters."""
    x = x.clone().requires_grad_()
    y = model(x)
    (slope,) = torch.autograd.grad(y, x, randn(8, 2, seed=8).to(x.dtype), create_graph=True)
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(slope.square().sum() + y.tanh().sum(), parameters.values())
    return dict(zip(parameters, found, strict=True))


RENORM = {"warmup": 0, "r_steps": 1, "d_steps": 1}
NORMS = {
    "act": lambda: BatchNormAct1d(3, activation="silu"),
    "act-ghosts": lambda: BatchNormAct1d(3, activation="silu", virtual_batch_size=3),
    "renorm": lambda: BatchRenorm1d(3, **RENORM),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("how", ["plain", "not-reentrant", "eager", "gammabeta"])
@pytest.mark.parametrize("name", NORMS)
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_gradient_penalty_trains_layers(name, how, training):
    torch._dynamo.reset()
    model = fill(Block(NORMS[name])).train(training)
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith("num_batches_tracked"):
            buffer.fill_(10)
    twin = copy.deepcopy(model).double()
    if name != "renorm":
        twin.norm.bn.backend = "eager"
    subjects = {
        "plain": lambda: model,
        "not-reentrant": lambda: Checkpointed(model),
        "eager": lambda: torch.compile(model, backend="eager"),
        "gammabeta": lambda: torch.compile(model, backend="gammabeta"),
    }
    got = penalty(subjects[how](), X)
    got = {n.removeprefix("_orig_mod.").removeprefix("model."): g for n, g in got.items()}
    want = penalty(twin, X.double())
    assert_close(got, want, rtol=1e-3, atol=1e-3)


class Checkpointed(nn.Module):
    """A model that is computed again in the backward pass."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return checkpoint(self.model, x, use_reentrant=False)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_compiler_without_second_derivatives_says_so():
    torch._dynamo.reset()
    model = torch.compile(fill(Block(NORMS["act"])), backend="aot_eager")
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        penalty(model, X)
