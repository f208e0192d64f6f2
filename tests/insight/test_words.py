"""The words of the pages: both languages complete, every key used, the sections they name real."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import gammabeta
from gammabeta.errors import GammabetaError
from gammabeta.files import finite
from gammabeta.insight.render import LANGUAGES, messages, page, write

INSIGHT = Path(gammabeta.__file__).parent / "insight"
DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(file.stem for file in (INSIGHT / "messages").glob("*.toml"))
HOLES = re.compile(r"\{(\w+)\}")


def leaves(tree, prefix=""):
    """Yield (dotted key, {language: words})."""
    for key, value in tree.items():
        if all(isinstance(words, str) for words in value.values()):
            yield prefix + key, value
        else:
            yield from leaves(value, f"{prefix}{key}.")


def words_of(name):
    text = (INSIGHT / "messages" / f"{name}.toml").read_text(encoding="utf-8")
    return dict(leaves(tomllib.loads(text)))


def sources(name):
    """Return the text of every template and script that may use a page's words."""
    files = [*INSIGHT.rglob("*.j2"), *INSIGHT.rglob("*.js")]
    mine = [f for f in files if name == "base" or name in str(f.relative_to(INSIGHT))]
    shared = [
        f
        for f in files
        if "playground" in str(f) or f.name in {"charts.js", "base.html.j2", "parts.html.j2"}
    ]
    return "\n".join(f.read_text(encoding="utf-8") for f in {*mine, *shared})


@pytest.mark.parametrize("name", PAGES)
def test_every_key_has_every_language_and_the_same_holes(name):
    for key, words in words_of(name).items():
        assert set(words) == set(LANGUAGES), key
        assert all(text.strip() for text in words.values()), key
        assert len({frozenset(HOLES.findall(text)) for text in words.values()}) == 1, key


@pytest.mark.parametrize("name", PAGES)
def test_each_language_is_written_in_its_script(name):
    for key, words in words_of(name).items():
        prose = re.sub(r"\{\w+\}|<[^>]+>", "", words["zh"])
        latin_only = re.search(r"[A-Za-z]{3}", prose) and not re.search(r"[\u4e00-\u9fff]", prose)
        assert not latin_only, key
        assert not re.search(r"[\u4e00-\u9fff]", words["en"]), key


def test_every_key_is_used_and_every_used_key_is_there():
    text = sources("explain")
    known = words_of("base") | words_of("explain")
    used = set(re.findall(r"""\bt\(\s*["']([\w.-]+\w)["']""", text))
    assert used - set(known) == set()
    begun = re.findall(r"""\bt\(\s*["'`]([\w.-]+\.)(?:\$\{|["'])""", text)
    for key in known:
        literal = f'"{key}"' in text or f"'{key}'" in text
        assert literal or any(key.startswith(start) for start in begun), f"{key} is not used"


def test_the_sections_that_notes_name_are_headings_of_the_principles():
    see = {key: words for key, words in words_of("explain").items() if key.startswith("see.")}
    assert see
    for lang, name in {"en": "principles.md", "zh": "principles.zh-CN.md"}.items():
        text = (DOCS / name).read_text(encoding="utf-8")
        headings = set(re.findall(r"^## (.+)$", text, re.MULTILINE))
        assert {words[lang] for words in see.values()} <= headings


def test_an_unknown_language_is_refused():
    with pytest.raises(GammabetaError, match="lang is 'fr', but must be one of en, zh"):
        page("explain", {"data": {}, "meta": {}}, lang="fr")


def test_both_languages_have_the_same_keys():
    assert messages("explain", "en").keys() == messages("explain", "zh").keys()


def test_what_json_cannot_say_becomes_null():
    tree = {
        "a": [1.0, float("nan")],
        3: (float("inf"), {"b": -float("inf")}),
        "c": "NaN",
        "d": None,
    }
    assert finite(tree) == {"a": [1.0, None], "3": [None, {"b": None}], "c": "NaN", "d": None}


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path):
    write(tmp_path / "a.html", "old")
    (tmp_path / "b").mkdir()
    with pytest.raises(GammabetaError, match="b: cannot be written"):
        write(tmp_path / "b", "new")
    with pytest.raises(GammabetaError, match="cannot be written"):
        write(tmp_path / "none" / "a.html", "new")
    assert (tmp_path / "a.html").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "b"]
