"""The page of a real comparison in a real browser: silent, drawn, readable, and right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gammabeta
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
from compare_helpers import finished, made_up
from gammabeta import GammabetaError
from gammabeta.insight.compare.page import card, row
from gammabeta.insight.render import messages

FIGURES = {
    "curves-epochs", "curves-seconds", "curves-loss", "sweep", "outcomes", "accuracy",
    "landscape-loss", "landscape-beta", "gradients", "batch",
}  # fmt: skip


@pytest.fixture(scope="session")
def comparison(tmp_path_factory):
    return finished(tmp_path_factory.getbasetemp())[1]


@pytest.fixture(scope="session")
def pages(comparison, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    for lang in ("en", "zh"):
        comparison.to_html(folder / f"{lang}.html", lang)
    return folder


@pytest.fixture(params=["en", "zh"])
def file(request, pages):
    return pages / f"{request.param}.html"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_figure_is_drawn_and_nothing_sticks_out(width, dark, file):
    with shown(file, width=width, dark=dark) as page:
        assert set(assert_figures_drawn(page)) == FIGURES
        assert_fits(page)
        assert_headings_in_order(page)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_serious(dark, file):
    assert_accessible(file, dark=dark)
    assert_accessible(file, dark=dark, width=390)


def test_the_page_is_small_and_in_one_language(file):
    assert file.stat().st_size < MOST_BYTES
    with shown(file) as page:
        lang = page.evaluate("document.documentElement.lang")
        text = page.evaluate("document.body.innerText")
    chinese = len(re.findall(r"[\u4e00-\u9fff]", text))
    assert (chinese == 0) == (lang == "en")
    if lang != "en":
        assert chinese > 1000
        assert re.findall(r"\b(?:the|with|and|of)\b", text) == []


def test_tables_and_the_theme_are_reached_by_keyboard(file):
    with shown(file) as page:
        reached = reached_by_keyboard(page)
    assert {"theme", "summary", "div"} <= reached
    assert not [name for name in reached if "no outline" in name]


def test_the_cards_show_the_numbers_of_to_dict(file, comparison):
    document = comparison.to_dict()
    with shown(file) as page:
        for claim in document["claims"]:
            box = page.locator(f"#claim-{claim['id']}")
            assert claim["verdict"].replace(" ", "-") in box.get_attribute("class")
            assert box.locator("b").inner_text() == card(claim)["big"]
        names = [m["id"] for claim in document["claims"] for m in claim["measures"]]
        rows = page.locator("#measures-title ~ .scroll tbody tr")
        assert rows.count() == len(names)
        shown_numbers = [rows.nth(i).locator("td").first.inner_text() for i in range(len(names))]
    wanted = [row(c["id"], m)["big"] for c in document["claims"] for m in c["measures"]]
    assert shown_numbers == wanted


def test_the_figures_draw_the_numbers_of_to_dict(pages, comparison):
    document = comparison.to_dict()
    with shown(pages / "en.html") as page:
        drawn = page.evaluate(
            "id => document.getElementById(id).data.map(t => [t.name, [...t.x], [...t.y]])",
            "accuracy",
        )
        plotted = page.evaluate("GB.data")
    for name, x, _ in drawn[: len(document["variants"])]:
        variant = {"batch norm": "bn", "none": "none", "Dropout": "dropout"}.get(name)
        if variant:
            assert x == document["variants"][variant]["best"]["values"]
    assert plotted["claims"] == document["claims"] or plotted["claims"] == _as_json(document)
    assert plotted["variants"] == document["variants"]


def _as_json(document):
    import json

    return json.loads(json.dumps(document["claims"]))


def test_the_command_versions_and_seeds_are_named(file, comparison):
    with shown(file) as page:
        page.locator("details.meta summary").click()
        text = page.locator("details.meta").inner_text()
    assert "gammabeta compare --data digits" in text
    assert comparison.machine["torch"] in text
    assert comparison.machine["cpu"] in text
    assert "0, 1" in text


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("lines", [2, 3, 20, 60])
def test_a_comparison_that_ended_early_has_a_page_too(lines, lang, tmp_path):
    whole = made_up(seeds=2)
    part = type(whole).of_lines(whole.lines[:lines])
    part.to_html(tmp_path / "part.html", lang)
    with shown(tmp_path / "part.html", width=390) as page:
        assert page.locator(".callout").count() >= 1
        assert_fits(page)


def test_one_seed_is_said(tmp_path):
    made_up(seeds=1).to_html(tmp_path / "one.html")
    assert "One seed gives no verdict" in (tmp_path / "one.html").read_text(encoding="utf-8")


def test_another_language_is_refused(comparison, tmp_path):
    with pytest.raises(GammabetaError, match="lang is 'fr', but must be one of en, zh"):
        comparison.to_html(tmp_path / "fr.html", "fr")
    assert list(tmp_path.iterdir()) == []


def test_every_word_is_used_and_every_used_word_is_there():
    insight = Path(gammabeta.__file__).parent / "insight"
    files = [*insight.glob("templates/compare*"), *insight.glob("assets/compare*")]
    text = "\n".join(f.read_text(encoding="utf-8") for f in [*files, insight / "compare/page.py"])
    known = {key for key in messages("compare", "en") if not key.startswith("base.")}
    assert set(messages("compare", "zh")) == set(messages("compare", "en"))
    used = set(re.findall(r"""\bt\(\s*["']([\w.-]+\w)["']\s*[,)]""", text))
    assert used - known == set()
    begun = set(re.findall(r"""\bt\(\s*["'`]([\w.-]+[._])(?:\$\{|["'])""", text))
    unused = {key for key in known if f'"{key}"' not in text and not key.startswith(tuple(begun))}
    assert unused == set()


def test_the_sections_that_notes_name_are_headings_of_the_principles():
    docs = Path(__file__).parents[3] / "docs"
    for lang, name in {"en": "principles.md", "zh": "principles.zh-CN.md"}.items():
        headings = (docs / name).read_text(encoding="utf-8")
        for key, words in messages("compare", lang).items():
            assert not key.startswith("see.") or f"\n## {words}\n" in headings, key
