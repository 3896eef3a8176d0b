"""`T3D.Blocks` and the colours alone, as any page may use them."""

import re

import pytest
from browser import READABLE, chromium, watched  # noqa: F401  a fixture

from t3d.web import page as make_page

TOKENS = [
    {"text": " a", "step": 2, "confidence": 0.5, "id": 11},
    {"text": "\n", "step": 1, "confidence": 1.0, "id": 12},
    {"text": "<b>", "step": 2, "confidence": None, "id": 13},
    {"text": "", "step": 4, "confidence": 0.25, "id": 14},
]


@pytest.fixture
def page(chromium, tmp_path):  # noqa: F811
    """An empty page with the shared parts, and `blocks` of B = 4 behind a prompt of 7 tokens."""
    html = re.sub(r"<header.*</main>|<script>\s*/\* The viewer.*?</script>", "", make_page("viewer"), flags=re.DOTALL)
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    with watched(chromium) as seen:
        seen.page.goto((tmp_path / "page.html").as_uri())
        seen.page.evaluate(
            """() => {
              const root = T3D.element("div", { id: "root" });
              document.body.append(root);
              window.blocks = new T3D.Blocks(root, { blockSize: 4, offset: 7, color: "step" });
            }"""
        )
        yield seen.page
        assert seen.errors == []


def test_a_page_runs_and_loads_nothing_that_gets_into_it(chromium, tmp_path):  # noqa: F811
    (tmp_path / "page.html").write_text(make_page("viewer", files=[]), encoding="utf-8")
    with watched(chromium) as seen:
        seen.page.goto((tmp_path / "page.html").as_uri())
        seen.page.evaluate(
            """() => {
              const script = document.createElement("script");
              script.textContent = "window.intruded = true";
              const image = document.createElement("img");
              image.src = "http://127.0.0.1:9/image.png";
              document.body.append(script, image);
              return new Promise((done) => { image.onerror = done; });
            }"""
        )
        assert seen.page.evaluate("window.intruded") is None
        assert sum("Content Security Policy" in each for each in seen.errors) == 2


def cells(page, what):
    return page.locator(".t3d-cell").evaluate_all(f"cells => cells.map((cell) => {what})")


def test_what_is_expected_is_masked_and_replaced(page):
    page.evaluate("blocks.expect(1)")
    assert cells(page, "cell.className.includes('masked')") == [True]
    page.evaluate("tokens => { blocks.append(tokens.slice(0, 1)); blocks.expect(4); }", TOKENS)
    assert cells(page, "cell.className.includes('masked')") == [False, True, True, True, True]
    assert cells(page, "cell.getAttribute('aria-label')")[1:] == ["masked"] * 4
    page.evaluate("tokens => blocks.append(tokens.slice(1))", TOKENS)
    assert cells(page, "cell.className.includes('masked')") == [False] * 4
    assert page.evaluate("blocks.maxStep") == 4
    page.evaluate("blocks.clear()")
    assert cells(page, "1") == []
    assert page.evaluate("blocks.maxStep") == 0


def test_ranks_are_counted_in_each_block_and_grow_with_it(page):
    page.evaluate("tokens => blocks.append(tokens.slice(0, 3))", TOKENS)
    assert cells(page, "cell.dataset.rank") == ["1", "1", "2"]  # the first token ends the prompt's last block
    page.evaluate("blocks.append([{ text: 'x', step: 0, confidence: 1, id: 9 }])")
    assert cells(page, "cell.dataset.rank") == ["1", "2", "3", "1"]


def test_a_step_shows_what_was_known_after_it(page):
    page.evaluate("tokens => blocks.append(tokens)", TOKENS)
    for step, hidden in ((0, 4), (1, 3), (2, 1), (3, 1), (4, 0), ("null", 0)):
        page.evaluate(f"blocks.showStep({step})")
        assert page.locator(".masked").count() == hidden


def test_blanks_are_seen_and_markup_is_text(page):
    page.evaluate("tokens => blocks.append(tokens)", TOKENS)
    assert cells(page, "cell.textContent") == ["·a", "⏎", "<b>", "∅"]
    tops = cells(page, "cell.offsetTop")
    assert tops[0] == tops[1] < tops[2] == tops[3]  # a newline breaks the line


def focused(page):
    """The number of the cell that has the focus, and how many the Tab key reaches."""
    reached = page.locator(".t3d-cell[tabindex='0']").count()
    return page.evaluate("Number(document.activeElement.dataset.index)"), reached


def test_the_focus_stays_in_its_place_when_cells_are_replaced(page):
    page.evaluate("blocks.expect(4)")
    page.locator(".t3d-cell").nth(2).focus()
    page.evaluate("tokens => blocks.append(tokens)", TOKENS)
    assert focused(page) == (2, 1)
    page.keyboard.press("ArrowRight")
    assert focused(page) == (3, 1)
    page.evaluate("blocks.expect(4)")
    page.keyboard.press("End")
    assert focused(page) == (7, 1)
    page.evaluate("blocks.expect(0)")
    assert focused(page) == (3, 1)  # none came there: the last
    page.evaluate("document.activeElement.blur(); blocks.expect(1); blocks.expect(0)")
    assert page.evaluate("document.activeElement === document.body")
    assert page.locator(".t3d-cell[tabindex='0']").get_attribute("data-index") == "3"


def test_the_tip_says_what_the_step_shows(page):
    tip = page.locator(".t3d-tip")
    page.evaluate("blocks.expect(1)")
    page.locator(".t3d-cell").hover()
    assert tip.inner_text() == "masked"
    page.evaluate("tokens => blocks.append(tokens)", TOKENS)
    assert tip.inner_text().startswith('" a"\nstep 2')
    page.evaluate("blocks.showStep(1)")
    assert tip.inner_text() == "masked"
    page.evaluate("blocks.showStep(2)")
    assert tip.inner_text().startswith('" a"\nstep 2')


def test_blocks_of_two_sizes_share_one_scale(page):
    shown, swatches = page.evaluate(
        """tokens => {
          const [small, legend] = [T3D.element("div"), T3D.element("div")];
          T3D.legend(legend, { color: "step", numRanks: 8 });
          const blocks = new T3D.Blocks(small, { blockSize: 4, offset: 7, numRanks: 8 });
          blocks.append(tokens);
          const ground = (each) => each.style.background;
          return [blocks.cells.map(ground), [...legend.querySelectorAll(".scale .swatch")].map(ground)];
        }""",
        TOKENS[:3],
    )
    assert len(swatches) == 8
    assert shown == [swatches[rank - 1] for rank in (1, 1, 2)]


def test_colours_of_ones_own_leave_masks_and_ranks(chromium, tmp_path):  # noqa: F811
    (tmp_path / "page.html").write_text(make_page("viewer", files=[]), encoding="utf-8")
    with watched(chromium, forced_colors="active") as seen:
        seen.page.goto((tmp_path / "page.html").as_uri())
        painted = seen.page.evaluate(
            """tokens => {
              const root = T3D.element("div");
              const blocks = new T3D.Blocks(root, { blockSize: 4, offset: 7 });
              document.querySelector("#panes").append(root);
              blocks.append(tokens);
              const grounds = blocks.cells.map((cell) => getComputedStyle(cell).backgroundColor);
              blocks.showStep(0);
              return [grounds, blocks.cells.map((cell) => getComputedStyle(cell).color)];
            }""",
            TOKENS[:3],
        )
        assert painted[0][0] == painted[0][1] != painted[0][2]
        assert painted[1] == ["rgba(0, 0, 0, 0)"] * 3


def test_tokens_named_as_what_every_object_has_are_text(page):
    texts = ["constructor", "toString", "__proto__", " valueOf"]
    page.evaluate("texts => blocks.append(texts.map((text) => ({ text, step: 1, confidence: 1, id: 1 })))", texts)
    assert cells(page, "cell.textContent") == ["constructor", "toString", "__proto__", "·valueOf"]


def test_hover_and_focus_are_told(page):
    page.evaluate("tokens => blocks.append(tokens)", TOKENS)
    page.locator(".t3d-cell").nth(2).hover()
    assert page.locator(".t3d-tip").inner_text().splitlines()[-2:] == ["confidence unknown", "id 13"]
    page.locator(".t3d-cell").nth(0).focus()
    assert page.locator(".t3d-tip").inner_text().splitlines()[-1] == "id 11"


def pairs(page, calls):
    """[[background, text] by day, [background, text] by night] of each call."""
    colours = page.evaluate(f"[{','.join(calls)}]")
    return [list(zip(*(_both(css) for css in pair), strict=True)) for pair in colours]


def _both(css):
    day, night = re.fullmatch(r"light-dark\((.*), ((?:rgb|#).*)\)", css).groups()
    return _luminance(day), _luminance(night)


def _luminance(css):
    channels = [int(css[1] * 2, 16)] * 3 if css.startswith("#") else map(int, re.findall(r"\d+", css))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (each / 255 for each in channels)]
    return sum(weight * each for weight, each in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize(
    "calls",
    [
        [f"T3D.stepColor({rank}, 32)" for rank in range(1, 33)],
        [f"T3D.confidenceColor({share / 20})" for share in range(21)],
        [f"T3D.shareColor({share / 20})" for share in range(21)],
    ],
    ids=["step", "confidence", "share"],
)
def test_scales_can_be_read_and_are_ordered_without_hue(page, calls):
    found = pairs(page, calls)
    for theme in (0, 1):
        grounds = [each[theme][0] for each in found]
        assert sorted(grounds) in (grounds, grounds[::-1])
        assert len(set(grounds)) == len(grounds)
        for ground, text in (each[theme] for each in found):
            assert (max(ground, text) + 0.05) / (min(ground, text) + 0.05) >= READABLE
