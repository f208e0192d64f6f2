# ruff: noqa: ARG005 (what torch passes, and every case of a table takes)
"""``accelerate`` changes how fast a model is, and nothing else of it."""

from __future__ import annotations

import copy
import threading

import pytest
import safetensors.torch
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gammabeta import GammabetaError, accelerate, convert, freeze, unfreeze
from gammabeta.surgery import compiler
from norm_helpers import randn
from surgery_helpers import Doubled, assert_twins, evaluate, images, near, step, twin


class Block(nn.Module):
    """A residual block whose forward depends on the mode and on an attribute."""

    def __init__(self, channels=3, rate=0.0):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, 3, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(3)
        self.rate = rate

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        if self.training and self.rate > 0:
            y = y * (1 - self.rate)
        return self.relu(self.bn2(self.conv2(y)) + x)

    def features(self, x):
        """Another method that calls the same layers."""
        return self.relu(self.bn1(self.conv1(x)))


class Odd(nn.Module):
    """No graph can be taken of this forward."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x):
        y = F.relu(self.bn(x))
        return y if y.sum() > 0 else -y


def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)).double()


def blocks():
    return nn.Sequential(Block(4), Block(5, rate=0.3)).double()


def fused(model):
    return {e.path: e.what for e in model.gammabeta_report.done if e.what.startswith("fused")}


def left(model):
    return {e.path: e.what for e in model.gammabeta_report.left}


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.fixture
def calls(monkeypatch):
    """The settings of every call in which more than a batch norm was computed, as models run."""
    seen = []
    original = compiler.fused

    def spy(*args, **options):
        if options.get("activation") or options.get("residual") is not None:
            seen.append(options)
        return original(*args, **options)

    monkeypatch.setattr(compiler, "fused", spy)
    return seen


# What is computed


@pytest.mark.parametrize("make", [plain, blocks])
def test_a_model_computes_what_it_did_with_fewer_calls(make, calls):
    model = make()
    reference = twin(model)
    accelerate(model)
    assert_twins(model, reference, images())
    assert calls


@pytest.mark.parametrize("make", [plain, blocks])
def test_in_single_precision_the_kernels_compute_it_as_closely(make):
    reference = make()
    model = accelerate(twin(reference).float())
    got, expected = step(model, images().float()), step(reference, images())
    near(got[0].double(), expected[0], 1e-5, "output")
    scale = max(float(g.abs().max()) for g in expected[1].values())
    for name, gradient in expected[1].items():
        near(got[1][name].double(), gradient, 1e-5, f"gradient of {name}", scale)


def test_what_is_fused_is_reported_once_it_was_called():
    first = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()).double()
    model = accelerate(nn.Sequential(first, blocks(), nn.BatchNorm2d(3).double()))
    waiting = "not seen in a captured forward yet"
    paths = ["0.1", "1.0.bn1", "1.0.bn2", "1.1.bn1", "1.1.bn2"]
    assert left(model) == dict.fromkeys([*paths, "2"], waiting)
    evaluate(model, images())
    assert str(model.gammabeta_report).splitlines() == [
        "done  0.1: fused BN + relu",
        "done  1.0.bn1: fused BN + relu",
        "done  1.0.bn2: fused BN + add + relu",
        "done  1.1.bn1: fused BN + relu",
        "done  1.1.bn2: fused BN + add + relu",
        "left  2: BN alone: its output leaves the module",
    ]


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (3, 8, 8), (1,), (2, 1, 8, 8)], ids=str)
def test_a_sum_that_broadcasts_is_added_as_before(shape):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)
            self.r = nn.Parameter(randn(*shape, dtype=torch.float64))

        def forward(self, x):
            return F.relu(self.bn(x) + self.r)

    model = Sum().double()
    reference = twin(model)
    assert_twins(accelerate(model), reference, images())
    assert fused(model) == {"bn": "fused BN + add + relu"}


def test_a_sum_that_widens_the_output_is_added_as_before():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x):
            return F.relu(self.bn(x[:1]) + x)

    model = Wide().double()
    reference = twin(model)
    accelerate(model)
    assert_twins(model, reference, images())


def test_a_sum_keeps_its_promoted_dtype():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.bn(x) + x.double()

    model = accelerate(Mixed())
    assert model(images(dtype=torch.float32)).dtype == torch.float64


def test_a_sum_written_into_a_tensor_that_others_see_is_still_written():
    class Into(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x):
            x += self.bn(x.clone())
            return F.relu(x)

    model, x = accelerate(Into().double()), images()
    before = x.clone()
    y = evaluate(model, x)
    assert not torch.equal(x, before)
    torch.testing.assert_close(y, F.relu(x))
    assert left(model) == {"bn": "BN alone: the addition overwrites a tensor that others may see"}


def test_a_shared_layer_and_a_shared_module_are_fused_where_they_are_called():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x):
            return F.silu(self.bn(F.relu(self.bn(x))))

    layer = Twice()
    model = nn.Sequential(layer, layer).double()
    reference = twin(model)
    accelerate(model)
    assert_twins(model, reference, images())
    assert model[0].bn.num_batches_tracked == 4


OPERATIONS = {
    "relu": lambda m, y, r: F.relu(y),
    "relu_": lambda m, y, r: y.relu_(),
    "silu": lambda m, y, r: F.silu(y),
    "hardtanh": lambda m, y, r: F.hardtanh(y, 0, 6, inplace=True),
    "pool": lambda m, y, r: F.max_pool2d(y, 2),
    "pool3": lambda m, y, r: F.max_pool2d(y, 3, 2, 1),
    "dropout": lambda m, y, r: F.dropout(y, 0.0),
    "y + r": lambda m, y, r: y + r,
    "y += r": lambda m, y, r: y.add_(r),
    "r += 1": lambda m, y, r: (r.add_(1), y)[1],
    "r += y": lambda m, y, r: r.add_(y),
    "y * relu(y)": lambda m, y, r: y * F.relu(y),
    "r + bn": lambda m, y, r: m.bn(r) + y,
    "bn": lambda m, y, r: m.bn2(y),
    "y * r": lambda m, y, r: y * r.mean(),
    "y + bn": lambda m, y, r: y + m.bn2(m.conv(y)),
}


class Random(nn.Module):
    """Does what it is told to a batch norm's output."""

    def __init__(self, names, source):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.names, self.source = names, source

    def forward(self, x):
        r = self.conv(x) if self.source == "conv" else x * 1
        y = self.bn(r if self.source == "same" else self.conv(x))
        for name in self.names:
            y = OPERATIONS[name](self, y, r)
        return y * 1 + r.sum()


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from([n for n in OPERATIONS if "pool" not in n]), max_size=4),
    st.sampled_from([None, "pool", "pool3"]),
    st.sampled_from(["conv", "same", "product"]),
    st.booleans(),
)
def test_whatever_follows_a_batch_norm_the_model_computes_what_it_did(names, pool, source, first):
    pools = [pool] if pool else []
    model = Random([*pools, *names] if first else [*names, *pools], source).double()
    reference = twin(model)
    torch._dynamo.reset()
    try:
        with torch.no_grad():
            expected = twin(reference)(images())
    except RuntimeError:
        assume(False)  # sizes that do not fit
    with torch.no_grad():
        near(accelerate(twin(model))(images()), expected, 1e-9, "output")
    try:
        step(twin(reference), images())
    except RuntimeError:
        assume(False)  # what backward needs was overwritten, by the reference already
    assert_twins(accelerate(model), reference, images())


# What stays


def test_names_parameters_classes_and_modes_stay():
    model = blocks()
    model[1].eval()
    reference = twin(model)
    tensors = [(id(t), t.stride(), t.data_ptr()) for t in model.state_dict(keep_vars=True).values()]
    modules = [id(m) for m in model.modules()]
    accelerate(model)
    model(images())
    now = [(id(t), t.stride(), t.data_ptr()) for t in model.state_dict(keep_vars=True).values()]
    assert now == tensors
    assert [id(m) for m in model.modules()] == modules
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in reference.named_parameters()]
    for m, r in zip(model.modules(), reference.modules(), strict=True):
        assert (m.training, type(m)) == (r.training, type(r))
    assert repr(model) == repr(reference)


def test_an_optimizer_made_before_goes_on():
    model = blocks()
    reference = twin(model)
    pairs = [(m, torch.optim.SGD(m.parameters(), 0.1, momentum=0.9)) for m in (model, reference)]
    for i in range(4):
        if i == 1:
            accelerate(model)
        for m, optimizer in pairs:
            step(m, images() + i)
            optimizer.step()
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        near(a, b, 1e-8, "parameter")


def test_a_state_goes_from_and_to_a_model_that_is_not_accelerated():
    model, other = accelerate(blocks()), blocks()
    step(other, images())
    model.load_state_dict(other.state_dict())
    near(evaluate(model, images()), evaluate(other, images()), 1e-9, "loaded")
    step(model, images() + 1)
    other.load_state_dict(model.state_dict())
    near(evaluate(model, images()), evaluate(other, images()), 1e-9, "loaded back")


def test_hooks_at_hand_run_in_the_captured_forward(calls):
    model, seen = blocks(), []
    model[0].register_forward_hook(lambda m, args, y: seen.append("block"))
    model[0].conv1.register_forward_hook(lambda m, args, y: y + 1)
    model[0].bn2.register_forward_hook(lambda m, args, y: y * 1.5)
    model[0].register_forward_pre_hook(lambda m, args: seen.append("pre"))
    reference = twin(model)
    assert_twins(accelerate(model), reference, images())
    assert seen.count("block") == seen.count("pre") == 4
    assert calls


def test_frozen_statistics_stay_frozen_and_thaw():
    model = blocks()
    reference = twin(model)
    for m in (model, reference):
        freeze(m[0], affine=True)
    accelerate(model)
    assert_twins(model.train(), reference.train(), images())
    assert model[0].bn1.num_batches_tracked == 0
    for m in (model, reference):
        unfreeze(m)
        freeze(m[1])
    assert_twins(model.train(), reference.train(), images())
    assert [int(b.bn1.num_batches_tracked) for b in model] == [1, 1]


def test_copies_and_files_are_plain_and_can_be_accelerated(tmp_path, calls):
    model = accelerate(blocks())
    expected = evaluate(model, images())
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    for other in (copy.deepcopy(model), loaded):
        calls.clear()
        torch.testing.assert_close(evaluate(other, images()), expected)
        assert not calls
        assert left(other) == {"": "a copy is not accelerated: call accelerate on it"}
        torch.testing.assert_close(evaluate(accelerate(other), images()), expected)
        assert len(calls) == 4


def test_accelerating_again_starts_anew(calls):
    model = accelerate(plain())
    evaluate(model, images())
    model[2] = nn.SiLU()
    accelerate(model)
    calls.clear()
    evaluate(model, images())
    assert [c["activation"] for c in calls] == ["silu"]
    assert fused(model) == {"1": "fused BN + silu"}


def test_many_models_of_one_class_are_all_accelerated(calls):
    models = [accelerate(Block().double()) for _ in range(12)]
    for model in models:
        evaluate(model, images())
    assert len(calls) == 2 * len(models)


# Going back


@pytest.mark.parametrize("inplace", [True, False])
def test_going_back_runs_the_original_forward(inplace, calls):
    model = blocks()
    reference = twin(model)
    accelerate(model)
    back = convert(model, to="torch", inplace=inplace)
    assert (back is model) is inplace
    assert [type(m) for m in back.modules()] == [type(m) for m in reference.modules()]
    assert_twins(back, reference, images())
    assert not calls


# The comparison on an example


class Counter(nn.Module):
    """Draws, and writes a buffer and Python state, in evaluation too."""

    def __init__(self):
        super().__init__()
        self.body = plain()
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, x):
        self.steps += 1
        return self.body(x + torch.rand_like(x))


def test_the_comparison_leaves_no_trace():
    model = Counter().double()
    model.body[0].eval()  # one alone in another mode
    modes = [m.training for m in model.modules()]
    state = {n: t.clone() for n, t in model.state_dict().items()}
    x, rng = images(), torch.get_rng_state()
    accelerate(model, (x,))
    assert torch.equal(torch.get_rng_state(), rng)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert torch.equal(x, images())
    assert fused(model)


def wrong_activation(monkeypatch):
    right = compiler.fused
    monkeypatch.setattr(
        compiler, "fused", lambda **options: right(**options | {"activation": "silu"})
    )


def test_a_model_that_would_compute_something_else_is_refused_and_left_as_it_was(monkeypatch):
    wrong_activation(monkeypatch)
    model = nn.Sequential(blocks(), nn.BatchNorm2d(3).double())
    with pytest.raises(GammabetaError, match=r"output 0 differs by .* left as it was"):
        accelerate(model, images())
    assert model._compiled_call_impl is None
    assert not hasattr(model, "gammabeta_report")


def test_examples_that_the_model_refuses_are_the_users_to_mend():
    with pytest.raises(GammabetaError, match=r"the model fails on example_inputs .*: .*channels"):
        accelerate(plain(), images(channels=5))
    with pytest.raises(GammabetaError, match="lazy layers: call it once"):
        accelerate(nn.Sequential(nn.LazyConv2d(3, 1), nn.BatchNorm2d(3)), images())


def test_objects_that_models_return_are_compared_too(monkeypatch):
    class Result:
        def __init__(self, y):
            self.logits = {"y": y}

    class Boxed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = plain()

        def forward(self, x):
            return Result(self.body(x))

    accelerate(Boxed().double(), images())
    wrong_activation(monkeypatch)
    with pytest.raises(GammabetaError, match="would change"):
        accelerate(Boxed().double(), images())


# Other tools


@pytest.mark.filterwarnings("ignore")
def test_an_accelerated_model_compiles_whole_and_stays_fused():
    torch._dynamo.reset()
    model = blocks()
    reference = twin(model)
    accelerate(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = images()
    for mode in (True, False):
        torch.manual_seed(1)
        got = compiled.train(mode)(x)
        torch.manual_seed(1)
        near(got, reference.train(mode)(x), 1e-9, str(mode))


def test_symbolic_tracing_sees_the_original_forward():
    model = Block().double()
    before = torch.fx.symbolic_trace(twin(model))
    traced = torch.fx.symbolic_trace(accelerate(model))
    assert [n.name for n in traced.graph.nodes] == [n.name for n in before.graph.nodes]
    near(traced.eval()(images()), before.eval()(images()), 1e-9, "traced")
    inside = torch.fx.symbolic_trace(nn.Sequential(model, nn.ReLU()))
    near(inside.eval()(images()), F.relu(before(images())), 1e-9, "traced inside")


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("how", ["export", "jit", "functional_call"])
def test_exporters_take_the_model(how):
    model = accelerate(blocks()).eval()
    x = images()
    expected = evaluate(model, x)
    if how == "export":
        got = torch.export.export(model, (x,)).module()(x)
    elif how == "jit":
        got = torch.jit.trace(model, x)(x)
    else:
        got = torch.func.functional_call(model, dict(model.state_dict()), x)
    near(got, expected, 1e-9, how)


def test_a_synchronised_layer_put_in_later_is_called():
    model = accelerate(plain())
    reference = evaluate(twin(model), images())
    done = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(done[1]) is nn.SyncBatchNorm
    near(evaluate(done, images()), reference, 1e-9, "sync")


def test_other_threads_are_not_disturbed_while_a_model_is_captured():
    busy, failed = threading.Event(), []

    def work():
        model, x = blocks(), images().requires_grad_()
        while not busy.is_set():
            try:
                Doubled.apply(model(x)).sum().backward()
            except Exception as error:  # noqa: BLE001 (whatever it is)
                failed.append(error)
                return

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(3):
            accelerate(blocks())(images())
    finally:
        busy.set()
        thread.join()
    assert failed == []


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad])
def test_an_optimizer_made_before_keeps_its_moments_in_place(make):
    model = blocks().float()
    reference = twin(model)
    pairs = [(m, make(m.parameters(), 1e-2, fused=True)) for m in (model, reference)]
    for i in range(4):
        if i == 1:
            accelerate(model)
        for m, optimizer in pairs:
            step(m, images().float() + i)
            optimizer.step()
    for (name, a), b in zip(model.named_parameters(), reference.parameters(), strict=True):
        if "conv" not in name or "bias" not in name:  # its gradient is rounding, and Adam scales it
            near(a, b, 1e-3, name)


@pytest.mark.parametrize("wrap", [nn.parallel.DistributedDataParallel, nn.DataParallel])
def test_a_wrapped_model_gets_right_gradients(wrap, lone_process):
    model = blocks()
    reference = twin(model)
    wrapped = wrap(model)
    assert accelerate(wrapped) is wrapped
    x = images()
    cotangent = randn(*reference(x).shape, dtype=torch.float64)
    for m in (wrapped, reference):
        m.zero_grad()
        m(x).backward(cotangent)
    scale = float(reference[0].conv1.weight.grad.abs().max())
    for (name, a), b in zip(model.named_parameters(), reference.parameters(), strict=True):
        near(a.grad, b.grad, 1e-9, name, scale)
    assert len(fused(model)) == 4


def test_tools_that_read_parameters_as_they_lie_still_do(tmp_path):
    model = accelerate(plain().float())
    step(model, images(dtype=torch.float32))
    assert all(p.grad.view(-1).numel() == p.numel() for p in model.parameters())
    nn.utils.parameters_to_vector(model.parameters())
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)

    def closure():
        optimizer.zero_grad()
        loss = model(images(dtype=torch.float32)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.inference_mode():
        accelerate(plain().float())(images(dtype=torch.float32))


def test_no_class_is_made_that_a_registry_would_see():
    registry = []

    class Registered(nn.Module):
        def __init_subclass__(cls, **options):
            registry.append(cls)

    class Mine(Registered):
        def __init__(self):
            super().__init__()
            self.body = plain()

        def forward(self, x):
            return self.body(x)

    evaluate(accelerate(Mine().double()), images())
    assert registry == [Mine]


def test_memory_that_is_shared_or_tied_stays_so():
    model = blocks()
    model[1].conv2.weight.data = model[1].conv1.weight.data.view(3, 5, 3, 3)
    model.share_memory()
    accelerate(model)
    model(images())
    assert all(p.is_shared() for p in model.parameters())
    with torch.no_grad():
        model[1].conv1.weight.fill_(0.25)
    assert bool((model[1].conv2.weight == 0.25).all())


@pytest.mark.parametrize("how", ["accelerate", "compile"])
def test_second_derivatives_are_those_of_torch(how):
    """A gradient penalty, whose inner gradient flows through every layer."""
    reference = blocks()
    model = twin(reference)
    run = accelerate(model) if how == "accelerate" else torch.compile(model, backend="gammabeta")

    def penalty(call, x):
        x = x.clone().requires_grad_()
        y = call(x)
        cotangent = randn(*y.shape, seed=5, dtype=y.dtype)
        (inner,) = torch.autograd.grad(y, x, cotangent, create_graph=True)
        return inner, inner.square().sum()

    for m, call in ((model, run), (reference, reference)):
        inner, loss = penalty(call, images())
        m.zero_grad()
        loss.backward()
        m.inner = inner.detach()
    near(model.inner, reference.inner, 1e-9, "gradient")
    scale = max(float(p.grad.abs().max()) for p in reference.parameters() if p.grad is not None)
    for (name, a), b in zip(model.named_parameters(), reference.parameters(), strict=True):
        if b.grad is not None:
            near(a.grad, b.grad, 1e-9, name, scale)


def test_second_derivatives_of_the_kernels_are_right_in_single_precision():
    reference = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.SiLU(), nn.Linear(6, 3)
    ).double()
    model = accelerate(twin(reference).float())
    found = []
    for m, dtype in ((model, torch.float32), (reference, torch.float64)):
        x = randn(16, 4, seed=2, dtype=torch.float64).to(dtype).requires_grad_()
        y = m(x)
        (inner,) = torch.autograd.grad(
            y, x, randn(16, 3, seed=5, dtype=torch.float64).to(dtype), create_graph=True
        )
        inner.square().sum().backward()
        found.append((inner.detach().double(), m[0].weight.grad.double()))
    near(found[0][0], found[1][0], 1e-4, "gradient")
    near(found[0][1], found[1][1], 1e-3, "gradient of the penalty")


def test_a_sharded_model_still_runs(lone_process):
    model = blocks()
    reference = twin(model)
    fully_shard(accelerate(model), mesh=init_device_mesh("cpu", (1,)))
    near(model(images()), reference(images()), 1e-9, "output")


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("run", ["accelerate", "compile"])
def test_checkpointed_parts_with_batch_norms_are_run_as_torch_runs_them(use_reentrant, run):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 3, 1)
            self.body = plain()

        def forward(self, x):
            y = torch.relu(self.first(x))
            return checkpoint(self.body, y, use_reentrant=use_reentrant) * 2

    model = Checkpointed().double()
    reference = twin(model)
    call = accelerate(model) if run == "accelerate" else torch.compile(model, backend="gammabeta")
    for m, forward in ((model, call), (reference, reference)):
        x = images().requires_grad_()
        y = forward(x)
        y.backward(randn(*y.shape, seed=5, dtype=torch.float64))
        m.found = [y.detach(), x.grad]
    for a, b in zip(model.found, reference.found, strict=True):
        near(a, b, 1e-9, "output or gradient")
    for (name, a), b in zip(model.named_parameters(), reference.parameters(), strict=True):
        near(a.grad, b.grad, 1e-9, name, float(reference.body[0].weight.grad.abs().max()))
    for (name, a), b in zip(model.named_buffers(), reference.buffers(), strict=True):
        near(a.double(), b.double(), 1e-9, name)


@pytest.mark.filterwarnings("ignore")
def test_the_report_names_modules_by_their_paths_also_between_graph_breaks():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn1, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            y = F.relu(self.bn1(x))
            torch._dynamo.graph_break()
            return F.silu(self.bn2(y))

    model = accelerate(nn.Sequential(nn.Sequential(Broken()), nn.BatchNorm2d(3)).double())
    evaluate(model, images())
    assert fused(model) == {"0.0.bn1": "fused BN + relu", "0.0.bn2": "fused BN + silu"}
    assert list(left(model)) == ["1"]


def test_what_is_no_model_is_refused():
    with pytest.raises(GammabetaError, match=r"model is a int, but must be a torch\.nn\.Module"):
        accelerate(3)
