"""A wrong fold is an error; a right one is not, however much the model itself rounds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gammabeta import GammabetaError, fold
from gammabeta.surgery.folding import check, norms, pairs, weights
from gammabeta.surgery.folding.affine import ChannelAffine
from norm_helpers import fill, randn
from surgery_helpers import images


def model(dtype=torch.float32):
    made = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8)),
        *(nn.Flatten(), nn.Linear(8 * 36, 5), nn.BatchNorm1d(5)),
    ).to(dtype)
    for i in (1, 3, 6):
        fill(made[i], i)
    return made.eval()


def slipping(by=1.0, bias=True, shift=True):
    """A version of ``into_previous`` that makes a mistake."""

    def wrong(_, weight, b, scale, t):
        factor = by * scale.view(-1, *[1] * (weight.dim() - 1))
        return factor * weight, (scale * b if bias else b) + (t if shift else 0)

    return wrong


SLIPS = {
    "sign of the scale": slipping(by=-1.0),
    "bias not scaled": slipping(bias=False),
    "shift forgotten": slipping(shift=False),
    "one in a million": slipping(by=1 + 1e-6),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_in_the_arithmetic_is_an_error_without_an_example(monkeypatch, slip):
    monkeypatch.setattr(weights, "into_previous", SLIPS[slip])
    with pytest.raises(GammabetaError, match=r"folding would change what [05] computes: .* bound"):
        fold(model())


def test_a_slip_into_the_next_layer_is_an_error(monkeypatch):
    right = weights.into_next

    def wrong(layer, w, b, s, t):
        return right(layer, w, b, s, -t)

    monkeypatch.setattr(weights, "into_next", wrong)
    with pytest.raises(GammabetaError, match="folding would change what 5 computes"):
        fold(model())


def test_a_slip_in_reading_a_norm_is_an_error(monkeypatch):
    right = norms.read

    def wrong(path, module):
        norm = right(path, module)
        object.__setattr__(norm, "shift", norm.shift + 1e-3)
        return norm

    monkeypatch.setattr(pairs, "read", wrong)
    with pytest.raises(GammabetaError, match="folding would change what"):
        fold(model())


@pytest.mark.parametrize("slip", ["sign of the scale", "bias not scaled", "shift forgotten"])
def test_a_slip_is_an_error_on_an_example_and_names_the_layer(monkeypatch, slip):
    monkeypatch.setattr(weights, "into_previous", SLIPS[slip])
    monkeypatch.setattr("gammabeta.surgery.fold.check", lambda *_: None)
    message = r"differs by .* and the bound is .*; the first layer that differs is 1; the model was"
    with pytest.raises(GammabetaError, match=message):
        fold(model(), images(dtype=torch.float32))


def test_a_wrong_affine_map_is_an_error_on_an_example(monkeypatch):
    right = ChannelAffine.forward
    monkeypatch.setattr(ChannelAffine, "forward", lambda self, x: right(self, x) * 1.01)
    bn = fill(nn.BatchNorm2d(3)).eval()
    chain = nn.Sequential(nn.ReLU(), bn, nn.ReLU())
    with pytest.raises(GammabetaError, match="the first layer that differs is 1"):
        fold(chain, images(dtype=torch.float32))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_a_right_fold_is_within_its_bound(dtype, scale):
    for seed in range(5):
        x = (scale * randn(4, 3, 8, 8, seed=seed, dtype=torch.float64)).to(dtype)
        verified = fold(model(dtype), x).gammabeta_report.verified
        assert verified.error <= verified.bound
        assert verified.how == "on example_inputs"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4])
def test_data_far_from_zero_is_within_its_bound(dtype, offset):
    """The shift of each batch norm cancels nearly all of what the layer before it gives."""
    made = model(dtype)
    x = (randn(4, 3, 8, 8, dtype=torch.float64) + offset).to(dtype)
    with torch.no_grad():
        y = made[0](x).double()
        made[1].running_mean.copy_(y.mean((0, 2, 3)))
        made[1].running_var.copy_(y.var((0, 2, 3)))
    verified = fold(made, x).gammabeta_report.verified
    assert verified.error <= verified.bound
    first = nn.Sequential(fill(nn.BatchNorm2d(3, dtype=dtype)), nn.ReLU()).eval()
    first[0].running_mean.fill_(offset)
    verified = fold(first, x).gammabeta_report.verified
    assert verified.error <= verified.bound


def test_the_bound_is_as_narrow_as_the_models_own_rounding():
    made, x = model(), images(n=8, dtype=torch.float32)
    with torch.no_grad():
        largest = float(made(x).abs().max())
    assert fold(made, x).gammabeta_report.verified.bound < 1e-5 * largest


class Wide(nn.Module):
    """A forward that runs in its own precision alone."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x.float()))


def test_a_model_without_a_wider_copy_gets_a_bound_of_its_dtype():
    made = Wide().eval()
    verified = fold(made, images(dtype=torch.float32)).gammabeta_report.verified
    assert "a bound of the dtype's, since its torch.float64 copy fails" in verified.how
    assert verified.error <= verified.bound < 1e-4


def test_outputs_in_any_structure_are_compared():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), fill(nn.BatchNorm2d(4))

        def forward(self, x, other):
            y = self.bn(self.conv(x + other["by"]))
            return {"y": y, "best": y.argmax(1), "parts": [y[0], (y[1],)]}

    arguments = (images(dtype=torch.float32), {"by": torch.ones(1)})
    report = fold(Several().eval(), arguments).gammabeta_report
    assert report.merged == 1
    assert report.verified.how == "on example_inputs"


def test_nan_and_infinity_must_be_met_by_their_like():
    x = images(dtype=torch.float32)
    x[0, 0, 0, 0], x[1, 0, 0, 0] = torch.nan, torch.inf
    assert fold(model(), x).gammabeta_report.verified.error < 1e-4


def test_a_model_that_fails_on_the_example_says_so():
    with pytest.raises(GammabetaError, match="the model fails on example_inputs"):
        fold(model(), torch.ones(1, 4, 8, 8))


def test_a_folded_model_that_fails_says_so():
    class Asking(nn.Module):
        """The question is asked in a way that no trace sees."""

        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            if not isinstance(self.bn, nn.BatchNorm2d):
                raise TypeError("no batch norm here")
            return self.bn(self.conv(x))

    with pytest.raises(GammabetaError, match=r"the folded model fails .*: no batch norm here"):
        fold(Asking().eval(), images(dtype=torch.float32))


def test_a_model_without_tensors_to_compare_is_refused():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.bn(x).argmax(1)

    with pytest.raises(GammabetaError, match="no floating-point tensor"):
        fold(Counting().eval(), images(dtype=torch.float32))


def test_training_statistics_are_not_moved_by_the_comparison():
    made = model()
    made[3].train()
    before = made[3].running_mean.clone()
    folded = fold(made, images(dtype=torch.float32))
    assert torch.equal(folded[3].running_mean, before)
    assert torch.equal(made[3].running_mean, before)
    assert int(folded[3].num_batches_tracked) == int(made[3].num_batches_tracked)


def test_what_is_checked_alone_covers_every_layer():
    report = fold(model()).gammabeta_report
    assert report.verified.how.startswith("each layer by itself, in float64")
    assert report.verified.error <= report.verified.bound
    assert check.check([], []) is None
