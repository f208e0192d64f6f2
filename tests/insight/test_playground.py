"""The playground's arithmetic against the equations, and the page's reaction to its reader.

Tolerances follow the conditioning: x̂ and the gradients lose as many digits as |mean| / σ has, in
the equations as in the script, because both subtract the mean.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import gammabeta
from browser import (
    _closed_browser,  # noqa: F401 closes the browser in order
    assert_figures_drawn,
    assert_fits,
    shown,
)
from gammabeta import equations as eq
from insight_helpers import explained_page, explanation

SCRIPT = Path(gammabeta.__file__).parent / "insight" / "playground" / "batchnorm.js"
ULP = np.finfo(np.float64).eps


def ordinary(rng):
    """Numbers as a reader enters them."""
    m = int(rng.integers(2, 9))
    return case(rng, rng.normal(rng.normal() * 3, rng.uniform(0.1, 4), m))


def extreme(rng):
    """Huge and tiny numbers, large means, near-constant and constant batches, outliers."""
    m = int(rng.integers(2, 9))
    scale = 10.0 ** rng.uniform(-60, 60)
    x = {
        0: lambda: rng.normal(size=m) * scale,
        1: lambda: rng.normal(size=m) + 10.0 ** rng.uniform(0, 9),
        2: lambda: np.full(m, rng.normal() * scale),
        3: lambda: np.where(np.arange(m) == 0, scale, rng.normal(size=m)),
        4: lambda: 1 + rng.integers(-3, 4, m) * ULP * 2,
        5: lambda: np.zeros(m),
        6: lambda: rng.integers(-5, 6, m).astype(float),
    }[int(rng.integers(7))]()
    return case(rng, x)


def case(rng, x):
    return {
        "x": x.tolist(),
        "dy": (rng.normal(size=len(x)) * 10.0 ** rng.uniform(-6, 3)).tolist(),
        "gamma": float(rng.choice([0.0, 1.0, -1.0, rng.normal() * 3])),
        "beta": float(rng.normal() * 10.0 ** rng.uniform(-3, 3)),
        "eps": float(10.0 ** rng.uniform(-12, 1)),
        "momentum": float(rng.choice([0.0, 0.1, 1.0, rng.uniform()])),
        "running": {"mean": float(rng.normal()), "var": float(rng.uniform(0.01, 9))},
    }


@pytest.fixture(scope="session")
def blank(tmp_path_factory):
    """A page that holds the script alone."""
    file = tmp_path_factory.mktemp("blank") / "script.html"
    script = SCRIPT.read_text(encoding="utf-8")
    file.write_text(f'<!doctype html><link rel="icon" href="data:,"><script>{script}</script>')
    return file


def computed(file, cases):
    with shown(file) as page:
        return page.evaluate(
            """cases => cases.map(c => ({
              forward: BatchNorm.forward(c.x, c.gamma, c.beta, c.eps),
              backward: BatchNorm.backward(c.dy, c.x, c.gamma, c.eps),
              jacobian: BatchNorm.jacobian(c.x, c.gamma, c.eps),
              next: BatchNorm.updateRunning(c.running, BatchNorm.statistics(c.x), c.x.length,
                                            c.momentum)}))""",
            cases,
        )


def near(got, want, scale, what):
    got, want = np.asarray(got, float), np.asarray(want, float)
    assert got.shape == want.shape, what
    assert np.all(np.abs(got - want) <= 64 * ULP * scale + 1e-300), (what, got, want, scale)


@pytest.mark.parametrize("draw", [ordinary, extreme])
def test_the_script_computes_what_the_equations_say(draw, blank):
    rng = np.random.default_rng(7)
    cases = [draw(rng) for _ in range(600)]
    for c, got in zip(cases, computed(blank, cases), strict=True):
        check(c, got)


def check(c, got):
    x, dy = np.array(c["x"])[:, None], np.array(c["dy"])[:, None]
    m, gamma, eps = len(x), c["gamma"], c["eps"]
    mean, var = eq.batch_statistics(x)
    sigma = np.sqrt(var + eps)
    top = np.abs(x).max()
    loss = 1 + top / sigma  # digits that subtracting the mean costs
    f = got["forward"]
    near(f["mean"], mean[0], top, "mean")
    near(f["var"], var[0], var + top * sigma + ULP * top**2, "var")
    xhat = eq.normalize(x, mean, var, eps)
    near(f["xhat"], xhat[:, 0], m * loss, "xhat")
    y = eq.scale_shift(xhat, gamma, c["beta"])
    near(f["y"], y[:, 0], abs(c["beta"]) + abs(gamma) * m * loss, "y")
    b = got["backward"]
    flow = abs(gamma) * np.abs(dy).max() / sigma * m * loss
    for name, path in zip(
        ("direct", "mean", "variance"), eq.backward_paths(dy, x, gamma, eps), strict=True
    ):
        near(b[name], path[:, 0], flow, name)
    dx, dgamma, dbeta = eq.batch_norm_backward(dy, x, gamma, eps)
    near(b["dx"], dx[:, 0], flow, "dx")
    near(b["dgamma"], dgamma[0], np.abs(dy).max() * m * loss, "dgamma")
    near(b["dbeta"], dbeta[0], np.abs(dy).max() * m, "dbeta")
    near(got["jacobian"]["total"], jacobian(x, gamma, eps), abs(gamma) / sigma * m * loss, "J")
    new = eq.update_running(c["running"]["mean"], c["running"]["var"], mean, var, m, c["momentum"])
    near(got["next"]["mean"], new[0][0], abs(c["running"]["mean"]) + top, "running mean")
    spread = c["running"]["var"] + 2 * (var + top * sigma + ULP * top**2)
    near(got["next"]["var"], new[1][0], spread, "running var")


def jacobian(x, gamma, eps):
    """Row i: the gradient of y_i, by the equations' own backward pass."""
    unit = np.eye(len(x))
    return np.array([eq.batch_norm_backward(u[:, None], x, gamma, eps)[0][:, 0] for u in unit])


def test_the_check_would_see_a_wrong_digit(blank):
    c = {**ordinary(np.random.default_rng(0)), "gamma": 1.0}
    got = computed(blank, [c])[0]
    got["backward"]["variance"][0] *= 1 + 1e-8
    with pytest.raises(AssertionError, match="variance"):
        check(c, got)


def test_what_a_batch_cannot_have_is_null_or_nan_and_no_error(blank):
    with shown(blank) as page:
        assert page.evaluate(
            "BatchNorm.updateRunning({mean: 0, var: 1}, {mean: 3, var: 0}, 1, 0.1)"
        ) is None  # fmt: skip
        assert page.evaluate("BatchNorm.forward([2, 2], 1, 0, 0).xhat.every(Number.isNaN)")
        assert page.evaluate("BatchNorm.forward([1e308, -1e308], 1, 0, 1).var") == float("inf")


# --- the page -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def file(tmp_path_factory):
    return explained_page(tmp_path_factory.getbasetemp(), "en")


STATE = "(() => { const {state, compute} = Playground; return {state, result: compute()}; })()"


def table(page):
    """Return the playground's table by row name."""
    rows = page.evaluate(
        """() => [...document.querySelectorAll('#play-table tbody tr')].map(row =>
             [row.querySelector('th').textContent,
              [...row.querySelectorAll('td')].map(d => Number(d.dataset.value))])"""
    )
    return dict(rows)


def expected(page):
    """Compute what the page should show from what its inputs hold, with the equations."""
    read = page.evaluate(
        """() => { const values = id => [...document.querySelectorAll(
             `#${id} input[type=number]:not(:disabled)`)].map(i => i.valueAsNumber);
           const one = id => document.getElementById(id).valueAsNumber;
           return [values('play-inputs'), values('play-dy'), one('play-gamma'), one('play-beta'),
                   one('play-eps')]; }"""
    )
    x, dy = (np.array(read[i])[:, None] for i in (0, 1))
    gamma, beta, eps = read[2:]
    mean, var = eq.batch_statistics(x)
    xhat = eq.normalize(x, mean, var, eps)
    return {
        "x": x[:, 0], "x − μ": (x - mean)[:, 0], "x̂": xhat[:, 0],
        "y": eq.scale_shift(xhat, gamma, beta)[:, 0], "∂L/∂y": dy[:, 0],
        "∂L/∂x": eq.batch_norm_backward(dy, x, gamma, eps)[0][:, 0],
    }  # fmt: skip


def assert_right(page):
    shown_rows, wanted = table(page), expected(page)
    assert list(shown_rows) == list(wanted)
    for name, row in wanted.items():
        np.testing.assert_allclose(shown_rows[name], row, rtol=1e-10, atol=1e-12, err_msg=name)
    drawn = page.evaluate("document.getElementById('play-paths').data[3].y")
    np.testing.assert_allclose(drawn, wanted["∂L/∂x"], rtol=1e-10, atol=1e-12)


def test_every_input_moves_what_it_should(file):
    with shown(file, width=390) as page:
        assert_right(page)
        for field, value in [
            ("#play-inputs input[type=number] >> nth=2", "7.25"),
            ("#play-dy input[type=number] >> nth=1", "-2"),
            ("#play-gamma", "-0.75"),
            ("#play-beta", "3"),
            ("#play-eps", "0.5"),
        ]:
            before = table(page)
            page.fill(field, value)
            assert_right(page)
            assert table(page) != before, field
        assert_figures_drawn(page)
        assert_fits(page)


def test_a_slider_moves_by_the_keyboard_and_the_number_follows(file):
    with shown(file) as page:
        page.focus("#play-gamma-slide")
        page.keyboard.press("ArrowRight")
        assert float(page.input_value("#play-gamma")) == pytest.approx(1.55)
        page.focus("#play-eps-slide")
        page.keyboard.press("End")
        assert float(page.input_value("#play-eps")) == pytest.approx(100)
        page.focus("#play-inputs input[type=range] >> nth=0")
        page.keyboard.press("Home")
        assert float(page.input_value("#play-inputs input[type=number] >> nth=0")) == -6
        assert_right(page)


def test_a_dot_is_dragged(file):
    with shown(file) as page:
        page.locator("#rulers").scroll_into_view_if_needed()
        box = page.locator("#rulers circle.handle >> nth=0").bounding_box()
        before = float(page.input_value("#play-inputs input[type=number] >> nth=0"))
        page.mouse.move(box["x"] + 8, box["y"] + 8)
        page.mouse.down()
        page.mouse.move(box["x"] - 92, box["y"] + 8, steps=5)
        page.mouse.up()
        after = float(page.input_value("#play-inputs input[type=number] >> nth=0"))
        assert after < before - 0.5
        page.mouse.move(box["x"] + 60, box["y"] + 8)  # released: nothing moves any more
        assert float(page.input_value("#play-inputs input[type=number] >> nth=0")) == after
        assert_right(page)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_the_batch_size_takes_the_first_values(size, file):
    with shown(file) as page:
        page.select_option("#play-size", value=str(size))
        assert_right(page)
        assert len(table(page)["x"]) == size
        enabled = page.locator("#play-inputs input[type=number]:enabled").count()
        assert enabled == size
        if size == 2:
            np.testing.assert_allclose(np.abs(table(page)["x̂"]), 1, rtol=1e-4)
            np.testing.assert_allclose(table(page)["∂L/∂x"], 0, atol=1e-4)


def test_every_preset_is_shown_right(file):
    with shown(file) as page:
        names = page.evaluate(
            "[...document.getElementById('play-preset').options].map(o => o.value)"
        )
        assert "real" in names
        for name in names:
            page.select_option("#play-preset", value=name)
            assert_right(page)
            if name == "even":
                np.testing.assert_allclose(table(page)["∂L/∂x"], 0, atol=1e-12)
            if name == "constant":
                assert table(page)["y"] == [0.5] * 8


def test_the_picked_channels_real_values_can_be_played_with(file):
    channel = explanation().layers[1]["channels"][2]
    with shown(file) as page:
        page.select_option("#pick-layer", index=1)
        page.select_option("#pick-channel", index=2)
        page.select_option("#play-preset", value="real")
        np.testing.assert_allclose(table(page)["x"], channel["values"]["x"], rtol=1e-4)
        assert float(page.input_value("#play-gamma")) == pytest.approx(channel["gamma"], rel=1e-4)
        assert_right(page)


def test_feeding_a_batch_moves_the_running_statistics(file):
    with shown(file) as page:
        x = np.array(table(page)["x"])[:, None]
        mean, var = eq.batch_statistics(x)
        running = ([0.0], [1.0])
        page.fill("#play-momentum", "0.3")
        for button, times in (("#play-feed", 1), ("#play-feed-10", 10), ("#play-feed", 1)):
            page.click(button)
            for _ in range(times):
                running = eq.update_running(*running, mean, var, len(x), 0.3)
            drawn = page.evaluate(
                "document.getElementById('running').data.slice(0, 2).map(t => t.y.at(-1))"
            )
            np.testing.assert_allclose(drawn, np.ravel(running), rtol=1e-12)
        page.click("#play-reset")
        assert page.evaluate("Playground.state.running") == {"mean": 0, "var": 1}


@pytest.mark.parametrize("text", ["", "e", "-"])
def test_what_is_no_number_is_waited_out(text, file):
    with shown(file) as page:
        before = page.evaluate(STATE)
        page.focus("#play-gamma")
        page.keyboard.press("Control+a")
        page.keyboard.press("Delete")
        page.keyboard.type(text)
        assert json.dumps(page.evaluate(STATE)["state"]) == json.dumps(before["state"])


def test_zero_by_zero_is_told_not_drawn(file):
    with shown(file) as page:
        page.select_option("#play-preset", value="constant")
        page.fill("#play-eps", "0")
        assert "0/0" in page.text_content("#rulers svg")
        assert "–" in page.inner_text("#play-table")
        page.fill("#play-eps", "0.1")
        assert_right(page)
