"""When statistics are written: once a batch, also under checkpointing, and not where asked."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gammabeta import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNormAct1d,
    BatchRenorm1d,
    batch_norm,
    no_stats_update,
)
from norm_helpers import assert_same, fill, randn, reference, running

KINDS = {
    "BatchNorm1d": lambda: BatchNorm1d(3),
    "average": lambda: BatchNorm1d(3, momentum=None),
    "ghost": lambda: BatchNorm1d(3, virtual_batch_size=3),
    "BatchNormAct1d": lambda: BatchNormAct1d(3),
    "BatchRenorm1d": lambda: BatchRenorm1d(3, momentum=0.5, warmup=0, r_steps=1, d_steps=1),
}
EVERY_KIND = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
X = randn(8, 3) * 2 + 1


def state(layer):
    return {name: t.clone() for name, t in layer.state_dict().items()}


def grown(layer):
    """Past the warm-up, so that renormalisation corrects."""
    fill(layer)
    for name, buffer in layer.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(10)
    return layer


def trained(layer, run):
    x = X.clone().requires_grad_()
    y = run(layer, x)
    y.backward(randn(8, 3, seed=5))
    return {"y": y.detach(), "x": x.grad, **{n: p.grad for n, p in layer.named_parameters()}}


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not-reentrant"])
@EVERY_KIND
def test_activation_checkpointing_counts_a_batch_once_and_keeps_gradients(make, reentrant):
    plain, saved = grown(make()), grown(make())
    want = trained(plain, lambda m, x: m(x))
    got = trained(saved, lambda m, x: checkpoint(m, x, use_reentrant=reentrant))
    torch.testing.assert_close(state(saved), state(plain))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not-reentrant"])
@pytest.mark.parametrize("order", ["first-to-last", "last-to-first", "at-once"])
@EVERY_KIND
def test_several_batches_may_wait_for_their_backward(make, order, reentrant):
    batches = [randn(8, 3, seed=s) * 2 + s for s in range(4)]
    found = []
    for call in (lambda m, x: m(x), lambda m, x: checkpoint(m, x, use_reentrant=reentrant)):
        layer = grown(make())
        inputs = [x.clone().requires_grad_() for x in batches]
        losses = [(call(layer, x) * randn(8, 3, seed=9)).tanh().sum() for x in inputs]
        if order == "at-once":
            sum(losses).backward()
        else:
            for loss in losses if order == "first-to-last" else losses[::-1]:
                loss.backward()
        grads = {n: p.grad for n, p in layer.named_parameters()}
        found.append({"x": torch.stack([x.grad for x in inputs]), **grads, **state(layer)})
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not-reentrant"])
def test_one_batch_may_pass_twice_and_be_recomputed_twice(reentrant):
    found = []
    for call in (lambda m, x: m(x), lambda m, x: checkpoint(m, x, use_reentrant=reentrant)):
        layer, x = grown(KINDS["BatchRenorm1d"]()), X.clone().requires_grad_()
        y = [call(layer, x).tanh() for _ in range(2)]
        loss = (y[0] * randn(8, 3, seed=5) + y[1] * randn(8, 3, seed=6)).sum()
        loss.backward(retain_graph=not reentrant)
        if not reentrant:
            loss.backward()
        found.append({"x": x.grad, **{n: p.grad for n, p in layer.named_parameters()}})
    torch.testing.assert_close(found[1], found[0])


def test_checkpointing_twice_nested_counts_a_batch_once():
    layer = BatchNorm1d(3)

    def inner(x):
        return checkpoint(layer, x, use_reentrant=False)

    checkpoint(inner, X.clone().requires_grad_(), use_reentrant=False).backward(X)
    assert layer.num_batches_tracked == 1


@EVERY_KIND
def test_no_stats_update_leaves_the_state_and_computes_the_same(make):
    layer, other = grown(make()), grown(make())
    before = state(layer)
    with no_stats_update():
        y = layer(X)
    assert_same(state(layer), before)
    torch.testing.assert_close(y, other(X))


def test_blocks_nest():
    layer = BatchNorm1d(3)
    with no_stats_update():
        with no_stats_update():
            layer(X)
        layer(X)
    assert layer.num_batches_tracked == 0
    layer(X)
    assert layer.num_batches_tracked == 1


def test_an_exception_ends_the_block():
    layer = BatchNorm1d(3)
    with pytest.raises(ValueError, match="Expected more than 1"), no_stats_update():
        layer(X[:1])
    layer(X)
    assert layer.num_batches_tracked == 1


def test_it_concerns_this_thread_only():
    here, there = BatchNorm1d(3), BatchNorm1d(3)
    with no_stats_update():
        other = threading.Thread(target=there, args=[X])
        other.start()
        other.join()
        here(X)
    assert (here.num_batches_tracked, there.num_batches_tracked) == (0, 1)


def test_the_decorator_form_works():
    layer = BatchNorm1d(3)

    @no_stats_update()
    def run():
        layer(X)

    run()
    run()
    assert layer.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("count", "size", "parts"),
    [(8, 4, [4, 4]), (7, 3, [3, 4]), (8, 3, [3, 3, 2]), (5, 2, [2, 3]), (4, 9, [4]), (4, 4, [4])],
    ids=str,
)
@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, torch.tensor(0.1)], ids=str)
def test_ghost_batches_are_torchs_on_each_part_in_order(count, size, parts, momentum):
    x, stats, theirs = randn(count, 3), running(3), running(3)
    each = 1 - (1 - float(momentum)) ** (1 / len(parts))
    expected = [F.batch_norm(p, *theirs, training=True, momentum=each) for p in x.split(parts)]
    y = batch_norm(x, *stats, training=True, momentum=momentum, virtual_batch_size=size)
    torch.testing.assert_close(y, torch.cat(expected))
    torch.testing.assert_close(stats, theirs)


def test_a_last_sample_with_enough_values_is_a_part_of_its_own():
    x = randn(7, 3, 2, 2)
    y = batch_norm(x, None, None, training=True, virtual_batch_size=3)
    torch.testing.assert_close(y, torch.cat([reference(part) for part in x.split([3, 3, 1])]))


@pytest.mark.parametrize("momentum", [0.1, 0.5])
def test_ghost_batches_keep_as_much_of_the_old_value_as_one_batch_would(momentum):
    old, var = torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    x = randn(12, 3, dtype=torch.float64)
    x = torch.cat([part - part.mean(0) for part in x.split(4)])  # means add nothing
    batch_norm(x, old, var, training=True, momentum=momentum, virtual_batch_size=4)
    torch.testing.assert_close(old, torch.full((3,), 1 - momentum, dtype=torch.float64))


def test_ghost_batches_have_gradients_and_residuals_of_their_own():
    x, r = randn(7, 3).requires_grad_(), randn(7, 3, seed=1).requires_grad_()
    y = batch_norm(
        x, None, None, training=True, virtual_batch_size=3, residual=r, activation="relu"
    )
    parts = zip(x.split([3, 4]), r.split([3, 4]), strict=True)
    expected = torch.cat([reference(p, residual=q).relu() for p, q in parts])
    torch.testing.assert_close(y, expected)
    dy = randn(7, 3, seed=2)
    got, want = (torch.autograd.grad(out, (x, r), dy) for out in (y, expected))
    torch.testing.assert_close(got, want)


def test_evaluation_ignores_ghost_batches():
    ghost, plain = BatchNorm2d(3, virtual_batch_size=2).eval(), nn.BatchNorm2d(3).eval()
    assert torch.equal(ghost(randn(5, 3, 2, 2)), plain(randn(5, 3, 2, 2)))


@pytest.mark.parametrize("form", ["layer", "function"])
def test_evaluation_without_statistics_ignores_ghost_batches(form):
    x = randn(6, 3)
    layer = BatchNorm1d(3, track_running_stats=False, virtual_batch_size=3).eval()
    y = layer(x) if form == "layer" else batch_norm(x, None, None, virtual_batch_size=3)
    torch.testing.assert_close(y, reference(x))


def test_the_plain_average_of_ghost_batches_weighs_all_alike():
    layer = BatchNorm1d(3, momentum=None, virtual_batch_size=4)
    batches = [randn(8, 3, seed=s) + s for s in range(3)]
    for batch in batches:
        layer(batch)
    torch.testing.assert_close(layer.running_mean, torch.cat(batches).mean(0))
    parts = [part.var(0) for batch in batches for part in batch.split(4)]
    torch.testing.assert_close(layer.running_var, torch.stack(parts).mean(0))
