"""The explain page in a real browser: silent, drawn, readable, reachable, and right."""

from __future__ import annotations

import json
import re
from html import unescape

import pytest
import torch
from torch import nn

from browser import (
    MOST_BYTES,
    WIDTHS,
    _closed_browser,  # noqa: F401 closes the browser in order
    assert_accessible,
    assert_figures_drawn,
    assert_fits,
    assert_headings_in_order,
    reached_by_keyboard,
    shown,
)
from gammabeta.insight.explain import explain
from insight_helpers import batch_of_digits, explained_page, explanation, page_of

FIGURES = {
    "histograms", "noise", "distance", "company", "logits", "paths", "jacobian", "gradients",
    "rulers", "play-paths", "play-jacobian", "running",
}  # fmt: skip


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.getbasetemp()


@pytest.fixture(params=["en", "zh"])
def file(request, folder):
    return explained_page(folder, request.param)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_figure_is_drawn_and_nothing_sticks_out(width, dark, file):
    with shown(file, width=width, dark=dark) as page:
        names = assert_figures_drawn(page)
        assert set(names) >= FIGURES
        assert len(names) >= len(FIGURES) + 6 * 3  # six small drawings a layer
        assert_fits(page)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_serious(dark, file):
    assert_accessible(file, dark=dark)


def test_axe_finds_nothing_serious_on_a_phone(folder):
    assert_accessible(explained_page(folder, "zh"), dark=True, width=390)


def test_the_page_is_small_and_loads_nothing(file):
    html = unescape(file.read_text(encoding="utf-8"))
    assert file.stat().st_size < MOST_BYTES
    head = html[: html.index("<body>")]
    assert "default-src 'none'" in head
    own = html.replace(html[html.index("plotly.js v") :].partition("</script>")[0], "")
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#|data:,")""", own)
    assert html.count("plotly.js v") == 1


def test_the_policy_forbids_a_request(folder):
    """The check that a page is silent would see one; the policy stops it."""
    with pytest.raises(AssertionError, match="Content Security Policy"):  # noqa: SIM117
        with shown(explained_page(folder, "en")) as page:
            page.evaluate("fetch('https://example.invalid/x').catch(() => 0)")


def test_the_whole_page_is_in_one_language(file):
    with shown(file) as page:
        lang = page.evaluate("document.documentElement.lang")
        text = page.evaluate("document.body.innerText")
    chinese = len(re.findall(r"[\u4e00-\u9fff]", text))
    if lang == "en":
        assert chinese == 0
    else:
        assert lang == "zh-CN"
        assert chinese > 1500
        left = re.findall(r"\b(?:the|with|and|of)\b", text)
        assert left == []


def test_headings_are_in_order_and_figures_have_names(file):
    with shown(file) as page:
        assert_headings_in_order(page)
        unnamed = page.evaluate(
            """() => [...document.querySelectorAll('.plot, .drawing, .cell svg')]
              .filter(f => !f.getAttribute('aria-label')).length"""
        )
        silent = page.evaluate(
            "[...document.querySelectorAll('.numbers')].filter(n => !n.textContent).map(n => n.id)"
        )
    assert (unnamed, silent) == (0, [])


def test_everything_that_reacts_is_reached_by_the_keyboard(folder):
    with shown(explained_page(folder, "en")) as page:
        reached = reached_by_keyboard(page)
        wanted = page.evaluate(
            """() => [...document.querySelectorAll('main select, main input, main button')]
              .filter(e => !e.disabled && e.checkVisibility()).map(e => e.id).filter(Boolean)"""
        )
    assert set(wanted) <= reached
    assert {"theme", "summary", "pick-layer", "play-gamma-slide"} <= reached
    assert not [name for name in reached if "no outline" in name]


def shown_numbers(page, scope):
    """Return (key, full value, text) of every number in a part of the page."""
    return page.evaluate(
        """scope => [...document.querySelectorAll(scope + ' [data-value]')]
          .map(e => [e.dataset.key ?? e.dataset.row, e.dataset.value, e.textContent])""",
        scope,
    )


def parsed(text):
    """Read a number as the page writes it; return it and the half unit of its last digit."""
    text = text.replace("−", "-").replace("\u202f", "")
    mantissa, _, power = text.partition("·10")
    exponent = int(power.translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")) or 0)
    digits = len(mantissa.partition(".")[2])
    return float(mantissa) * 10.0**exponent, 0.5000001 * 10.0 ** (exponent - digits)


def test_the_pickers_show_the_numbers_of_the_object_to_the_last_digit_shown(folder):
    layers = [layer for layer in explanation().to_dict()["layers"] if layer["channels"]]
    seen, looked = set(), 0
    with shown(explained_page(folder, "en")) as page:
        for at, layer in enumerate(layers):
            page.select_option("#pick-layer", index=at)
            for number, channel in list(enumerate(layer["channels"]))[:: 1 + 3 * (at > 0)]:
                page.select_option("#pick-channel", index=number)
                value = number % len(channel["values"]["x"])
                page.click(f"#values button[data-col='{value}']")
                seen.add(page.inner_text("#big-formula"))
                looked += 1
                check_formula(page, channel, value)
                check_table(page, channel)
                check_backward(page, channel)
    assert len(seen) == looked > 10


def check_formula(page, channel, at):
    wanted = {
        "x": channel["values"]["x"][at],
        "y": channel["values"]["y"][at],
        "centred": channel["values"]["centred"][at],
        "xhat": channel["values"]["xhat"][at],
        "z": channel["values"]["z"][at],
        **{key: channel[key] for key in ("mean", "var", "std", "eps", "gamma", "beta")},
    }
    found = shown_numbers(page, "#big-formula") + shown_numbers(page, "#steps")
    assert {key for key, _, _ in found} == set(wanted)
    for key, full, text in found:
        assert float(full) == wanted[key], key
        number, half = parsed(text)
        assert abs(number - wanted[key]) <= half, (key, text, wanted[key])


def check_table(page, channel):
    found = shown_numbers(page, "#values")
    for row in ("x", "centred", "xhat", "y", "z"):
        full = [float(value) for key, value, _ in found if key == row]
        assert full == channel["values"][row]
    for _, full, text in found:
        number, half = parsed(text)
        assert abs(number - float(full)) <= half


def check_backward(page, channel):
    found = shown_numbers(page, "#paths-table")
    for row in ("dy", "direct", "mean", "variance", "dx"):
        assert [float(v) for key, v, _ in found if key == row] == channel["backward"][row]
    drawn = page.evaluate("document.getElementById('paths').data.slice(0, 4).map(t => [...t.y])")
    assert drawn == [channel["backward"][row] for row in ("direct", "mean", "variance", "dx")]


def test_the_figures_are_made_of_the_numbers_of_the_object(folder):
    document = explanation().to_dict()
    with shown(explained_page(folder, "en")) as page:
        data = page.evaluate(
            """() => Object.fromEntries([...document.querySelectorAll('.plot')].map(p => [p.id,
                 p.data.map(t => ({x: [...(t.x ?? [])], y: [...(t.y ?? [])]}))]))"""
        )
    modes, gradients = document["modes"], document["gradients"]
    assert data["distance"][0]["y"] == [layer["distance"] for layer in modes["layers"]]
    for trace, key in zip(data["gradients"], ("with", "without"), strict=True):
        assert trace["y"] == [layer[key] for layer in gradients["layers"]]
    assert data["noise"][0]["y"] == [x["noise"]["mean_measured"] for x in document["layers"]]
    pairs = set(zip(data["logits"][1]["x"], data["logits"][1]["y"], strict=True))
    rows = zip(modes["logits_eval"], modes["logits_train"], strict=True)
    assert pairs == {pair for e, t in rows for pair in zip(e, t, strict=True)}
    company = modes["company"]
    dots = sorted(data["company"][0]["x"])
    every = [
        p for draw in company["train"] for p in torch.tensor(draw).double().softmax(0).tolist()
    ]
    assert all(min(abs(dot - p) for p in every) < 1e-6 for dot in dots)


def test_a_row_for_each_layer_and_its_button_picks_it(folder):
    paths = [layer["path"] for layer in explanation().layers]
    with shown(explained_page(folder, "en")) as page:
        rows = page.evaluate(
            "[...document.querySelectorAll('[data-layer]')].map(r => r.dataset.layer)"
        )
        page.click(f"[data-layer='{paths[-1]}'] button")
        picked = page.evaluate("document.getElementById('pick-layer').selectedOptions[0].text")
    assert (rows, picked) == (paths, paths[-1])


def test_the_theme_button_turns_the_page_and_the_figures(folder):
    colour = """() => [getComputedStyle(document.body).color,
                       document.getElementById('noise').data[0].line.color]"""
    with shown(explained_page(folder, "en")) as page:
        before = page.evaluate(colour)
        page.click("#theme")
        after = page.evaluate(colour)
        assert all(a != b for a, b in zip(before, after, strict=True))
        assert_figures_drawn(page)
    with shown(explained_page(folder, "en"), dark=True) as page:
        assert page.evaluate(colour) == after


def test_names_from_outside_are_text(folder):
    """A model, a class or a command that looks like markup is shown as it is."""
    evil = "</script><img src=x onerror=alert(1)>{t}"
    document = json.loads(explanation().to_json())
    document["model"]["name"] = document["data"]["name"] = document["command"] = evil
    document["data"]["classes"] = [evil] * 10
    document["layers"][0]["path"] = document["modes"]["layers"][0]["path"] = evil
    file = page_of(document, folder / "evil.html")
    with shown(file) as page:
        assert evil in page.inner_text("h1")
        assert page.evaluate("document.images.length") == 0
        assert page.inner_text(".layer-row[data-layer] h3") == evil


def test_numbers_that_are_missing_leave_a_dash_and_no_error(folder):
    """A broken model gives nulls; the page still opens and draws the rest."""
    document = json.loads(explanation().to_json())
    layer = document["layers"][0]
    layer["noise"] = layer["quantiles"] = None
    layer["per_channel"]["dead"] = layer["per_channel"]["running_mean"] = None
    layer["per_channel"]["weight"] = layer["per_channel"]["bias"] = None
    channel = layer["channels"][0]
    channel["backward"] = channel["running"] = channel["check"] = channel["values"]["z"] = None
    channel["histograms"]["z"] = None
    channel["values"]["x"][2] = channel["values"]["y"][2] = None
    file = page_of(document, folder / "missing.html")
    with shown(file) as page:
        page.select_option("#pick-layer", index=0)
        assert "–" in page.inner_text("#values")
        assert "No gradient reached" in page.inner_text("#paths-formula")
        page.select_option("#pick-channel", index=1)
        assert page.evaluate("document.querySelectorAll('#paths-formula math').length") == 1


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_model_without_batch_norm_says_so_and_keeps_the_playground(lang, folder):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))
    found = explain(model, batch_of_digits(8))
    file = folder / f"none-{lang}.html"
    found.to_html(file, lang=lang)
    with shown(file, width=390) as page:
        assert page.locator("[data-limit='no-batch-norm']").count() == 1
        assert page.locator("#formula .callout").count() == 1
        assert page.locator("#layers").count() == 0
        assert {"rulers", "running"} <= set(assert_figures_drawn(page))
        assert_fits(page)


def test_one_image_says_why_training_statistics_are_impossible(folder):
    from insight_helpers import small_net

    found = explain(small_net(), batch_of_digits(1))
    file = folder / "one.html"
    found.to_html(file)
    with shown(file, width=390) as page:
        text = page.inner_text("body")
        assert page.locator("[data-limit='one-image']").count() == 1
        assert "training mode is impossible" in text
        assert page.locator("#modes .callout").count() == 1
        assert_figures_drawn(page)
        assert_fits(page)


def test_a_network_of_fifty_layers_stays_small_and_folds(folder):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv2_100", pretrained=False, num_classes=100)
    found = explain(model, torch.randn(4, 3, 32, 32))
    file = folder / "many.html"
    found.to_html(file, lang="zh")
    assert file.stat().st_size < MOST_BYTES
    with shown(file, width=390) as page:
        assert page.locator("#layer-rows > [data-layer]").count() == 12
        assert page.locator("#more-layer-rows > [data-layer]").count() == 40
        page.click("#more-layers summary")
        assert_figures_drawn(page)
        assert_fits(page)
        channels = [layer["channels"] for layer in found.layers]
        assert page.locator("#pick-layer option").count() == sum(map(bool, channels))
