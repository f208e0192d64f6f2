"""The layers behave as torch's, which are run beside them; the wanted differences come last."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import threading
import warnings

import pytest
import torch
from torch import nn

import gammabeta
from gammabeta import GammabetaError
from norm_helpers import (
    TOLERANCES,
    assert_matches,
    assert_same,
    data,
    fill,
    randn,
    reference,
    with_gradients,
)

SHAPES = {1: (6, 3), 2: (4, 3, 5, 7), 3: (3, 3, 2, 3, 2)}
DIMS = pytest.mark.parametrize("d", SHAPES)
MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
SETTINGS = {
    "default": {},
    "average": {"momentum": None},
    "momentum-0": {"momentum": 0.0},
    "momentum-1": {"momentum": 1.0},
    "eps": {"eps": 0.1},
    "no-affine": {"affine": False},
    "no-bias": {"bias": False},
    "no-statistics": {"track_running_stats": False},
    "float64": {"dtype": torch.float64},
}
EVERY_SETTING = pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)


def pair(d, **options):
    """Our layer and torch's with the same values."""
    ours = getattr(gammabeta, f"BatchNorm{d}d")(3, **options)
    theirs = getattr(nn, f"BatchNorm{d}d")(3, **options)
    return fill(ours), fill(theirs)


def state(layer):
    return {name: t.clone() for name, t in layer.state_dict().items()}


@EVERY_SETTING
@DIMS
def test_training_then_evaluation_is_torchs(d, options):
    dtype = options.get("dtype", torch.float32)
    for layer in (layers := pair(d, **options)):
        layer.outputs = [layer(data(SHAPES[d], dtype, seed)["x"]) for seed in range(3)]
        layer.outputs.append(layer.eval()(data(SHAPES[d], dtype, seed=9)["x"]))
    torch.testing.assert_close(layers[0].outputs, layers[1].outputs)
    torch.testing.assert_close(state(layers[0]), state(layers[1]))


@MODES
@DIMS
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_gradients_match_the_oracle(d, dtype, training):
    layer = pair(d)[0].to(dtype).train(training)
    stats = None if training else (layer.running_mean.clone(), layer.running_var.clone())

    def subject(x, weight, bias):
        given = {"weight": weight, "bias": bias}
        return torch.func.functional_call(layer, given, (x,))

    def expected(x, weight, bias):
        return reference(x, weight, bias, stats=stats)

    assert_matches(subject, expected, data(SHAPES[d], dtype))


@MODES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_data_may_meet_a_float32_layer(dtype, training):
    layer = pair(2)[0].train(training)
    x = data(SHAPES[2], dtype)["x"]
    stats = None if training else (layer.running_mean.double(), layer.running_var.double())
    expected = reference(x.double(), layer.weight.double(), layer.bias.double(), stats=stats)
    y = layer(x)
    assert (y.dtype, layer.running_mean.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(y.double(), expected, **TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_statistics_of_half_precision_data_are_kept_in_float32(dtype):
    layer, x = pair(2, momentum=1.0)[0], data(SHAPES[2], dtype)["x"]
    layer(x)
    var, mean = torch.var_mean(x.double(), (0, 2, 3))
    torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.running_var.double(), var, rtol=1e-5, atol=1e-6)


def test_under_autocast_statistics_stay_float32():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), gammabeta.BatchNorm2d(3))
    with torch.autocast("cpu", torch.bfloat16):
        y = model(randn(4, 3, 5, 5))
    assert (y.dtype, model[1].running_var.dtype) == (torch.bfloat16, torch.float32)


def layouts():
    x = randn(4, 3, 6, 8) * 2 + 1
    return {
        "channels-last": x.contiguous(memory_format=torch.channels_last),
        "strided": randn(4, 3, 6, 16)[..., ::2],
        "transposed": x.transpose(2, 3),
        "expanded": randn(4, 3, 1, 8).expand(4, 3, 6, 8),
        "all-stride-0": torch.full((1,), 2.0).expand(4, 3, 6, 8),
        "channels-first-batch-last": randn(3, 6, 8, 4).permute(3, 0, 1, 2),
    }


@MODES
@pytest.mark.parametrize("layout", layouts())
def test_the_memory_layout_does_not_change_the_result(layout, training):
    x = layouts()[layout]
    layer = pair(2)[0].train(training)
    got, want = (with_gradients(layer, {"input": t}) for t in (x, x.clone().contiguous()))
    torch.testing.assert_close(got, want)


@MODES
@pytest.mark.parametrize("virtual", [None, 2])
@pytest.mark.parametrize("mean", [0, 1e4], ids=["near-zero", "far"])
def test_channels_last_stays_channels_last(mean, virtual, training):
    layer = gammabeta.BatchNorm2d(3, virtual_batch_size=virtual).train(training)
    layer.running_mean.fill_(mean)
    x = (randn(4, 3, 6, 8) + mean).contiguous(memory_format=torch.channels_last)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


@MODES
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_values_that_are_not_finite_spread_as_in_torch(value, training):
    x = randn(8, 3)
    x[2, 1] = float(value)
    ours, theirs = (layer.train(training) for layer in pair(1))
    for batch in (x, randn(8, 3, seed=1)):
        torch.testing.assert_close(ours(batch), theirs(batch), equal_nan=True)
    torch.testing.assert_close(state(ours), state(theirs), equal_nan=True)


@MODES
@pytest.mark.parametrize("buffer", ["running_mean", "running_var"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_running_statistics_that_are_not_finite_act_as_in_torch(value, buffer, training):
    ours, theirs = (layer.train(training) for layer in pair(1))
    for layer in (ours, theirs):
        getattr(layer, buffer)[1] = float(value)
    torch.testing.assert_close(ours(randn(8, 3)), theirs(randn(8, 3)), equal_nan=True)
    torch.testing.assert_close(state(ours), state(theirs), equal_nan=True)


@MODES
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (4, 3, 0, 4)], ids=str)
def test_a_batch_without_values_has_an_output_and_is_not_counted(shape, training):
    layer = pair(2)[0].train(training)
    before = state(layer)
    got = with_gradients(layer, {"input": torch.zeros(shape)})
    assert got["y"].shape == got["dinput"].shape == shape
    assert_same(state(layer), before)


def test_tracking_switched_off_on_a_trained_layer_uses_the_batch_only_in_training():
    ours, theirs = pair(1)
    for layer in (ours, theirs):
        layer(randn(6, 3) + 2)
        layer.track_running_stats = False
        layer.outputs = [layer(randn(6, 3, seed=s)) for s in (1, 2)]
        layer.outputs.append(layer.eval()(randn(6, 3, seed=3)))
    torch.testing.assert_close(ours.outputs, theirs.outputs)
    torch.testing.assert_close(state(ours), state(theirs))


def test_buffers_are_written_in_place():
    layer = pair(1)[0]
    addresses = [b.data_ptr() for b in layer.buffers()]
    layer(randn(6, 3))
    layer.momentum = None
    layer(randn(6, 3))
    assert [b.data_ptr() for b in layer.buffers()] == addresses
    assert layer.num_batches_tracked == 2


def test_evaluation_leaves_every_bit_of_the_state():
    layer = pair(1)[0].eval()
    before = state(layer)
    layer(randn(6, 3))
    assert_same(state(layer), before)


@DIMS
def test_the_signature_begins_with_torchs(d):
    theirs = list(inspect.signature(getattr(nn, f"BatchNorm{d}d")).parameters.values())
    ours = list(inspect.signature(getattr(gammabeta, f"BatchNorm{d}d")).parameters.values())
    told = [[(p.name, p.default, p.kind) for p in ps] for ps in (ours, theirs)]
    assert told[0][: len(theirs)] == told[1]
    assert {p.kind for p in ours[len(theirs) :]} == {inspect.Parameter.KEYWORD_ONLY}


@EVERY_SETTING
@DIMS
def test_the_repr_is_torchs(d, options):
    ours, theirs = pair(d, **options)
    assert repr(ours) == repr(theirs)


def test_the_repr_names_what_torch_has_not():
    layer = gammabeta.BatchNorm1d(3, virtual_batch_size=4, backend="eager")
    assert repr(layer).endswith("virtual_batch_size=4, backend='eager')")


@EVERY_SETTING
@DIMS
def test_state_dicts_go_both_ways(d, options):
    for source, target in (pair(d, **options), pair(d, **options)[::-1]):
        fill(source, seed=50)
        target.load_state_dict(source.state_dict(), strict=True)
        assert_same(state(target), state(source))
        assert target.state_dict()._metadata == source.state_dict()._metadata


def test_checkpoints_older_than_the_counter_load():
    old = {k: v for k, v in pair(1)[1].state_dict().items() if k != "num_batches_tracked"}
    layer = gammabeta.BatchNorm1d(3)
    layer.load_state_dict(old, strict=True)
    assert layer.num_batches_tracked == 0
    assert torch.equal(layer.running_mean, old["running_mean"])


@DIMS
def test_lazy_layers_become_ours_at_the_first_input(d):
    layer = getattr(gammabeta, f"LazyBatchNorm{d}d")(momentum=0.3, bias=False)
    y = layer(randn(*SHAPES[d]))
    assert type(layer) is getattr(gammabeta, f"BatchNorm{d}d")
    same = type(layer)(3, momentum=0.3, bias=False)
    torch.testing.assert_close(y, same(randn(*SHAPES[d])))
    torch.testing.assert_close(state(layer), state(same))


@pytest.mark.parametrize("lazy", ["", "Lazy"])
@DIMS
def test_a_wrong_number_of_axes_is_refused_in_torchs_words(d, lazy):
    sizes = [] if lazy else [3]
    messages = []
    for home in (gammabeta, nn):
        with pytest.raises(ValueError, match="expected") as error:
            getattr(home, f"{lazy}BatchNorm{d}d")(*sizes)(torch.randn([3] * (d % 3 + 3 + (d == 3))))
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@MODES
@DIMS
def test_a_wrong_number_of_channels_is_refused_in_torchs_words(d, training):
    n, _, *rest = SHAPES[d]
    messages = []
    for layer in pair(d):
        with pytest.raises(RuntimeError) as error:
            layer.train(training)(torch.randn(n, 2, *rest))
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("virtual", [None, 1], ids=["plain", "ghost"])
def test_one_value_is_an_error_that_names_the_layer_and_the_remedies(virtual):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = gammabeta.BatchNorm1d(3, virtual_batch_size=virtual)

        def forward(self, x):
            return self.norm(x)

    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(Block()))
    with pytest.raises(GammabetaError) as error:
        model(randn(1 if virtual is None else 4, 3))
    message = str(error.value)
    assert isinstance(error.value, ValueError)
    assert message.startswith("Expected more than 1 value per channel when training, got input")
    assert "'1.0.norm' (BatchNorm1d)" in message
    assert all(remedy in message for remedy in ("drop_last", "eval()", "freeze()", "GroupNorm"))
    assert "\n" not in message


def test_a_layer_alone_is_named_by_its_class():
    with pytest.raises(ValueError, match=r"in BatchNorm2d: one value"):
        gammabeta.BatchNorm2d(3)(randn(1, 3, 1, 1))


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_a_ghost_batch_of_impossible_size_is_refused_by_its_value(size):
    with pytest.raises((GammabetaError, ValueError), match=f"virtual_batch_size is {size}"):
        gammabeta.BatchNorm1d(3, virtual_batch_size=size)(randn(6, 3))


def copies():
    def through_file(layer):
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    return {
        "deepcopy": copy.deepcopy,
        "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),  # noqa: S301 (our own)
        "torch.save": through_file,
    }


@pytest.mark.parametrize("how", copies())
def test_a_copy_is_equal_and_apart(how):
    layer = fill(gammabeta.BatchNorm1d(3, momentum=None, virtual_batch_size=4))
    twin = copies()[how](layer)
    assert (type(twin), repr(twin)) == (type(layer), repr(layer))
    assert_same(state(twin), before := state(layer))
    twin(randn(8, 3))
    assert_same(state(layer), before)


def test_a_state_dict_passes_the_safe_loader(tmp_path):
    layer = pair(1)[0]
    torch.save(layer.state_dict(), tmp_path / "bn.pt")
    loaded = torch.load(tmp_path / "bn.pt", weights_only=True)
    assert_same(dict(loaded), state(layer))


def test_hooks_run_forward_and_backward():
    layer, seen = pair(1)[0], []
    layer.register_forward_pre_hook(lambda _, args: (args[0] * 2,))
    layer.register_forward_hook(lambda *seen: seen[-1] + 1)
    layer.register_full_backward_hook(lambda _, dx, dy: seen.append((dx[0].shape, dy[0].shape)))
    x = randn(6, 3).requires_grad_()
    y = layer(x)
    torch.testing.assert_close(y, pair(1)[1](x * 2) + 1)
    y.backward(randn(6, 3, seed=1))
    assert seen == [((6, 3), (6, 3))]


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # torch's own, in forward mode
@DIMS
@MODES
def test_derivatives_of_second_order_are_right(d, training):
    layer = pair(d, dtype=torch.float64)[0].train(training)
    x = randn(*(2 if n > 3 else n for n in SHAPES[d]), dtype=torch.float64).requires_grad_()
    parameters = [p.detach().requires_grad_() for p in layer.parameters()]

    def function(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    layer.track_running_stats = layer.track_running_stats and not training
    assert torch.autograd.gradcheck(function, (x, *parameters), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (x, *parameters))


def test_several_threads_may_train_layers_of_their_own():
    layers = [pair(1)[0] for _ in range(4)]
    errors = []

    def work(layer):
        try:
            for seed in range(20):
                layer(randn(6, 3, seed=seed)).backward(randn(6, 3, seed=seed + 1))
        except Exception as error:  # noqa: BLE001 (shown below)
            errors.append(error)

    threads = [threading.Thread(target=work, args=[layer]) for layer in layers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for layer in layers[1:]:
        torch.testing.assert_close(state(layer), state(layers[0]))
    assert layers[0].num_batches_tracked == 20


@MODES
def test_no_buffer_is_part_of_the_graph(training):
    layer = pair(1)[0].train(training)
    y = layer(randn(6, 3).requires_grad_())
    with torch.no_grad():
        for buffer in layer.buffers():
            buffer.add_(1)  # as DDP's broadcast, or the next forward, does
    y.backward(randn(6, 3, seed=1))


def test_torchs_buffers_are_part_of_the_graph():
    # Without this, the test above might prove nothing.
    layer = nn.BatchNorm1d(3)
    y = layer(randn(6, 3).requires_grad_())
    with torch.no_grad():
        layer.running_mean.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(randn(6, 3, seed=1))


def test_no_warning_is_given():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair(2)[0](randn(4, 3, 5, 5)).backward(randn(4, 3, 5, 5, seed=1))
