"""A real headless Chromium for tests of pages, and what every page must pass in it.

Where there is no browser a test is skipped with the reason; where $CI or
$GAMMABETA_REQUIRE_BROWSER is set it fails instead. Use :func:`shown` to open a page:

    with shown(file, width=390, dark=True) as page:
        assert_fits(page)

Leaving the block fails for any error on the console, any error of a script, and any request but
the one for the file itself.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

WIDTHS = (390, 1440)
MOST_BYTES = 6_000_000


@cache
def _browser() -> Any:
    """One browser for each test process; it ends with the process."""
    from playwright.sync_api import sync_playwright

    playwright = sync_playwright().start()
    arguments = ["--no-sandbox", "--force-color-profile=srgb", "--font-render-hinting=none"]
    return playwright, playwright.chromium.launch(executable_path=_executable(), args=arguments)


@pytest.fixture(scope="session", autouse=True)
def _closed_browser() -> Iterator[None]:
    """Close the browser in order; import this name into a test module to have it."""
    yield
    if _browser.cache_info().currsize:
        playwright, browser = _browser()
        browser.close()
        playwright.stop()
        _browser.cache_clear()


def _executable() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((found for found in map(shutil.which, names) if found), None)


def need_browser() -> None:
    """Skip the test where there is no browser, or fail it where there has to be one."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        reason = "playwright is not installed"
    else:
        if _executable():
            return
        reason = "no chromium on the PATH (Debian: apt-get install chromium)"
    if os.environ.get("GAMMABETA_REQUIRE_BROWSER") or os.environ.get("CI"):
        pytest.fail(f"{reason}, and pages must be tested here")
    pytest.skip(reason)


@contextmanager
def shown(
    file: Path, *, width: int = 1440, dark: bool = False, allow_scripts: bool = False
) -> Iterator[Any]:
    """Open a page in a window of its own, and hold it to silence until the block ends.

    Args:
        file: The page.
        width: Of the window in CSS pixels.
        dark: Prefer the dark theme.
        allow_scripts: Lift the page's content security policy (to run axe in it).
    """
    need_browser()
    context = _browser()[1].new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if dark else "light",
        bypass_csp=allow_scripts,
        reduced_motion="reduce",
    )
    noise: list[str] = []
    page = context.new_page()
    page.on("console", lambda said: noise.append(f"console {said.type}: {said.text}"))
    page.on("pageerror", lambda error: noise.append(f"script error: {error}"))
    page.on("request", lambda sent: noise.append(f"request: {sent.url[:120]}"))
    url = file.resolve().as_uri()
    try:
        page.goto(url)
        page.wait_for_timeout(50)  # resize observers and plotly's own redraw
        yield page
        asked = f"request: {url[:120]}"
        data = "request: data:"  # plotly paints heat maps as inline images
        loud = [line for line in noise if line != asked and not line.startswith(data)]
        assert loud == [], loud
    finally:
        context.close()


def assert_fits(page: Any) -> None:
    """Nothing makes the page scroll sideways."""
    inner, wide = page.evaluate("[innerWidth, document.documentElement.scrollWidth]")
    assert wide <= inner, _culprits(page)


def _culprits(page: Any) -> Any:
    """Return what sticks out on the right, outside boxes that scroll by themselves."""
    return page.evaluate(
        """() => [...document.querySelectorAll('body *')]
          .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll'))
          .slice(0, 8).map(e => e.outerHTML.slice(0, 120))"""
    )


def assert_figures_drawn(page: Any) -> list[str]:
    """Every figure box is visible, has a size, and holds marks; return the boxes' names."""
    boxes = page.evaluate(
        """() => [...document.querySelectorAll('.plot, .drawing, .cell svg')]
          .filter(box => !box.closest('details:not([open])')).map(box => {
            const size = box.getBoundingClientRect();
            const marks = '.points path, .point path, .js-line, .hm image, .hm path, .scatter path';
            const own = box.matches('.plot') ? box.querySelectorAll(marks)
                                             : box.querySelectorAll('path[d]:not([d=""]), circle');
            const inked = [...own].filter(mark => {
              const r = mark.getBoundingClientRect();
              return r.width + r.height > 0 || mark.getAttribute('d')?.includes('h0');
            });
            return { name: box.id || box.getAttribute('aria-label'), width: size.width,
                     height: size.height, marks: inked.length, traces: box.data?.length ?? null,
                     values: box.data ? Math.min(...box.data.map(
                       t => (t.y ?? t.z ?? []).flat().filter(v => v !== null).length)) : null };
          })"""
    )
    assert boxes, "the page has no figure"
    for box in boxes:
        assert box["width"] > 40, box
        assert box["height"] > 40, box
        assert box["marks"] > 0, box
        assert box["traces"] is None or (box["traces"] > 0 and box["values"] > 0), box
    return [box["name"] for box in boxes]


def assert_accessible(file: Path, *, dark: bool, width: int = 1440) -> None:
    """axe-core finds nothing serious or critical, with all details open."""
    from axe_playwright_python.sync_playwright import Axe

    with shown(file, dark=dark, width=width, allow_scripts=True) as page:
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        found = Axe().run(page).response["violations"]
    grave = [v for v in found if v["impact"] in {"serious", "critical"}]
    assert grave == [], [(v["id"], [n["html"][:150] for n in v["nodes"][:4]]) for v in grave]


def assert_headings_in_order(page: Any) -> None:
    """One h1, and no level is skipped on the way down."""
    levels = page.evaluate(
        "[...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(h => Number(h.tagName[1]))"
    )
    assert levels.count(1) == 1, levels
    assert levels[0] == 1, levels
    assert all(b <= a + 1 for a, b in pairwise(levels)), levels


def reached_by_keyboard(page: Any, most: int = 400) -> set[str]:
    """Press Tab through the whole page; return ids, or tag names, of what took the focus."""
    page.evaluate("document.activeElement.blur()")
    reached: list[str] = []
    for _ in range(most):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                """() => { const e = document.activeElement;
                  if (e === document.body) return '';
                  const seen = getComputedStyle(e).outlineStyle !== 'none';
                  return (e.id || e.tagName.toLowerCase()) + (seen ? '' : ' (no outline)'); }"""
            )
        )
        if len(reached) > 1 and reached[-1] == "":
            break
    return set(reached) - {""}
