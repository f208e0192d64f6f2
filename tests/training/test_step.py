"""One step is the plain step of PyTorch, and a loss that is not a number moves nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gammabeta import Net, param_groups
from gammabeta.training.recipe import RECIPES, Recipe
from gammabeta.training.step import make_optimizer, train_step
from training_helpers import one_thread

one_thread()


def batch(seed=0, count=12):
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 8, 8, generator=random)
    return images, torch.randint(10, (count,), generator=random)


def net(seed=0):
    torch.manual_seed(seed)
    return Net(10, 8).train()


def names(model, params):
    found = {id(p): name for name, p in model.named_parameters()}
    return [found[id(p)] for p in params]


def test_weights_are_decayed_and_gamma_beta_and_biases_are_not():
    model = net()
    decayed, plain = param_groups(model, 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    matrices = [f"{layer}.weight" for layer in ("conv1", "conv2", "conv3", "fc1", "fc2")]
    assert names(model, decayed["params"]) == matrices
    both = names(model, decayed["params"] + plain["params"])
    assert sorted(both) == sorted(name for name, _ in model.named_parameters())


def test_a_shared_parameter_is_given_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    given = [p for group in param_groups(model, 0.1) for p in group["params"]]
    assert len(given) == len({id(p) for p in given}) == 5
    torch.optim.SGD(param_groups(model, 0.1), lr=0.1)


def test_a_frozen_parameter_is_left_out():
    model = net()
    model.conv1.requires_grad_(requires_grad=False)
    given = {id(p) for group in param_groups(model, 0.1) for p in group["params"]}
    assert not given & {id(p) for p in model.conv1.parameters()}
    assert len(given) == len(list(model.parameters())) - 2


@pytest.mark.parametrize(
    ("model", "decays"),
    [(nn.Linear(2, 2), [0.1, 0.0]), (nn.Linear(2, 2, bias=False), [0.1]),
     (nn.BatchNorm1d(2), [0.0]), (nn.ReLU(), [])],
    ids=["no batch norm", "weights only", "batch norm only", "no parameters"],
)  # fmt: skip
def test_groups_without_members_are_left_out(model, decays):
    assert [group["weight_decay"] for group in param_groups(model, 0.1)] == decays


def test_the_tutorial_decays_everything():
    model = net()
    (group,) = make_optimizer(model, RECIPES["tutorial"]).param_groups
    assert len(group["params"]) == len(list(model.parameters()))
    expected = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": False}
    assert group.items() >= expected.items()


def test_the_optimizer_takes_every_number_of_the_recipe():
    recipe = Recipe(lr=0.3, momentum=0.5, weight_decay=0.01)
    decayed, plain = make_optimizer(net(), recipe).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)
    for group in (decayed, plain):
        assert group.items() >= {"lr": 0.3, "momentum": 0.5, "nesterov": True}.items()


def plain_steps(model, groups, smoothing, nesterov, count):
    """Train as any PyTorch loop does."""
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=nesterov, fused=True)
    losses = []
    for number in range(count):
        images, labels = batch(number)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels, label_smoothing=smoothing)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["anneal", "tutorial"])
def test_steps_equal_plain_pytorch_ones_to_the_bit(name):
    recipe = Recipe(lr=0.1) if name == "anneal" else RECIPES["tutorial"]
    model = net()
    twin = copy.deepcopy(model)
    groups = (
        param_groups(twin, 5e-4)
        if name == "anneal"
        else [{"params": list(twin.parameters()), "weight_decay": 5e-4}]
    )
    expected = plain_steps(twin, groups, recipe.label_smoothing, recipe.nesterov, 3)
    optimizer = make_optimizer(model, recipe)
    smoothing = recipe.label_smoothing
    outcomes = [
        train_step(model, optimizer, *batch(n), label_smoothing=smoothing, bf16=False)
        for n in range(3)
    ]
    assert [outcome.loss for outcome in outcomes] == expected
    for key, value in twin.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_an_outcome_counts_before_the_update():
    model = net()
    images, labels = batch()
    want = (copy.deepcopy(model)(images).argmax(1) == labels).sum().item()
    step = train_step(model, make_optimizer(model, Recipe()), images, labels,
                      label_smoothing=0.0, bf16=False)  # fmt: skip
    assert (step.correct, step.total) == (want, 12)


def test_bf16_computes_in_bf16_and_keeps_float32_parameters():
    model = net()
    seen = []
    model.fc1.register_forward_hook(lambda _module, _given, out: seen.append(out.dtype))
    loss = train_step(
        model, make_optimizer(model, Recipe()), *batch(), label_smoothing=0.1, bf16=True
    )
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.isfinite(torch.tensor(loss.loss))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
def test_a_loss_that_is_not_finite_moves_no_parameter_and_no_momentum(bad):
    model = net()
    optimizer = make_optimizer(model, Recipe())
    train_step(model, optimizer, *batch(), label_smoothing=0.1, bf16=False)
    before = copy.deepcopy(([*model.parameters()], optimizer.state_dict()))
    images, labels = batch(1)
    images[3] = bad
    outcome = train_step(model, optimizer, images, labels, label_smoothing=0.1, bf16=False)
    assert not torch.isfinite(torch.tensor(outcome.loss))
    assert all(map(torch.equal, before[0], model.parameters()))
    buffers = optimizer.state_dict()["state"]
    assert buffers.keys() == before[1]["state"].keys()
    for key, state in before[1]["state"].items():
        assert torch.equal(state["momentum_buffer"], buffers[key]["momentum_buffer"])
