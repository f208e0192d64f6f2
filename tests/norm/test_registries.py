"""Tools that know layers by their exact class treat ours as torch's, or refuse them as those."""

from __future__ import annotations

import copy
import importlib.util
import warnings

import pytest
import torch
from torch import nn
from torch.ao import quantization

import gammabeta
from gammabeta import GammabetaError
from kernel_helpers import python
from norm_helpers import fill, randn

HAS = {name: importlib.util.find_spec(name) is not None for name in ("opacus", "thop")}
OPACUS = pytest.mark.skipif(not HAS["opacus"], reason="opacus is not installed")
PRIVACY = """
import importlib, sys, warnings
import torch
from torch import nn
warnings.simplefilter("ignore")
{first}
import gammabeta

def refused(layer):
    # A layer without statistics has no buffers, on which Opacus looks in other places.
    import opacus
    from opacus.validators import ModuleValidator
    model = nn.Sequential(nn.Conv2d(3, 4, 3), layer)
    errors = ModuleValidator.validate(model, strict=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.utils.data.DataLoader(torch.randn(8, 3, 6, 6), batch_size=4)
    try:
        opacus.PrivacyEngine().make_private(
            module=model, optimizer=optimizer, data_loader=data,
            noise_multiplier=1.0, max_grad_norm=1.0,
        )
        private = True
    except opacus.validators.errors.UnsupportedModuleError:
        private = False
    return [type(e).__name__ for e in errors] == ["ShouldReplaceModuleError"] and not private

untracked = {{"track_running_stats": False}}
layers = {{
    "plain": gammabeta.BatchNorm2d(4, **untracked),
    "tracked": gammabeta.BatchNorm2d(4),
    "act": gammabeta.BatchNormAct2d(4, **untracked),
    "converted": gammabeta.convert(nn.BatchNorm2d(4, **untracked)),
    "frozen": gammabeta.freeze(gammabeta.BatchNorm2d(4)),
    "renorm": gammabeta.BatchRenorm2d(4),
    "torch": nn.BatchNorm2d(4, **untracked),
}}
{then}
assert {{name: refused(layer) for name, layer in layers.items()}} == dict.fromkeys(layers, True)
assert not refused(nn.GroupNorm(2, 4))
"""


@OPACUS
@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("import opacus", ""),
        ("", ""),
        (
            "import gammabeta.norm.renorm",
            "for name in [n for n in sys.modules if n.startswith('gammabeta')]:\n"
            "    del sys.modules[name]\n"
            "import gammabeta\n"
            "layers['again'] = gammabeta.BatchNorm2d(4, track_running_stats=False)",
        ),
    ],
    ids=["opacus first", "opacus last", "imported anew"],
)
def test_opacus_refuses_private_training_as_it_does_with_torchs(first, then):
    done = python(PRIVACY.format(first=first, then=then))
    assert done.returncode == 0, done.stderr


@OPACUS
def test_opacus_fixes_a_model_as_it_does_with_torchs():
    from opacus.validators import ModuleValidator

    ours = nn.Sequential(nn.Conv2d(3, 4, 3), gammabeta.BatchNormAct2d(4), gammabeta.BatchNorm2d(4))
    fixed = ModuleValidator.fix_and_validate(ours)
    assert type(fixed[1].bn) is type(fixed[2]) is nn.GroupNorm
    twin = ModuleValidator.fix(ours)
    twin.load_state_dict(fixed.state_dict(), strict=True)
    assert (fixed[1](randn(2, 4, 6, 6)) >= 0).all()


def test_no_library_is_loaded_for_it():
    code = "import gammabeta.norm.renorm, sys; print(*sys.modules)"
    loaded = set(python(code).stdout.split())
    assert not {"opacus", "thop"} & loaded


def test_a_library_that_keeps_its_table_elsewhere_loads_with_a_warning(tmp_path):
    package = tmp_path / "opacus/validators"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text("class ModuleValidator: pass")
    done = python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import gammabeta.norm.layers, opacus.validators, logging"
    )
    assert done.returncode == 0, done.stderr
    assert "opacus.validators" in done.stderr
    assert 'convert(model, to="torch")' in done.stderr


@pytest.mark.skipif(not HAS["thop"], reason="thop is not installed")
@pytest.mark.parametrize("name", ["BatchNorm2d", "BatchNormAct2d", "BatchRenorm2d"])
def test_thop_counts_what_it_counts_for_torchs(name):
    thop = pytest.importorskip("thop")

    def count(norm):
        return thop.profile(
            nn.Sequential(nn.Conv2d(3, 4, 3), norm), (randn(2, 3, 8, 8),), verbose=False
        )

    assert count(getattr(gammabeta, name)(4)) == count(nn.BatchNorm2d(4))


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao's own deprecations
        yield


LINEAR = {
    "conv1d": (nn.Conv1d, "BatchNorm1d", (4, 3, 9)),
    "conv2d": (nn.Conv2d, "BatchNorm2d", (4, 3, 6, 6)),
    "conv3d": (nn.Conv3d, "BatchNorm3d", (2, 3, 4, 4, 4)),
}


def network(kind, relu=True):
    conv, name, shape = LINEAR[kind]
    torch.manual_seed(0)
    model = nn.Sequential()
    model.conv, model.bn = conv(3, 4, 3), fill(getattr(gammabeta, name)(4))
    if relu:
        model.relu = nn.ReLU()
    return model, randn(*shape)


@pytest.mark.parametrize("relu", [False, True], ids=["bare", "relu"])
@pytest.mark.parametrize("kind", LINEAR)
def test_fuse_modules_fuses_as_with_torchs(kind, relu):
    model, x = network(kind, relu)
    expected = model.eval()(x)
    before = copy.deepcopy(model.state_dict())
    fused = quantization.fuse_modules(model, [["conv", "bn", "relu"][: 2 + relu]])
    assert type(fused.bn) is nn.Identity
    torch.testing.assert_close(fused(x), expected)
    assert type(model.bn).__module__ == "gammabeta.norm.layers"
    torch.testing.assert_close(model.state_dict(), before)


@pytest.mark.parametrize("relu", [False, True], ids=["bare", "relu"])
@pytest.mark.parametrize("kind", ["conv1d", "conv2d", "conv3d"])
def test_fuse_modules_qat_trains_as_with_torchs(kind, relu):
    model, x = network(kind, relu)
    names = [["conv", "bn", "relu"][: 2 + relu]]
    plain = gammabeta.convert(model, to="torch")
    ours, theirs = (quantization.fuse_modules_qat(m.train(), names) for m in (model, plain))
    assert type(ours.conv) is type(theirs.conv)
    for fused in (ours, theirs):
        fused.qconfig = quantization.get_default_qat_qconfig("x86")
        quantization.prepare_qat(fused, inplace=True)
        fused(x).square().mean().backward()
    assert type(ours.conv) is type(theirs.conv)
    torch.testing.assert_close(ours.conv.weight.grad, theirs.conv.weight.grad)


def test_qat_refuses_ghost_batches():
    model, _ = network("conv2d")
    model.bn.virtual_batch_size = 2
    with pytest.raises(GammabetaError, match=r"ghost batches.*virtual_batch_size"):
        quantization.fuse_modules_qat(model.train(), [["conv", "bn", "relu"]])


def test_the_batch_norm_inside_an_activated_one_is_fused_by_its_name():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), fill(gammabeta.BatchNormAct2d(4))).eval()
    with pytest.raises(AssertionError, match=r"did not find fuser method for.*BatchNormAct2d"):
        quantization.fuse_modules(model, [["0", "1"]])
    fused = quantization.fuse_modules(model, [["0", "1.bn"]])
    torch.testing.assert_close(fused(randn(2, 3, 6, 6)), model(randn(2, 3, 6, 6)))


@pytest.mark.parametrize("d", [2, 3])
def test_static_quantization_takes_a_batch_norm_that_stands_alone(d):
    torch.manual_seed(0)
    kind, shape = (nn.Conv2d, (8, 3, 6, 6)) if d == 2 else (nn.Conv3d, (4, 3, 4, 4, 4))
    results = []
    for norm in (getattr(gammabeta, f"BatchNorm{d}d")(4), getattr(nn, f"BatchNorm{d}d")(4)):
        torch.manual_seed(0)
        norm.load_state_dict(fill(gammabeta.BatchNorm1d(4)).state_dict())
        inner = nn.Sequential(kind(3, 4, 3), nn.ReLU(), norm)
        model = nn.Sequential(quantization.QuantStub(), inner, quantization.DeQuantStub()).eval()
        model.qconfig = quantization.get_default_qconfig("x86")
        prepared = quantization.prepare(model)
        prepared(randn(*shape))
        results.append(quantization.convert(prepared)(randn(*shape)))
    torch.testing.assert_close(*results)
