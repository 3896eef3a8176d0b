"""A headless Chromium for the tests of pages, and what they all ask of one: no errors, no strangers, readable text.

Use: `from browser import chromium, contrasts, watched` in a test file; `chromium` is a fixture.
"""

import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
READABLE = 4.5
"""The contrast that WCAG 2 (AA) asks of text."""

_CONTRASTS = """(elements) => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const over = (top, below) => below.map((value, at) => top[at] * top[3] + value * (1 - top[3]));
  const rgba = (color) => { const [r, g, b, a = 1] = numbers(color); return [r, g, b, a]; };
  const ground = (element) => {
    if (element === null) return [255, 255, 255];
    const own = rgba(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own.slice(0, 3) : over(own, ground(element.parentElement));
  };
  const linear = (value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = (color) => {
    const [r, g, b] = color.map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return elements.filter((element) => element.checkVisibility({ checkVisibilityCSS: true })).map((element) => {
    const below = ground(element);
    const text = luminance(over(rgba(getComputedStyle(element).color), below));
    const back = luminance(below);
    return (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);
  });
}"""


def _unavailable(reason):
    """Skip at home; where everything is meant to be there, fail."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def chromium():
    """A browser; its pages are made by `watched`."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _unavailable("playwright is not installed")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        _unavailable("no Chromium on the path")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Watched:
    """A page, and what it did: errors on the console or uncaught, and the addresses that it asked for."""

    page: object
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def watched(browser, **options):
    """A page of its own context; `options` are those of playwright's `new_context`, such as `color_scheme`.

    Unless they say otherwise motion is reduced, so that colours do not fade while a test reads them.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce", **options})
    seen = Watched(context.new_page())
    seen.page.set_default_timeout(10_000)
    seen.page.on("console", lambda message: message.type in ("error", "warning") and seen.errors.append(message.text))
    seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
    seen.page.on("request", lambda request: seen.requests.append(request.url))
    try:
        yield seen
    finally:
        context.close()


def contrasts(page, selector):
    """The contrast of the text of each visible element that matches with what is painted below it."""
    return page.locator(selector).evaluate_all(_CONTRASTS)


def file_url(path):
    """The address of a page on disk."""
    return Path(path).absolute().as_uri()
