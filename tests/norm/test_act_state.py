"""The state of a BatchNormAct is that of its batch norm, whatever has been made of that."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint import state_dict as checkpoint
from torch.nn.utils import parametrizations, parametrize, prune

from gammabeta import BatchNorm1d, BatchNormAct1d
from norm_helpers import assert_same, fill, randn


class Exponential(nn.Module):
    """A parametrization that keeps the weight positive."""

    def forward(self, w):
        return w.exp()

    def right_inverse(self, w):
        return w.log()


class Adapted(nn.Module):
    """As LoRA wraps a layer, under the name that wrappers like to use, or that we do."""

    def __init__(self, base, name="base"):
        super().__init__()
        setattr(self, name, base)
        self.name, self.low = name, nn.Parameter(torch.ones(3))

    def forward(self, x):
        return getattr(self, self.name)(x) * self.low


def parametrized(bn):
    with torch.no_grad():
        bn.weight.abs_().add_(0.1)
    return parametrize.register_parametrization(bn, "weight", Exponential())


def pruned(bn):
    prune.random_unstructured(bn, "weight", 1)
    return bn


CHILDREN = {
    "plain": lambda bn: bn,
    "not affine": lambda _: BatchNorm1d(3, affine=False),
    "untracked": lambda _: BatchNorm1d(3, track_running_stats=False),
    "parametrized": parametrized,
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "pruned": pruned,
    "sequence": lambda bn: nn.Sequential(bn, nn.Identity()),
    "adapted": Adapted,
    "named bn": lambda bn: Adapted(bn, "bn"),
    "compiled": lambda bn: torch.compile(bn, backend="eager"),
    "parallel": lambda bn: nn.DataParallel(bn),
    "checkpointed": checkpoint_wrapper,
    "another": lambda _: nn.GroupNorm(1, 3),
    "none": lambda _: nn.Identity(),
}
EVERY = pytest.mark.parametrize("case", CHILDREN)


class Net(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 3), norm, nn.Linear(3, 2)

    def forward(self, x):
        return self.last(self.norm(self.first(x)))


def child(case, seed=0):
    """The batch norm, made into something, with values of its own."""
    torch.manual_seed(seed)
    return filled(CHILDREN[case](fill(BatchNorm1d(3), seed)), seed)


def filled(module, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point() and "mask" not in name:
                tensor.copy_(torch.rand(tensor.shape, generator=g) + 0.5)
    return module


def act(case, seed=0):
    layer = BatchNormAct1d(3)
    layer.bn = child(case, seed)
    return layer


@EVERY
def test_keys_and_values_are_those_of_what_is_inside(case):
    ours, plain = act(case), child(case)
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert_same(dict(ours.state_dict()), dict(plain.state_dict()))
    inside = Net(ours).state_dict()
    assert list(inside) == list(Net(plain).state_dict())


@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
@EVERY
def test_a_checkpoint_goes_round(case, assign):
    source, target = Net(act(case)), Net(act(case, seed=7))
    saved = io.BytesIO()
    torch.save(source.state_dict(), saved)
    saved.seek(0)
    done = target.load_state_dict(torch.load(saved, weights_only=True), strict=True, assign=assign)
    assert done == ([], [])
    assert_same(dict(target.norm.named_parameters()), dict(source.norm.named_parameters()))
    assert_same(dict(target.norm.named_buffers()), dict(source.norm.named_buffers()))


@EVERY
def test_it_fits_what_is_inside_by_itself_and_the_other_way(case):
    ours, plain = Net(act(case)), Net(child(case, seed=7))
    plain.load_state_dict(ours.state_dict(), strict=True)
    assert_same(dict(plain.state_dict()), dict(ours.state_dict()))
    filled(plain, 9)
    state = dict(plain.state_dict())  # without the versions that a state_dict carries
    ours.load_state_dict(state, strict=True)
    assert_same(dict(ours.state_dict()), state)


# The first says either of two things, and the second is renamed by its wrapper's own hook.
NAMED = [*CHILDREN.keys() - {"named bn", "checkpointed"}]


@pytest.mark.parametrize("case", sorted(NAMED))
def test_what_has_the_names_of_its_parameters_loads_too(case):
    source, target = Net(act(case)), Net(act(case, seed=7))
    named = {**dict(source.named_parameters()), **dict(source.named_buffers())}
    target.load_state_dict(named, strict=True)
    assert_same(dict(target.state_dict()), dict(source.state_dict()))


def test_arguments_by_position_are_heard():
    layer, mine = BatchNormAct1d(3), {"a": 1}
    with pytest.warns(FutureWarning, match="Positional args"):
        state = layer.state_dict(mine, "pre.", True)
    assert state is mine
    names = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert list(mine) == ["a", *(f"pre.{name}" for name in names)]
    assert mine["pre.weight"] is layer.bn.weight


def test_hooks_of_others_see_the_keys_that_are_saved():
    layer, seen = BatchNormAct1d(3), []
    layer.register_state_dict_post_hook(lambda _m, state, _p, _l: seen.extend(state))
    assert seen == list(layer.state_dict())


PARENTS = {
    "sequence": lambda m: nn.Sequential(m),
    "parallel": nn.DataParallel,
    "compiled": lambda m: torch.compile(m, backend="eager"),
    "averaged": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("case", ["plain", "parametrized", "adapted"])
@pytest.mark.parametrize("parent", PARENTS)
def test_inside_any_parent(parent, case):
    source, target, plain = (
        PARENTS[parent](Net(norm)) for norm in (act(case), act(case, 7), child(case))
    )
    assert list(source.state_dict()) == list(plain.state_dict())
    target.load_state_dict(source.state_dict(), strict=True)
    assert_same(dict(target.state_dict()), dict(source.state_dict()))


@pytest.mark.parametrize("case", ["plain", "parametrized", "adapted", "named bn"])
def test_what_is_wrong_is_named_as_it_is_saved(case):
    model = Net(act(case))
    state = model.state_dict()
    first, second, third, *_ = [key for key in state if key.startswith("norm.")]
    del state[first]
    state |= {"norm.gamma": torch.ones(3), "norm.far.gamma": torch.ones(3), second: torch.ones(4)}
    with pytest.raises(RuntimeError) as raised:
        model.load_state_dict(state)
    message = str(raised.value)
    assert f'Missing key(s) in state_dict: "{first}"' in message
    assert f"size mismatch for {second}:" in message
    assert '"norm.gamma"' in message
    assert '"norm.far.gamma"' in message
    del state[second]
    done = model.load_state_dict(state, strict=False)
    assert set(done.missing_keys) == {first, second}
    assert set(done.unexpected_keys) == {"norm.gamma", "norm.far.gamma"}
    assert_same({third: model.state_dict()[third]}, {third: state[third]})


def test_names_of_others_stay_in_the_report():
    layers = nn.ModuleDict({"bn": nn.Linear(2, 2), "act": BatchNormAct1d(3), "a": nn.Linear(2, 2)})
    done = layers.load_state_dict({}, strict=False)
    wanted = [key for key in layers.state_dict() if "tracked" not in key]  # torch fills that in
    assert done.missing_keys == wanted


class Scaled(BatchNormAct1d):
    """A subclass with state of its own."""

    def __init__(self):
        super().__init__(3)
        self.scale = nn.Parameter(randn(3))
        self.register_buffer("shift", randn(3, seed=1))
        self.gate = nn.Linear(3, 3)
        parametrizations.weight_norm(self, "scale")

    def get_extra_state(self):
        return {"seen": 3}

    def set_extra_state(self, state):
        self.seen = state["seen"]


@pytest.mark.parametrize("case", ["plain", "parametrized"])
def test_a_subclass_keeps_what_it_adds(case):
    source, target = Net(Scaled()), Net(Scaled())
    for model, seed in ((source, 0), (target, 7)):
        model.norm.bn = child(case, seed)
        filled(model, seed)
    state = source.state_dict()
    assert {"norm.shift", "norm.gate.weight", "norm.running_mean", "norm._extra_state"} <= {*state}
    assert "norm.parametrizations.scale.original0" in state
    target.load_state_dict(state, strict=True)
    assert target.norm.seen == 3
    assert_same(dict(target.named_parameters()), dict(source.named_parameters()))
    assert_same(dict(target.named_buffers()), dict(source.named_buffers()))


def test_a_copy_and_a_pickle_save_alike():
    layer = fill(BatchNormAct1d(3))
    saved = io.BytesIO()
    torch.save(layer, saved)
    saved.seek(0)
    for twin in (copy.deepcopy(layer), copy.copy(layer), torch.load(saved, weights_only=False)):
        assert_same(dict(twin.state_dict()), dict(layer.state_dict()))
        twin.load_state_dict(layer.state_dict(), strict=True)


@EVERY
def test_distributed_checkpoints_find_every_key(case):
    source, target = Net(act(case)), Net(act(case, seed=7))
    state = checkpoint.get_model_state_dict(source)
    assert list(state) == list(source.state_dict())
    full = checkpoint.StateDictOptions(full_state_dict=True)
    for options in (None, full):
        assert checkpoint.set_model_state_dict(target, state, options=options) == ([], [])
        assert_same(dict(target.state_dict()), dict(source.state_dict()))
        filled(target, 7)


@pytest.fixture
def alone(tmp_path):
    """A process group of one."""
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(tmp_path / "s"), 1), rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("where", ["around", "inside"])
def test_under_distributed_data_parallel(where):
    parallel = nn.parallel.DistributedDataParallel
    source, target = Net(act("plain")), Net(act("plain", seed=7))
    models = []
    for model in (source, target):
        if where == "inside":
            model.norm.bn = parallel(model.norm.bn)
            models.append(model)
        else:
            models.append(parallel(model))
    first, second = models
    assert len(first.state_dict()) == 9
    second.load_state_dict(first.state_dict(), strict=True)
    assert_same(dict(second.state_dict()), dict(first.state_dict()))
    filled(second, 7)
    checkpoint.set_model_state_dict(second, checkpoint.get_model_state_dict(first))
    assert_same(dict(second.state_dict()), dict(first.state_dict()))


def test_distributed_checkpoints_take_the_optimizers_own_state():
    models = [Net(act("plain")), Net(act("plain", seed=7))]
    first, second = (torch.optim.Adam(m.parameters()) for m in models)
    models[0](randn(8, 3)).square().sum().backward()
    first.step()
    state = checkpoint.get_model_state_dict(models[0])
    checkpoint.set_state_dict(
        models[1], second, model_state_dict=state, optim_state_dict=first.state_dict()
    )
    assert second.state_dict()["state"].keys() == first.state_dict()["state"].keys()
    for mine, theirs in zip(*(m.parameters() for m in models), strict=True):
        assert_same(second.state[theirs], first.state[mine])
