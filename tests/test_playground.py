"""The playground on the real server: what it shows is what the interface answers to the same request."""

import contextlib
import io
import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import zip_longest
from urllib.parse import urlencode

import httpx
import pytest
from browser import READABLE, chromium, contrasts, watched  # noqa: F401  a fixture
from serving import story_server

from t3d.engine.rules import RULES
from t3d.tasks.prompts import render_question
from t3d.tasks.story.examples import make
from t3d.types import Decoding

QUESTION = (
    "Rosa has 40 stones. A friend takes 14 of them. She finds 9 stones. How many stones does she have in the end?"
)
CELL = ".t3d-cell"


def enter(stack, *names, **options):
    """A server; it starts elsewhere, since playwright holds this thread's event loop."""
    with ThreadPoolExecutor(1) as elsewhere:
        return elsewhere.submit(stack.enter_context, story_server(*names, shutdown_seconds=0, **options)).result()


@pytest.fixture(scope="module")
def server():
    with contextlib.ExitStack() as stack:
        yield enter(stack, "story-mini", "story-mini-student", defaults=Decoding(max_new_tokens=24))


@pytest.fixture(scope="module")
def address(server):
    return f"{server.url}/"


@contextlib.contextmanager
def opened(browser, address, options=None, **settings):
    """The page with settings from a link; it must neither complain nor ask anyone else."""
    with watched(browser, **(options or {})) as seen:
        seen.page.goto(f"{address}#{urlencode({'prompt': QUESTION, 'pace': 'instant', **settings})}")
        seen.page.wait_for_selector("#run:enabled")
        yield seen.page
        assert seen.errors == []
        assert all(each.startswith((address, "data:")) for each in seen.requests)


@pytest.fixture
def page(chromium, address):  # noqa: F811
    with opened(chromium, address) as page:
        yield page


def run(page):
    page.click("#run")
    page.wait_for_selector("#stop:disabled")


def asked(address, api="chat", **fields):
    """The choice that the interface gives for the request of a pane."""
    question = {"messages": [{"role": "user", "content": QUESTION}]} if api == "chat" else {"prompt": QUESTION}
    body = {"model": "story-mini", "seed": 0, "return_trajectory": True, **question, **fields}
    path = "chat/completions" if api == "chat" else "completions"
    response = httpx.post(f"{address}v1/{path}", json=body, timeout=60)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return {**choice, "text": choice["message"]["content"] if api == "chat" else choice["text"]}


def cells(page, pane="A"):
    """What is said of each cell: (step, block, id)."""
    labels = page.locator(f"[data-name={pane}] {CELL}").evaluate_all("all => all.map(each => each.ariaLabel)")
    found = [
        re.search(r"step (\d+), forward \d+ of block (\d+), confidence [\d.]+, id (\d+)$", each) for each in labels
    ]
    return [tuple(map(int, each.groups())) for each in found]


def expected_cells(choice):
    trajectory, facts = choice["trajectory"], choice["t3d"]
    rows = zip(trajectory["reveal_steps"], trajectory["token_ids"], strict=True)
    places = ((facts["prompt_tokens"] + at) // facts["block_size"] for at in range(len(trajectory["token_ids"])))
    return [(step, block, token) for (step, token), block in zip(rows, places, strict=True)]


def figures(page, pane="A"):
    entries = page.locator(f"[data-name={pane}] [data-figure]")
    return dict(entries.evaluate_all("all => all.map(each => [each.dataset.figure, each.textContent])"))


def plain_text(page, pane="A"):
    return page.locator(f"[data-name={pane}] .plain p").text_content()


def focus_with_tab(page, selector):
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"Tab never reaches {selector}")


def test_a_prompt_is_typed_and_run_by_keyboard(chromium, address):  # noqa: F811
    with opened(chromium, address, prompt="", **{"A.max_tokens": 96}) as page:
        focus_with_tab(page, "#prompt")
        page.keyboard.type(QUESTION)
        page.keyboard.press("Control+Enter")
        page.wait_for_function("() => document.getElementById('announcer').textContent.includes('finished')")
        choice = asked(address, max_tokens=96)
        assert choice["finish_reason"] == "stop"
        assert cells(page) == expected_cells(choice)
        assert plain_text(page) == choice["text"]
        facts, count = choice["t3d"], len(choice["trajectory"]["token_ids"])
        shown = figures(page)
        assert (shown["forwards"], shown["tokens"]) == (str(facts["forwards"]), str(count))
        assert (shown["tpf"], shown["end"]) == (f"{facts['tokens_per_forward']:.2f}", choice["finish_reason"])
        assert f"{count} tokens in {facts['forwards']} forwards" in page.inner_text("#announcer")


def test_enter_in_a_field_runs(page):
    page.fill("[name=max_tokens]", "4")
    page.keyboard.press("Enter")
    page.wait_for_selector("#stop:disabled")
    assert page.locator(CELL).count() == 4


def test_every_setting_counts(chromium, address):  # noqa: F811
    fields = {"steps_per_block": 2, "rule": "low_confidence_dynamic", "threshold": 0.6, "temperature": 0.9}
    fields |= {"top_p": 0.8, "seed": 5, "max_tokens": 30, "model": "story-mini-student"}
    with opened(chromium, address, api="raw", **{f"A.{name}": value for name, value in fields.items()}) as page:
        run(page)
        choice = asked(address, api="raw", **fields)
        assert plain_text(page) == choice["text"]
        assert cells(page) == expected_cells(choice)
        assert figures(page)["seed"] == "5"


def test_cells_fill_in_step_by_step_at_the_chosen_pace(chromium, address):  # noqa: F811
    with opened(chromium, address, pace="150", **{"A.steps_per_block": 2}) as page:
        page.clock.install()
        page.clock.pause_at(datetime.now() + timedelta(hours=1))  # from here on, time is the test's
        page.click("#run")
        page.wait_for_selector("#stop:disabled")
        steps = asked(address, steps_per_block=2)["trajectory"]["reveal_steps"]
        for step in range(max(steps) + 1):
            assert page.locator(f"{CELL}:not(.masked)").count() == sum(each <= step for each in steps)
            page.clock.run_for(150)
        assert page.inner_text("[data-replay=play]") == "Play"


def test_replay_shows_the_masks_of_each_step(chromium, address):  # noqa: F811
    with opened(chromium, address, **{"A.steps_per_block": 2}) as page:
        run(page)
        steps = asked(address, steps_per_block=2)["trajectory"]["reveal_steps"]
        page.focus("input[type=range]")
        for step in range(max(steps), -1, -1):
            assert page.locator(f"{CELL}.masked").count() == sum(each > step for each in steps)
            assert page.inner_text("output") == f"step {step} / {max(steps)}"
            page.keyboard.press("ArrowLeft")
        page.keyboard.press("End")
        assert page.locator(f"{CELL}.masked").count() == 0


def test_confidence_is_told_by_hover_focus_and_colour(page, address):
    run(page)
    (sure,) = asked(address, max_tokens=1)["trajectory"]["confidences"]
    page.hover(f"{CELL} >> nth=0")
    assert f"confidence {sure:.3f}" in page.inner_text(".t3d-tip")
    page.mouse.move(0, 0)
    assert page.locator(".t3d-tip").is_hidden()
    focus_with_tab(page, f"{CELL}[data-index='0']")
    assert f"confidence {sure:.3f}" in page.inner_text(".t3d-tip")
    colour = "each => each.style.background"
    before = page.locator(f"{CELL} >> nth=0").evaluate(colour)
    page.click("#color [value=confidence]")
    assert page.locator(f"{CELL} >> nth=0").evaluate(colour) != before
    assert "confidence" in page.inner_text(".legend")


def first_difference(first, second):
    """The place in the texts, and the token of each that holds it."""
    pairs = zip_longest(first["text"], second["text"])
    place = next(at for at, (one, other) in enumerate(pairs) if one != other)
    ends = []
    for choice in (first, second):
        lengths = [len("".join(choice["trajectory"]["tokens"][: at + 1])) for at in range(24)]
        ends.append(next(at for at, length in enumerate(lengths) if length > place))
    return place, ends


PAIRS = {
    "two settings": ({"steps_per_block": 4}, {"steps_per_block": 1}),
    "two models": ({"steps_per_block": 1}, {"steps_per_block": 1, "model": "story-mini-student"}),
}


@pytest.mark.parametrize("name", PAIRS)
def test_two_panes_are_compared(page, address, name):
    first, second = (asked(address, **fields) for fields in PAIRS[name])
    page.click("#compare")
    for pane, fields in zip("AB", PAIRS[name], strict=True):
        page.select_option(f"[data-name={pane}] [name=model]", fields.get("model", "story-mini"))
        page.select_option(f"[data-name={pane}] [name=steps_per_block]", label=str(4 // fields["steps_per_block"]))
    run(page)
    assert [plain_text(page, pane) for pane in "AB"] == [first["text"], second["text"]]
    place, marks = first_difference(first, second)
    told = page.inner_text("#verdict")
    assert f"The texts differ from character {place + 1} on." in told
    forwards = first["t3d"]["forwards"], second["t3d"]["forwards"]
    ratio = f"{max(forwards) / min(forwards):.2f}"
    orders = {-1: f"1 to {ratio}", 0: "as many", 1: f"{ratio} to 1"}
    order = orders[(forwards[0] > forwards[1]) - (forwards[0] < forwards[1])]
    assert f"Forwards: A {forwards[0]}, B {forwards[1]}, {order}." in told
    marked = [page.locator(f"[data-name={pane}] .marked").get_attribute("data-index") for pane in "AB"]
    assert marked == [str(mark) for mark in marks]
    page.click("#compare")
    assert page.locator(".pane").count() == 1
    assert page.locator(".marked").count() == 0
    assert page.locator("#verdict").is_hidden()


def test_equal_texts_are_called_equal(page):
    page.click("#compare")
    page.select_option("[data-name=B] [name=steps_per_block]", label="1")
    run(page)
    assert page.inner_text("#verdict").startswith("The texts are equal. Forwards: A ")
    assert page.locator(".marked").count() == 0


def test_stopping_frees_the_servers_memory(chromium, server, address, monkeypatch):  # noqa: F811
    monkeypatch.setattr(server.service.models["story-mini"].engine, "stop_token_ids", ())
    with opened(chromium, address, **{"A.max_tokens": 900}) as page:
        page.click("#run")
        page.wait_for_selector(f"{CELL}[data-index='4']:not(.masked)")
        assert server.load()[0] == 1
        page.keyboard.press("Escape")
        page.wait_for_selector("#stop:disabled")
        server.wait_until_idle()
        assert page.locator(f"{CELL}.masked").count() == 0
        assert figures(page)["end"] == "you"


def test_a_server_that_ends_says_so(chromium):  # noqa: F811
    with contextlib.ExitStack() as stack:
        address = f"{enter(stack, 'story-mini', endless=True).url}/"
        with opened(chromium, address, **{"A.max_tokens": 900}) as page:
            page.click("#run")
            page.wait_for_selector(f"{CELL}[data-index='4']:not(.masked)")
            stack.close()
            page.wait_for_selector("#stop:disabled")
            assert "shut down before the answer was complete" in page.inner_text(".pane [role=alert]")


def test_the_servers_refusal_is_shown(chromium, address):  # noqa: F811
    with watched(chromium) as seen:
        seen.page.goto(address + "#" + urlencode({"prompt": "stones " * 2000}))
        run(seen.page)
        assert re.search(r"prompt 0 has \d+ tokens", seen.page.inner_text(".pane [role=alert]"))


def test_a_link_brings_all_settings_back(page, chromium, address):  # noqa: F811
    page.click("#compare")
    page.click("#api [value=raw]")
    page.click("#color [value=confidence]")
    page.select_option("#pace", "150")
    page.fill("#prompt", "a & b\n#?=%é🙂")
    page.fill("[data-name=B] [name=seed]", "77")
    page.select_option("[data-name=B] [name=rule]", "entropy_bounded")
    page.fill("[data-name=B] [name=entropy_bound]", "0.25")
    page.select_option("[data-name=A] [name=model]", "story-mini-student")
    link = page.url

    def settings(page):
        fields = page.locator("textarea#prompt, #pace, .settings :is(input, select)")
        pressed = page.locator("[aria-pressed=true]").all_inner_texts()
        return fields.evaluate_all("all => all.map(each => [each.name, each.value, each.disabled])"), pressed

    with watched(chromium) as other:
        other.page.goto(link)
        other.page.wait_for_selector("[data-name=B]")
        assert settings(other.page) == settings(page)
        other.page.evaluate("location.hash = '#A.model=nowhere'")
        other.page.wait_for_selector("[data-name=B]", state="detached")
        assert other.page.inner_text("#notice") == "nowhere is not served here; story-mini-student stands in for it"


def test_copied_programs_give_the_same_answer(chromium, address):  # noqa: F811
    tricky = 'Anna\'s "bag" has $HOME \\ 3 apples.\nShe finds `2`. How many?'
    options = {"permissions": ["clipboard-read", "clipboard-write"]}
    fields = {"A.max_tokens": 12, "A.temperature": 0.7, "A.seed": 3, "A.steps_per_block": 2}
    for api, path in (("chat", ("message", "content")), ("raw", ("text",))):
        with opened(chromium, address, options, prompt=tricky, api=api, **fields) as page:
            run(page)
            page.click("[data-copy=python]")
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(page.evaluate("navigator.clipboard.readText()"), {})
            assert printed.getvalue() == plain_text(page) + "\n"
            page.click("[data-copy=answer]")
            assert page.evaluate("navigator.clipboard.readText()") == plain_text(page)
            if shutil.which("curl"):
                page.click("[data-copy=curl]")
                command = page.evaluate("navigator.clipboard.readText()")
                assert command.startswith(f"curl '{address}v1/")
                answer = json.loads(subprocess.run(["sh", "-c", command], capture_output=True, check=True).stdout)
                (found,) = answer["choices"]
                for step in path:
                    found = found[step]
                assert found == plain_text(page)


def test_without_a_clipboard_a_person_copies(chromium, address):  # noqa: F811
    with watched(chromium) as seen:
        seen.page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
        seen.page.goto(address)
        seen.page.wait_for_selector("#run:enabled")
        seen.page.click("#link")
        assert seen.page.input_value("#copy-dialog textarea") == seen.page.url
        seen.page.keyboard.press("Escape")
        assert seen.page.locator("#copy-dialog").is_hidden()
        assert seen.errors == []


CONTROLS = "button, input, select, textarea, summary, .t3d-cell[tabindex='0']"


def test_every_control_is_reached_by_tab_and_has_a_name(page):
    page.click("#compare")
    run(page)
    wanted = page.locator(CONTROLS).evaluate_all(
        "all => all.filter(each => each.checkVisibility() && !each.disabled).map((each, at) => (each.dataset.at = at))"
    )
    page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(len(wanted) + 2):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.dataset.at ?? null"))
    assert {str(at) for at in wanted} <= reached
    nameless = page.locator(CONTROLS).evaluate_all(
        """all => all.filter(each => each.checkVisibility() && !(
            each.ariaLabel || [...(each.labels ?? [])].some(label => label.textContent.trim())
            || (each.matches('button, summary, .t3d-cell') && each.textContent.trim()))).map(each => each.outerHTML)"""
    )
    assert nameless == []


TEXTS = "h1, h1 span, h2, p, label, dt, dd, button, output, summary, q, mark, strong, kbd, select, input, textarea"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_is_readable(chromium, address, scheme):  # noqa: F811
    with opened(chromium, address, {"color_scheme": scheme, "reduced_motion": "reduce"}) as page:
        page.click("#compare")
        run(page)
        page.evaluate("document.getElementById('notice').hidden = document.getElementById('key-form').hidden = false")
        grounds = page.locator("body").evaluate("each => getComputedStyle(each).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", grounds))) < 3 * 64) == (scheme == "dark")
        for color in ("step", "confidence"):
            page.click(f"#color [value={color}]")
            found = contrasts(page, f":is({TEXTS}, .legend span, {CELL}):not(.masked)")
            assert len(found) > 90
            assert min(found) >= READABLE


def test_a_narrow_window_needs_no_sideways_scrolling(chromium, address):  # noqa: F811
    with opened(chromium, address, {"viewport": {"width": 360, "height": 740}}) as page:
        page.click("#compare")
        page.select_option("[data-name=B] [name=rule]", "low_confidence_dynamic")
        run(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_who_wants_no_motion_gets_none(chromium, address):  # noqa: F811
    with watched(chromium, reduced_motion="reduce") as seen:
        seen.page.goto(address)
        assert seen.page.input_value("#pace") == "instant"


def test_choices_are_those_of_the_package(page):
    rules = page.locator("[name=rule] option").evaluate_all("all => all.map(each => each.value)")
    assert sorted(rules) == sorted(RULES)
    texts = page.locator("#example option").all_inner_texts()[1:]
    assert set(texts) <= {each.question for each in make("test", 12, seed=7)}
    page.select_option("#example", texts[1])
    assert page.input_value("#prompt") == texts[1]
    page.click("#api [value=raw]")
    page.select_option("#example", texts[1])
    assert page.input_value("#prompt") == render_question(texts[1])
