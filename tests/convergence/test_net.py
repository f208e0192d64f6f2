"""A whole training with our layers and with torch's, from the same weights and batches."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gammabeta import Net, convert, data, param_groups
from gammabeta.data.loader import Loader

STEPS, EXCHANGES = 200, (1, 57, 200)


def steps(model, batches):
    """Train on the batches and yield each loss."""
    optimizer = torch.optim.SGD(param_groups(model, 5e-4), lr=0.01, momentum=0.9)
    for images, labels in batches:
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


@pytest.fixture(scope="module")
def batches():
    """Two hundred small batches of real digits, in channels-last memory."""
    digits = data.load("digits", image_size=16)
    loader = Loader(digits.train, 16, digits.normalization, digits.augmentation)
    found = [batch for epoch in range(3) for batch in loader.epoch(epoch)]
    return found[:STEPS]


def test_training_goes_as_with_torchs_layers_and_state_dicts_fit_at_any_point(batches):
    torch.manual_seed(0)
    ours = Net(image_size=16).to(memory_format=torch.channels_last)
    theirs = convert(ours, to="torch")
    assert type(ours.bn1.bn) is not type(theirs.bn1.bn) is torch.nn.BatchNorm2d
    curves = ([], [])
    pairs = zip(steps(ours, batches), steps(theirs, batches), strict=True)
    for number, losses in enumerate(pairs, start=1):
        for curve, loss in zip(curves, losses, strict=True):
            curve.append(loss)
        if number in EXCHANGES:
            spare_ours, spare_theirs = Net(image_size=16), convert(Net(image_size=16), to="torch")
            spare_ours.load_state_dict(theirs.state_dict(), strict=True)
            spare_theirs.load_state_dict(ours.state_dict(), strict=True)
            with torch.no_grad():
                sample = batches[0][0]
                wanted, got = theirs.eval()(sample), spare_ours.eval()(sample)
                torch.testing.assert_close(got, wanted)
                torch.testing.assert_close(spare_theirs.eval()(sample), ours.eval()(sample))
            ours.train()
            theirs.train()
    assert len(curves[0]) == STEPS
    # Rounding errors double every step or two: torch's own curve, from weights moved by 1e-7, is as
    # far from itself as ours is. So the first steps must agree, and later only what is learned.
    begun = [torch.tensor(curve[:10]) for curve in curves]
    torch.testing.assert_close(*begun, rtol=1e-5, atol=1e-5)
    learned = [sum(curve[-50:]) / 50 for curve in curves]
    assert learned[0] == pytest.approx(learned[1], rel=0.2)
    assert learned[0] < curves[0][0] / 3, "the training did not learn"
