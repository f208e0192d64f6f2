"""A frozen batch norm stays frozen, stays itself, and thaws into what it was."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import gammabeta
from gammabeta import GammabetaError, freeze, unfreeze
from norm_helpers import assert_same, fill, randn

KINDS = {
    "torch": lambda: nn.BatchNorm1d(3),
    "gammabeta": lambda: gammabeta.BatchNorm1d(3),
    "act": lambda: gammabeta.BatchNormAct1d(3),
    "renorm": lambda: gammabeta.BatchRenorm1d(3),
}
EVERY_KIND = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
X = randn(6, 3) + 1


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, w):
        return 2 * w


def model(make):
    return nn.Sequential(nn.Linear(3, 3), fill(make()), nn.ReLU(), nn.Linear(3, 2))


def norm(m):
    return getattr(m[1], "bn", m[1])


def state(m):
    return {name: t.clone() for name, t in m.state_dict().items()}


def buffers(m):
    return {name: t.clone() for name, t in m.named_buffers()}


def step(m):
    """A step of gradient descent."""
    m.zero_grad()
    m(X).backward(randn(6, 2, seed=4))
    torch.optim.SGD([p for p in m.parameters() if p.grad is not None], 0.1).step()


@EVERY_KIND
def test_frozen_statistics_survive_train_and_the_rest_learns(make):
    subject = freeze(model(make))
    before, learned = buffers(subject), {n: p.clone() for n, p in subject.named_parameters()}
    for _ in range(3):
        subject.train()
        assert subject.training
        assert not norm(subject).training
        step(subject)
    assert_same(buffers(subject), before)
    assert all(not torch.equal(p, learned[n]) for n, p in subject.named_parameters())


@EVERY_KIND
def test_a_frozen_layer_computes_as_in_evaluation(make):
    subject = model(make)
    expected = subject.eval()(X)
    assert torch.equal(freeze(subject).train()(X), expected)


@EVERY_KIND
def test_freezing_changes_neither_class_nor_keys_nor_hooks_nor_parameters(make):
    subject, seen = model(make), []
    norm(subject).register_forward_hook(lambda *_: seen.append(1))
    kinds, parameters = [type(m) for m in subject.modules()], list(subject.parameters())
    before = state(subject)
    freeze(subject, affine=True)
    subject(X)
    assert seen == [1]
    assert [type(m) for m in subject.modules()] == kinds
    assert all(a is b for a, b in zip(subject.parameters(), parameters, strict=True))
    assert_same(state(subject), before)


@pytest.mark.parametrize(
    ("stats", "affine", "told"),
    [(True, False, "stats"), (False, True, "affine"), (True, True, "stats+affine")],
)
@EVERY_KIND
def test_the_repr_tells_what_is_frozen_and_forgets_it(make, stats, affine, told):
    subject = model(make)
    before = repr(subject)
    freeze(subject, stats=stats, affine=affine)
    assert f", frozen={told})" in repr(subject)
    assert repr(unfreeze(subject)) == before


@EVERY_KIND
def test_statistics_alone_leave_parameters_free(make):
    subject = freeze(model(make), affine=False)
    assert all(p.requires_grad for p in subject.parameters())


@EVERY_KIND
def test_parameters_alone_leave_statistics_moving(make):
    subject = freeze(model(make), stats=False, affine=True).train()
    affine = {n: p.clone() for n, p in norm(subject).named_parameters()}
    step(subject)
    assert_same({n: p.detach() for n, p in norm(subject).named_parameters()},
                {n: p.detach() for n, p in affine.items()})  # fmt: skip
    assert norm(subject).num_batches_tracked == 1


@EVERY_KIND
def test_thawing_gives_gradients_back_only_to_those_that_had_them(make):
    subject = model(make)
    norm(subject).bias.requires_grad_(False)
    for _ in range(2):
        freeze(subject, affine=True)
    assert not norm(subject).weight.requires_grad
    unfreeze(subject)
    assert (norm(subject).weight.requires_grad, norm(subject).bias.requires_grad) == (True, False)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@EVERY_KIND
def test_freezing_twice_then_thawing_once_is_as_before(make, training):
    subject = model(make).train(training)
    before = [dict(vars(m)) for m in subject.modules()]
    unfreeze(freeze(freeze(subject), affine=True))
    assert [vars(m).keys() for m in subject.modules()] == [b.keys() for b in before]
    assert [m.training for m in subject.modules()] == [training] * len(before)


def test_thawing_what_is_not_frozen_changes_nothing():
    subject = model(KINDS["torch"])
    norm(subject).eval()
    norm(subject).bias.requires_grad_(False)
    unfreeze(subject)
    assert not norm(subject).training
    assert not norm(subject).bias.requires_grad


def test_a_single_layer_can_be_frozen():
    layer = freeze(nn.BatchNorm1d(3)).train()
    assert not layer.training
    assert unfreeze(layer).training


def test_a_thawed_layer_heeds_train_and_eval_again():
    subject = unfreeze(freeze(model(KINDS["gammabeta"])))
    assert not subject.eval()[1].training
    assert subject.train()[1].training


def copies():
    def through_file(m):
        file = io.BytesIO()
        torch.save(m, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    return {
        "deepcopy": copy.deepcopy,
        "pickle": lambda m: pickle.loads(pickle.dumps(m)),  # noqa: S301 (our own)
        "torch.save": through_file,
    }


@pytest.mark.parametrize("how", copies())
@EVERY_KIND
def test_a_copy_is_frozen_and_thaws_alone(make, how):
    subject = freeze(model(make), affine=True)
    twin = copies()[how](subject)
    twin.train()
    assert not norm(twin).training
    assert repr(twin) == repr(subject)
    unfreeze(twin)
    assert norm(twin).training
    assert norm(twin).weight.requires_grad
    assert not norm(subject.train()).training
    assert not norm(subject).weight.requires_grad
    twin(X)
    assert norm(subject).num_batches_tracked == 0


@EVERY_KIND
def test_a_state_dict_round_trip_leaves_it_frozen(make):
    source, target = model(make), freeze(model(make))
    fill(source, seed=30)
    target.load_state_dict(source.state_dict(), strict=True)
    assert_same(state(target), state(source))
    assert not norm(target.train()).training


def test_a_shared_layer_is_frozen_and_thawed_once():
    shared = fill(nn.BatchNorm1d(3))
    subject = freeze(nn.Sequential(shared, nn.Linear(3, 3), shared), affine=True)
    assert not subject.train()[2].training
    unfreeze(subject)
    assert shared.training
    assert shared.weight.requires_grad


def test_sync_batch_norm_is_frozen_too():
    subject = freeze(nn.Sequential(nn.SyncBatchNorm(3))).train()
    torch.testing.assert_close(subject(X), nn.BatchNorm1d(3).eval()(X))


def test_a_lazy_layer_stays_frozen_when_it_materialises():
    subject = freeze(nn.Sequential(nn.LazyBatchNorm1d())).train()
    subject(X)
    assert type(subject[0]) is nn.BatchNorm1d
    assert not subject.train()[0].training
    assert subject[0].num_batches_tracked == 0


def test_a_parametrized_weight_freezes_and_thaws():
    layer = nn.BatchNorm1d(3)
    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    freeze(layer, affine=True)
    assert not any(p.requires_grad for p in layer.parameters())
    unfreeze(layer)
    assert all(p.requires_grad for p in layer.parameters())


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # torch's own
@EVERY_KIND
def test_a_frozen_model_compiles_whole(make):
    torch._dynamo.reset()
    subject = freeze(model(make)).train()
    run = torch.compile(subject, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(X), subject(X))


def test_buffers_of_a_frozen_layer_may_be_overwritten_before_backward():
    layer = freeze(gammabeta.BatchNorm1d(3))
    x = X.clone().requires_grad_()
    y = layer(x)
    (want,) = torch.autograd.grad(y, x, randn(6, 3, seed=1), retain_graph=True)
    with torch.no_grad():
        layer.running_var.mul_(4)
    (got,) = torch.autograd.grad(y, x, randn(6, 3, seed=1))
    assert torch.equal(got, want)


@pytest.mark.parametrize("do", [freeze, unfreeze])
def test_a_model_without_batch_norm_is_refused(do):
    with pytest.raises(GammabetaError, match="Sequential holds no batch norm"):
        do(nn.Sequential(nn.Linear(3, 3), nn.InstanceNorm1d(3)))


def test_a_layer_without_statistics_is_refused_by_name_and_nothing_is_frozen():
    subject = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(GammabetaError, match=r"in 1: .*track_running_stats=False.*stats=False"):
        freeze(subject)
    assert subject.train()[0].training
    assert not freeze(subject, stats=False, affine=True)[1].weight.requires_grad


def test_freezing_returns_the_very_model():
    subject = model(KINDS["torch"])
    assert freeze(subject) is subject
    assert unfreeze(subject) is subject


def test_update_bn_recomputes_the_free_layers_and_leaves_frozen_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2), nn.BatchNorm1d(2))
    model(torch.randn(8, 3) + 5)
    freeze(model[0])
    frozen = {key: value.clone() for key, value in model[0].state_dict().items()}
    free = model[2].running_mean.clone()
    torch.optim.swa_utils.update_bn([torch.randn(8, 3)], model)
    for key, value in model[0].state_dict().items():
        assert torch.equal(value, frozen[key]), key
    assert not torch.equal(model[2].running_mean, free)
    unfreeze(model)[0].reset_running_stats()
    assert not model[0].running_mean.any()
