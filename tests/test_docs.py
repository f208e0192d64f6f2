"""The pages that teach: every example runs, and both languages show the same ones."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(p.name for p in DOCS.glob("*.md") if ">>> " in p.read_text(encoding="utf-8"))
TRANSLATIONS = ["principles.md", "principles.zh-CN.md"]


def examples(text, name="page"):
    """Collect a page's ``>>>`` examples; a closing fence would else pass for expected output."""
    unfenced = "".join(
        "\n" if line.startswith("```") else line for line in text.splitlines(keepends=True)
    )
    return doctest.DocTestParser().get_doctest(unfenced, {}, name, name, 0)


def failures(text):
    """Run a page's examples; return the report of those that fail."""
    report = []
    doctest.DocTestRunner().run(examples(text), out=report.append)
    return "".join(report)


@pytest.mark.parametrize("page", PAGES)
def test_every_example_prints_what_the_page_says(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    assert len(examples(text).examples) > 3
    assert failures(text) == ""


def test_both_languages_show_the_same_examples():
    shown = [
        [(e.source, e.want) for e in examples((DOCS / page).read_text("utf-8")).examples]
        for page in TRANSLATIONS
    ]
    assert shown[0] == shown[1]


def test_a_wrong_number_in_a_page_is_caught():
    assert "Got:\n    2" in failures("```python\n>>> 1 + 1\n3\n```\n")
