"""An explanation's numbers are those of the equations on what the layers really saw."""

from __future__ import annotations

import json
from contextlib import nullcontext

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import gammabeta
from gammabeta import equations as eq
from gammabeta.bench.models import TorchNet
from gammabeta.data import load
from gammabeta.data.loader import Loader
from gammabeta.equations_act import activate
from gammabeta.insight.explain import explain
from gammabeta.probe import probe
from norm_helpers import fill, randn


def real(name, count, root=None, **options):
    """Return a batch of real images with labels."""
    data = load(name, root=root, **options)
    return next(iter(Loader(data.test, count, data.normalization).epoch(0)))


def lived_in(model):
    """Give every batch norm parameters and statistics that no fresh one has."""
    torch.manual_seed(1)
    for i, module in enumerate(model.modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            fill(module, seed=i)
    return model


def net(size=32):
    torch.manual_seed(0)
    return lived_in(gammabeta.Net(10, size))


def noise(n=8, size=32):
    x = randn(n, 3, size, size)
    return x, torch.arange(n) % 10


SUBJECTS = {
    "Net, digits": (net, lambda: real("digits", 16), nullcontext),
    "the tutorial's": (lambda: lived_in(TorchNet()), lambda: real("digits", 12), nullcontext),
    "channels last": (
        lambda: lived_in(TorchNet(10, 16)).to(memory_format=torch.channels_last),
        lambda: real("digits", 12, image_size=16),
        nullcontext,
    ),
    "bf16 autocast": (
        net,
        lambda: real("digits", 16),
        lambda: torch.autocast("cpu", torch.bfloat16),
    ),
    "double": (lambda: net().double(), lambda: (noise()[0].double(), noise()[1]), nullcontext),
    "timm resnet18": (
        lambda: lived_in(timm.create_model("resnet18", num_classes=10)),
        lambda: noise(size=48),
        nullcontext,
    ),
    "timm mobilenetv3": (
        lambda: lived_in(timm.create_model("mobilenetv3_small_100", num_classes=10)),
        noise,
        nullcontext,
    ),
    "timm resnetv2": (
        lambda: lived_in(timm.create_model("resnetv2_50", num_classes=10)),
        noise,
        nullcontext,
    ),
    "accelerated": (lambda: gammabeta.accelerate(lived_in(TorchNet())), noise, nullcontext),
}


def captured(model, x, labels):
    """Run what explain runs, and keep everything."""
    torch.manual_seed(0)
    with probe(model) as record:
        model.train()
        torch.manual_seed(0)
        y = model(x.clone().requires_grad_())
        F.cross_entropy(y.float(), labels).backward()
    return {seen.path: seen for seen in record.calls}


def parameters(layer):
    channels = layer.num_features
    given = ((layer.weight, 1.0), (layer.bias, 0.0))
    return [np.full(channels, d) if p is None else p.detach().double().numpy() for p, d in given]


def close(got, expected, rtol=5.1e-7, scale=None):
    """Compare with what was rounded to seven digits."""
    expected = np.asarray(expected, dtype=np.float64)
    scale = float(np.abs(expected).max(initial=0)) if scale is None else scale
    np.testing.assert_allclose(np.asarray(got, dtype=np.float64), expected, rtol=rtol,
                               atol=1e-12 + 1e-13 * scale)  # fmt: skip


def check_lists(layer, seen):
    x, index = seen.x.double().numpy(), layer["per_channel"]["index"]
    of = layer["per_channel"]
    mean, var = eq.batch_statistics(x)
    gamma, beta = parameters(seen.layer)
    close(of["batch_mean"], mean[index], scale=1e5)
    close(of["batch_var"], var[index])
    for name, stat in (("running_mean", seen.before[0]), ("running_var", seen.before[1])):
        close(of[name], stat.double().numpy()[index])
    close(of["weight"], gamma[index])
    dy = seen.dy.double().numpy()
    _, dgamma, dbeta = eq.batch_norm_backward(dy, x, gamma, seen.layer.eps)
    bound = 1e-6 if seen.x.dtype != torch.bfloat16 else 2e-3
    # What cancels in the sum leaves rounding, so the summands are the measure.
    scale = np.abs(dy).sum(axis=(0, *range(2, dy.ndim))).max()
    for name, expected in (("grad_weight", dgamma), ("grad_bias", dbeta)):
        np.testing.assert_allclose(of[name], expected[index], atol=bound * scale + 1e-12)
    y = eq.batch_norm(x, gamma, beta, seen.layer.eps)
    if of["dead"] is not None:
        z = activate(y if seen.residual is None else y + seen.residual.double().numpy(),
                     layer["activation"])  # fmt: skip
        dead = (z == 0).mean(axis=(0, *range(2, z.ndim)))
        np.testing.assert_allclose(of["dead"], dead[index], atol=2e-3 if bound < 1e-3 else 2e-2)
    drawn = layer["quantiles"]["channels"]
    for name, values in (("before", x), ("after", y)):
        flat = values[:, drawn].swapaxes(0, 1).reshape(len(drawn), -1)
        wanted = np.quantile(flat, (0.05, 0.25, 0.5, 0.75, 0.95), axis=1).T
        np.testing.assert_allclose(layer["quantiles"][name], wanted, rtol=2e-6, atol=1e-7)
    assert layer["values"] == x.size // x.shape[1]


def check_channel(told, layer, seen):
    c = told["index"]
    x, dy, real_y, real_dx = (
        t[:, c : c + 1].double().numpy() for t in (seen.x, seen.dy, seen.y, seen.dx)
    )
    gamma, beta = (p[c] for p in parameters(seen.layer))
    mean, var = eq.batch_statistics(x)
    xhat = eq.normalize(x, mean, var, told["eps"])
    y = eq.scale_shift(xhat, gamma, beta)
    assert (told["mean"], told["var"]) == (mean[0], var[0])
    assert told["std"] == np.sqrt(var[0] + told["eps"])
    assert (told["gamma"], told["beta"], told["count"]) == (gamma, beta, x.size)
    at = tuple(np.array([[n, 0, *rest] for n, *rest in told["values"]["where"]]).T)
    shown = told["values"]
    for name, values in (("x", x), ("centred", x - mean[0]), ("xhat", xhat), ("y", y)):
        assert shown[name] == values[at].tolist(), name
    assert shown["layer_y"] == real_y[at].tolist()
    assert told["check"]["max_error"] == np.abs(real_y - y).max()
    if layer["activation"] and not layer["adds"]:
        z = activate(y, layer["activation"])
        assert shown["z"] == z[at].tolist()
        assert told["histograms"]["z"]["counts"] == np.histogram(z, 32)[0].tolist()
    for name, values in (("x", x), ("xhat", xhat), ("y", y)):
        counts, edges = np.histogram(values, 32)
        assert told["histograms"][name]["counts"] == counts.tolist()
        close(told["histograms"][name]["edges"], edges)
    check_backward(told["backward"], at, x, dy, real_dx, gamma, told["eps"])


def check_backward(told, at, x, dy, real_dx, gamma, eps):
    paths = eq.backward_paths(dy, x, gamma, eps)
    for name, values in zip(("direct", "mean", "variance"), paths, strict=True):
        assert told[name] == values[at].tolist()
    dx, _, _ = eq.batch_norm_backward(dy, x, gamma, eps)
    close(told["dx"], dx[at], rtol=1e-9, scale=1e3 * np.abs(paths.direct).max())
    close(told["dx"], np.sum([told[n] for n in ("direct", "mean", "variance")], axis=0), scale=1e3)
    assert told["dy"] == dy[at].tolist()
    assert told["layer_dx"] == real_dx[at].tolist()
    assert told["check"]["max_error"] == pytest.approx(np.abs(real_dx - dx).max(), rel=1e-6)
    assert told["mean_dy"] == pytest.approx(dy.mean(), rel=1e-9, abs=1e-18)
    assert abs(told["sum_dx"]) < 1e-9 * np.abs(dx).sum() + 1e-15
    single = x[at][:, None]
    for name, batch, places in (
        ("jacobian", x, at),
        ("small", single, (np.arange(len(single)), 0)),
    ):
        rows = []
        for where in zip(*np.broadcast_arrays(*places), strict=True):
            one = np.zeros_like(batch)
            one[where] = 1
            rows.append(eq.batch_norm_backward(one, batch, gamma, eps)[0][places])
        np.testing.assert_allclose(told[name], rows, rtol=1e-6, atol=1e-9 * abs(gamma))


def check(model, x, labels, context=nullcontext):
    """Hold an explanation against the equations on data captured apart from it; return it."""
    with context():
        explanation = explain(model, x, labels)
        seen_at = captured(model, x, labels)
    data = explanation.to_dict()
    assert data == json.loads(json.dumps(data, allow_nan=False))
    assert len(data["layers"]) == len(seen_at)
    for layer in data["layers"]:
        check_lists(layer, seen_at[layer["path"]])
        for told in layer["channels"]:
            check_channel(told, layer, seen_at[layer["path"]])
    return explanation


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_number_is_the_equations_on_what_the_layer_saw(name):
    make, batch, context = SUBJECTS[name]
    explanation = check(make(), *batch(), context)
    digits = [c["check"]["digits"] for layer in explanation.layers for c in layer["channels"]]
    back = [c["backward"]["check"]["digits"] for la in explanation.layers for c in la["channels"]]
    assert min(digits) >= {"bf16 autocast": 2, "double": 13}.get(name, 4)
    assert min(back) >= {"bf16 autocast": 1, "double": 12}.get(name, 4)


@pytest.mark.cifar
def test_every_number_is_the_equations_on_cifar(cifar_root):
    explanation = check(net(), *real("cifar10", 24, cifar_root))
    assert [layer["path"] for layer in explanation.layers] == ["bn1", "bn2", "bn3", "bn4"]
    assert explanation.to_dict()["data"]["shape"] == [3, 32, 32]


def test_what_the_probe_saw_is_what_plain_hooks_see():
    model, (x, labels) = lived_in(TorchNet(10, 16)), noise(size=16)
    kept = {}

    def hook(_, args, output):
        output.retain_grad()
        kept["x"], kept["y"] = args[0].detach(), output

    handle = model.bn2.register_forward_hook(hook)
    F.cross_entropy(model.train()(x), labels).backward()
    handle.remove()
    gradient = model.bn2.weight.grad
    twin = lived_in(TorchNet(10, 16))
    twin.load_state_dict({k: v for k, v in model.state_dict().items() if "running" not in k},
                         strict=False)  # fmt: skip
    layer = explain(twin, x, labels).layers[1]
    for told in layer["channels"]:
        at = tuple(np.array([[n, told["index"], *rest] for n, *rest in told["values"]["where"]]).T)
        assert told["values"]["x"] == kept["x"].double().numpy()[at].tolist()
        np.testing.assert_allclose(
            told["backward"]["dy"], kept["y"].grad.double().numpy()[at], atol=1e-9
        )
    index = layer["per_channel"]["index"]
    np.testing.assert_allclose(
        layer["per_channel"]["grad_weight"], gradient.numpy()[index], rtol=1e-4, atol=1e-6
    )


def test_noise_is_measured_between_images():
    x = randn(4000, 3, 1, 1) * 2 + 5
    alike = x.expand(4000, 3, 2, 5).clone()  # ten equal values an image count as one
    layer = explain(nn.Sequential(nn.BatchNorm2d(3)), alike).layers[0]
    assert layer["values"] == 40000
    assert layer["noise"]["mean"] == 40000**-0.5
    assert layer["noise"]["effective_values"] == pytest.approx(4000, rel=1e-3)
    assert layer["noise"]["mean_measured"] == pytest.approx(4000**-0.5, rel=1e-3)
    assert layer["noise"]["variance"] == pytest.approx((2 / 4000) ** 0.5, rel=0.1)  # normal: √(2/n)


def test_running_statistics_move_as_the_equations_say():
    for momentum in (0.3, None):
        model = nn.Sequential(fill(nn.BatchNorm2d(3, momentum=momentum)))
        model[0].num_batches_tracked.fill_(4)
        told = explain(model, randn(4, 3, 2, 2)).layers[0]["channels"]
        for c in told:
            r = c["running"]
            mean, var = eq.update_running(
                r["mean_before"], r["var_before"], c["mean"], c["var"], c["count"], momentum, 5
            )
            assert r["mean_after"] == pytest.approx(float(mean), rel=1e-6)
            assert r["var_after"] == pytest.approx(float(var), rel=1e-6)
            assert r["momentum"] == pytest.approx(momentum or 0.2)
            assert r["unbiased_var"] == c["var"] * c["count"] / (c["count"] - 1)


def test_the_population_is_merged_exactly_whatever_the_batches():
    model, (x, labels) = net(16), noise(30, 16)
    parts = [x[:7], (x[7:8], labels[7:8]), x[8:]]
    told = explain(model, x[:4], labels[:4], population=parts).layers
    with probe(model) as record:
        model.eval()(x)
    for layer, seen in zip(told, record.calls, strict=True):
        index = layer["per_channel"]["index"]
        mean, var = eq.batch_statistics(seen.x)
        count = seen.x.numel() // seen.x.shape[1]
        np.testing.assert_allclose(layer["per_channel"]["population_mean"], mean[index], atol=1e-5)
        np.testing.assert_allclose(
            layer["per_channel"]["population_var"], var[index] * count / (count - 1), rtol=1e-4
        )
    assert explain(model, x[:4], labels[:4]).layers[0]["per_channel"]["population_mean"] is None


def test_the_modes_are_the_models_own_outputs():
    model, (x, labels) = net(16), noise(24, 16)
    modes = explain(model, x, labels).to_dict()["modes"]
    outputs = {}
    for mode in ("train", "eval"):
        with probe(model), torch.no_grad():
            outputs[mode] = model.train(mode == "train")(x)
        np.testing.assert_allclose(modes[f"logits_{mode}"], outputs[mode][:16], rtol=1e-6)
        hits = (outputs[mode].argmax(1) == labels).double().mean()
        assert modes[f"accuracy_{mode}"] == float(hits)
    agree = outputs["train"].argmax(1) == outputs["eval"].argmax(1)
    assert modes["agreement"] == float(agree.double().mean())
    assert modes["parts_at"] == "bn1"
    relative = (outputs["train"] - outputs["eval"]).norm() / outputs["eval"].norm()
    assert modes["output_distance"] == pytest.approx(float(relative), rel=1e-5)


def test_the_distance_of_the_modes_is_that_of_the_layers_outputs():
    model, (x, labels) = lived_in(TorchNet(10, 16)), noise(16, 16)
    modes = explain(model, x, labels).to_dict()["modes"]
    kept = {}
    for mode in (True, False):
        with probe(model) as record, torch.no_grad():
            model.train(mode)(x)
        kept[mode] = {seen.path: seen.y.double() for seen in record.calls}
    for entry in modes["layers"]:
        a, b = (kept[mode][entry["path"]] for mode in (True, False))
        assert entry["distance"] == pytest.approx(float((a - b).norm() / b.norm()), rel=1e-6)


def test_company_changes_an_image_in_training_mode_only():
    model, (x, labels) = net(16), noise(24, 16)
    company = explain(model, x, labels).to_dict()["modes"]["company"]
    image, usual = company["image"], model.eval()(x).argmax(1)
    train = []
    for others in company["neighbours"]:
        assert len({image, *others}) == company["size"]
        with probe(model), torch.no_grad():
            train.append(model.train()(x[[image, *others]])[0])
    np.testing.assert_allclose(company["train"], torch.stack(train), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.std(company["eval"], axis=0), 0, atol=1e-5)
    assert company["train_spread"] > 100 * company["eval_spread"]
    assert company["flips"] == sum(int(row.argmax()) != usual[image] for row in train)


def test_gradient_norms_are_autograds_with_batch_norm_and_without():
    model, (x, labels) = lived_in(TorchNet(10, 16)), noise(size=16)
    told = explain(model, x, labels).to_dict()["gradients"]
    twin = lived_in(TorchNet(10, 16))
    twin.load_state_dict(model.state_dict())
    for key, loss in (("with", "loss"), ("without", "loss_without")):
        if key == "without":
            twin.bn1 = twin.bn2 = twin.bn3 = twin.bn4 = nn.Identity()
        twin.train().zero_grad()
        value = F.cross_entropy(twin(x), labels)
        value.backward()
        assert told[loss] == pytest.approx(value.item(), rel=1e-5)
        assert [e["path"] for e in told["layers"]] == ["conv1", "conv2", "conv3", "fc1", "fc2"]
        for entry in told["layers"]:
            norm = float(twin.get_submodule(entry["path"]).weight.grad.norm())
            assert entry[key] == pytest.approx(norm, rel=1e-4)


def test_a_fused_net_without_batch_norm_is_the_plain_one_without():
    fused, plain, (x, labels) = net(16), TorchNet(10, 16), noise(size=16)
    plain.load_state_dict(fused.state_dict())
    ours, torchs = (explain(m, x, labels).to_dict()["gradients"] for m in (fused, plain))
    assert ours["loss_without"] == pytest.approx(torchs["loss_without"], rel=1e-5)
    for a, b in zip(ours["layers"], torchs["layers"], strict=True):
        assert a["without"] == pytest.approx(b["without"], rel=1e-4)
        assert a["with"] == pytest.approx(b["with"], rel=1e-3)


def test_timm_models_keep_their_activations_without_batch_norm():
    model = timm.create_model("mobilenetv3_small_050", num_classes=4)
    x = noise()[0]
    told = explain(model, x).to_dict()["gradients"]
    without = timm.create_model("mobilenetv3_small_050", num_classes=4)
    without.load_state_dict(model.state_dict())
    for module in without.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.forward = lambda x, act=module.act: act(x.clone())
    wanted = model.eval()(x).argmax(1)
    torch.manual_seed(0)
    assert told["loss_without"] == pytest.approx(
        F.cross_entropy(without.train()(x), wanted).item(), rel=1e-5
    )


def test_the_random_cotangent_is_fixed_and_reaches_every_layer():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    first, second = (explain(model, noise()[0]) for _ in range(2))
    assert first.layers == second.layers
    assert first.to_dict()["data"]["target"] == "random"
    assert np.abs(first.layers[0]["channels"][0]["backward"]["dy"]).max() > 0
