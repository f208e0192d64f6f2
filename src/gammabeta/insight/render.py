"""Turns numbers into one self-contained page: no network, one language, dark and light.

A page is a template (``templates/NAME.html.j2``, which extends ``base.html.j2``) and its words
(``messages/NAME.toml``, each in English and Chinese). Everything is written into the one file:
plotly.js, styles, scripts, and the numbers as JSON. A content security policy forbids it to load
anything, so that a page opens in ten years, on a plane, and tells nobody that it was opened.

In a template: ``t("key", n=5)`` gives the words, ``figure(id, ...)`` from ``parts.html.j2`` the box
of a figure. In a script (``assets/charts.js``): ``GB.data``, ``GB.t(key, {n: 5})``, ``GB.plot``.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from gammabeta.errors import GammabetaError
from gammabeta.files import finite, write_atomically

Lang = Literal["en", "zh"]
LANGUAGES: tuple[str, ...] = get_args(Lang)
HERE = Path(__file__).parent
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)


def page(template: str, context: Mapping[str, Any], lang: str = "en") -> str:
    """Render a self-contained HTML document.

    Args:
        template: "explain" for ``templates/explain.html.j2`` with ``messages/explain.toml``.
        context: What the template reads. ``meta`` (a mapping: gammabeta, torch, created, command)
            fills the header; ``data`` is what the scripts read, any JSON-able value, in which NaN
            and infinities become null.
        lang: "en" or "zh", for the whole page.

    Raises:
        GammabetaError: If there is no such language.

    Example:
        >>> meta = {"gammabeta": "0.1.0", "torch": "2.14.1", "created": "", "command": None}
        >>> html = page("base", {"meta": meta, "data": {"x": [1.0, float("nan")]}}, lang="zh")
        >>> '<html lang="zh-CN"' in html, '{"x":[1.0,null]}' in html, "http-equiv" in html
        (True, True, True)
    """
    words = messages(template, check_lang(lang))
    fields = {
        **context,
        "lang": lang,
        "html_lang": {"en": "en", "zh": "zh-CN"}[lang],
        "policy": POLICY,
        "words": words,
        "t": translator(words),
        "payload": Markup(script_json({"words": words, "data": context["data"], "lang": lang})),  # noqa: S704 script_json escapes
    }
    return _environment().get_template(f"{template}.html.j2").render(fields)


def check_lang(lang: str) -> str:
    """Return the language, or raise a GammabetaError that names those there are."""
    if lang not in LANGUAGES:
        raise GammabetaError(f"lang is {lang!r}, but must be one of {', '.join(LANGUAGES)}")
    return lang


def write(path: str | os.PathLike[str], html: str) -> None:
    """Write a page whole or not at all.

    Raises:
        RunError: If the file cannot be written; an older page there is untouched.
    """
    write_atomically(Path(path), lambda file: file.write(html.encode()))


def default_lang(environment: Mapping[str, str] = os.environ) -> Lang:
    """Return the language that the locale asks for: Chinese, else English.

    Example:
        >>> default_lang({"LANG": "zh_CN.UTF-8"}), default_lang({"LC_ALL": "C", "LANG": "zh_CN"})
        ('zh', 'en')
    """
    names = ("LC_ALL", "LC_MESSAGES", "LANG")
    chosen = next((environment[name] for name in names if environment.get(name)), "")
    return "zh" if chosen.lower().startswith("zh") else "en"


@cache
def messages(template: str, lang: str) -> dict[str, str]:
    """Return the words of the base and of a template in one language, by dotted key."""
    words: dict[str, str] = {}
    for name in ("base", template):
        file = HERE / "messages" / f"{name}.toml"
        if file.exists():
            words |= _flatten(tomllib.loads(file.read_text(encoding="utf-8")), lang)
    return words


def _flatten(tree: Mapping[str, Any], lang: str, prefix: str = "") -> dict[str, str]:
    """Turn ``{"a": {"b": {"en": "x", "zh": "y"}}}`` into ``{"a.b": "x"}``."""
    words: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value.get(lang), str):
            words[prefix + key] = value[lang].strip()
        else:
            words |= _flatten(value, lang, f"{prefix}{key}.")
    return words


def translator(words: Mapping[str, str]) -> Callable[..., Markup]:
    """Return ``t(key, **values)``; the words may hold markup, the values are escaped.

    Example:
        >>> t = translator({"hello": "Hello <b>{name}</b>"})
        >>> print(t("hello", name="<i>"))
        Hello <b>&lt;i&gt;</b>
    """

    def translate(key: str, **values: object) -> Markup:
        text = Markup(words[key])  # noqa: S704 our own words
        return text.format(**values) if values else text

    return translate


def script_json(value: object) -> str:
    r"""Return JSON that may stand inside a ``<script>``: no ``<``, no NaN.

    Example:
        >>> print(script_json(["</script>", float("inf")]))
        ["\u003c/script>",null]
    """
    text = json.dumps(finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"asset": asset, "plotly": plotly}
    return environment


@cache
def asset(path: str) -> Markup:
    """Return a style or script file of this package, to stand in the page as it is."""
    return Markup((HERE / path).read_text(encoding="utf-8"))  # noqa: S704 our own file


@cache
def plotly() -> Markup:
    """Return plotly.js, which the plotly package carries."""
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs().replace("</script", "<\\/script"))  # noqa: S704 a library's script
