"""The playground against a server that answers by script: errors are shown, Stop leaves, steps play by the data."""

from datetime import datetime, timedelta
from threading import Semaphore
from urllib.parse import urlencode

import pytest
from browser import chromium, watched  # noqa: F401  a fixture
from playground_stub import BEGIN, END, FIRST, SECOND, block, error, event, serving, tell

CHROME_TELLS = "Failed to load resource"  # of every status that is no success


@pytest.fixture(scope="module")
def server():
    with serving() as made:
        yield made


@pytest.fixture
def stub(server):
    server[0].reset()
    return server[0]


@pytest.fixture
def view(chromium, server, stub):  # noqa: F811
    """The page with its prompt typed; nothing may go wrong in it, whatever the server does."""
    with watched(chromium) as seen:
        seen.page.goto(server[1] + "#" + urlencode({"prompt": "Count.", "pace": "instant"}))
        yield seen.page
        assert [each for each in seen.errors if not each.startswith(CHROME_TELLS)] == []
        assert all(each.startswith((server[1], "data:")) for each in seen.requests)


def run(page):
    """Press Run and wait until it is over."""
    page.click("#run")
    page.wait_for_selector("#stop:disabled")


def take_time_over(page):
    """From here on, time passes only as the test says."""
    page.clock.install()
    page.clock.pause_at(datetime.now() + timedelta(hours=1))


def shown(page):
    """The cells: their text, "" where they are masked."""
    texts = ".t3d-cell", "cells => cells.map(each => each.matches('.masked') ? '' : each.textContent)"
    return page.locator(texts[0]).evaluate_all(texts[1])


REFUSALS = [
    (404, "the model `m` does not exist: use one of a, b", {}, "the model `m` does not exist: use one of a, b"),
    (429, "the queue is full", {"Retry-After": "3"}, "the queue is full (try again in 3 s)"),
    (400, "the prompt has 70 tokens: at most 60", {}, "the prompt has 70 tokens: at most 60"),
    (503, "shutting down <b>now</b>", {}, "shutting down <b>now</b>"),
    (502, b'{"error": "no upstream"}', {}, "no upstream"),
    (502, b"<html>oops</html>", {}, "the server refused with status 502 Bad Gateway and gave no reason"),
    (200, b"<html>sign in</html>", {}, "the answer is no stream of events but application/json"),
]


@pytest.mark.parametrize("status, message, headers, told", REFUSALS)
def test_a_refusal_is_told_in_the_servers_words(view, stub, status, message, headers, told):
    stub.refusal = status, message, headers
    run(view)
    assert view.locator(".pane [role=alert]").inner_text() == told
    assert view.inner_text("#announcer") == "Pane A failed."
    stub.refusal = None
    run(view)  # and forgotten when it works again
    assert view.locator(".pane [role=alert]").is_hidden()
    assert view.locator(".plain p").text_content() == " one two three a b c d"


def test_a_list_that_is_none_is_told_in_words(chromium, server, stub):  # noqa: F811
    stub.listed = b"<html>sign in</html>"
    with watched(chromium) as seen:
        seen.page.goto(server[1])
        seen.page.wait_for_selector("#notice:visible")
        assert "v1/models lists no models: is it a server of t3d?" in seen.page.inner_text("#notice")
        assert seen.errors == []


BREAKS = {
    "hangs up": (tell(BEGIN, FIRST, whole=False), "ended before the answer was complete"),
    "error event": (tell(BEGIN, FIRST, error("the engine's worker failed")), "the engine's worker failed"),
    "no JSON": (tell(BEGIN, FIRST, "<html>"), "the server sent an event that is not JSON: <html>"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_an_answer_that_breaks_off_says_so_and_keeps_what_came(view, stub, name):
    stub.script, message = BREAKS[name]
    run(view)
    assert message in view.locator(".pane [role=alert]").inner_text()
    assert shown(view) == ["·one", "·two", "·three"]  # no cell stays as if more would come
    assert view.inner_text("[data-figure=end]") == "an error"


def test_a_server_that_is_gone_is_told(chromium):  # noqa: F811
    with serving() as (_, address), watched(chromium) as seen:
        seen.page.goto(address + "#prompt=Count.")
        seen.page.wait_for_selector("#run:enabled")
        seen.page.context.set_offline(True)
        run(seen.page)
        assert "cannot be reached" in seen.page.locator(".pane [role=alert]").inner_text()


def test_a_key_is_asked_for_and_then_used(chromium, server, stub):  # noqa: F811
    stub.key = "secret"
    with watched(chromium) as seen:
        page = seen.page
        page.goto(server[1] + "#pace=instant")
        page.wait_for_selector("#key:focus")
        assert page.inner_text("#notice") == "the API key is wrong"
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key:focus")
        page.keyboard.type("secret")
        page.keyboard.press("Enter")
        page.wait_for_selector("#run:enabled")
        assert page.locator("#notice").is_hidden()
        page.fill("#prompt", "Count.")
        run(page)
        assert len(shown(page)) == 7
        stub.key = "another"  # and again when it no longer fits
        run(page)
        assert page.locator(".pane [role=alert]").inner_text() == "the API key is wrong"
        page.wait_for_selector("#key:focus")
        assert page.evaluate("[localStorage.length, location.hash.includes('secret')]") == [0, False]


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stopping_leaves_the_server(view, stub, how):
    def script(send, body):
        send(BEGIN)
        send(FIRST)
        while not stub.may_go_on.wait(0.02):
            send(event())

    stub.script = script
    view.click("#run")
    view.wait_for_selector(".t3d-cell.expected >> nth=3")
    assert shown(view) == ["·one", "·two", "·three", "", "", "", ""]  # the block under way
    assert view.inner_text("[data-figure=forwards]") == "3"
    view.click("#stop") if how == "button" else view.keyboard.press("Escape")
    view.wait_for_selector("#stop:disabled")
    assert stub.has_left.wait(5)
    assert len(shown(view)) == 3
    assert view.inner_text("[data-figure=end]") == "you"


def test_escape_of_a_dialog_or_an_input_method_stops_nothing(view, stub):
    def script(send, body):
        send(BEGIN)
        stub.may_go_on.wait(10)
        tell(FIRST, SECOND, END)(send, body)

    stub.script = script
    view.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    view.click("#run")
    view.wait_for_selector(".expected >> nth=2")
    view.click("#link")
    view.keyboard.press("Escape")
    assert view.locator("#copy-dialog").is_hidden()
    composing = "new KeyboardEvent('keydown', { key: 'Escape', isComposing: true, bubbles: true })"
    view.locator("#prompt").evaluate(f"each => each.dispatchEvent({composing})")
    stub.may_go_on.set()
    view.wait_for_selector("#stop:disabled")
    assert view.inner_text("[data-figure=end]") == "stop"


def test_arrows_pass_through_the_examples_and_back_to_what_was_typed(view):
    examples = view.locator("#example option").all_inner_texts()[1:]
    view.focus("#example")
    seen = []
    for key in ("ArrowDown", "ArrowDown", "ArrowUp", "ArrowUp"):
        view.keyboard.press(key)
        seen.append(view.input_value("#prompt"))
    assert seen == [examples[0], examples[1], examples[0], "Count."]
    view.select_option("#example", examples[2])
    view.focus("#prompt")
    view.keyboard.press("End")
    view.keyboard.type("!")
    assert view.input_value("#example") == ""
    view.select_option("#example", examples[1])
    view.select_option("#example", "")
    assert view.input_value("#prompt") == examples[2] + "!"


def test_an_address_that_the_browser_refuses_stops_nothing(view):
    view.evaluate("() => { history.replaceState = () => { throw new DOMException('too long', 'SecurityError'); }; }")
    view.fill("#prompt", "Count on.")
    run(view)
    assert len(shown(view)) == 7


def test_a_browser_that_keeps_nothing_for_pages_will_do(chromium, server, stub):  # noqa: F811
    stub.key = "secret"
    with watched(chromium) as seen:
        refuse = "{ get() { throw new DOMException('no', 'SecurityError'); } }"
        seen.page.add_init_script(f"Object.defineProperty(window, 'sessionStorage', {refuse})")
        seen.page.goto(server[1] + "#prompt=Count.&pace=instant")
        seen.page.wait_for_selector("#key:focus")
        seen.page.keyboard.type("secret")
        seen.page.keyboard.press("Enter")
        seen.page.wait_for_selector("#run:enabled")
        run(seen.page)
        assert len(shown(seen.page)) == 7


def test_masks_fill_in_by_the_steps_of_the_data(view):
    view.select_option("#pace", "500")
    take_time_over(view)
    run(view)
    view.click("[data-replay=play]")  # pause
    assert shown(view) == ["", "", ""]  # what comes behind is not there yet
    states = []
    for _ in range(6):
        view.click("[data-replay=on]")
        states.append(shown(view))
    assert states == [
        ["", "·two", ""],
        ["·one", "·two", ""],
        ["·one", "·two", "·three", "", "", "", ""],
        ["·one", "·two", "·three", "·a", "", "", ""],
        ["·one", "·two", "·three", "·a", "·b", "·c", ""],
        ["·one", "·two", "·three", "·a", "·b", "·c", "·d"],
    ]
    view.click("[data-replay=back]")
    assert shown(view) == states[4]
    assert view.inner_text("output") == "step 5 / 6"


def test_a_pace_may_change_while_it_plays(view):
    view.select_option("#pace", "500")
    take_time_over(view)
    run(view)
    view.clock.run_for(500)
    assert shown(view) == ["", "·two", ""]
    view.select_option("#pace", "instant")
    assert len(shown(view)) == 7
    assert "" not in shown(view)
    view.click("[data-replay=play]")  # once more from the start, and visibly
    assert shown(view) == [""] * 7
    view.clock.run_for(6 * 120)
    assert "" not in shown(view)
    assert view.inner_text("[data-replay=play]") == "Play"


def test_live_steps_fill_the_time_to_the_next_block(view, stub):
    gate = Semaphore(0)

    def script(send, body):
        for each in (BEGIN, FIRST, SECOND, END, "[DONE]"):
            send(each)
            gate.acquire(timeout=10)

    stub.script = script
    view.select_option("#pace", "live")
    take_time_over(view)
    view.click("#run")
    view.wait_for_selector(".expected >> nth=2")
    view.clock.run_for(600)  # until the first block comes: so the second is due 600 ms later
    gate.release()
    view.wait_for_selector("output:text('step 0 / 3')")
    for step in (1, 2, 3):
        view.clock.run_for(200)
        assert view.inner_text("output") == f"step {step} / 3"
    gate.release(4)
    view.wait_for_selector("#stop:disabled")
    assert "" in shown(view)


def test_play_waits_for_the_first_block(view, stub):
    def script(send, body):
        send(BEGIN)
        stub.may_go_on.wait(10)
        tell(FIRST, SECOND, END)(send, body)

    stub.script = script
    view.select_option("#pace", "live")
    view.click("#run")
    view.wait_for_selector(".expected >> nth=2")
    view.click("[data-replay=play]")
    assert view.inner_text("output") == "step 0 / 0"
    stub.may_go_on.set()
    view.wait_for_selector("output:text('step 6 / 6')")


def test_a_link_with_unknown_settings_does_no_harm(view, server, stub):
    view.goto("about:blank")
    view.goto(server[1] + "#" + urlencode({"prompt": "Count.", "pace": "instant", "A.length": "5", "A.seed": "4"}))
    run(view)
    assert [body["seed"] for body in stub.bodies] == [4]


def test_figures_are_the_servers(view):
    run(view)
    entries = view.locator("[data-figure]").evaluate_all(
        "all => all.map(each => [each.dataset.figure, each.textContent])"
    )
    figures = {name: text for name, text in entries if name not in ("seed", "end")}
    assert figures == {"forwards": "8", "tpf": "0.88", "tokens": "7", "speed": "14", "seconds": "0.50"}


def test_what_the_server_sends_is_text(view, stub):
    stub.script = tell(BEGIN, block(("<img src=x onerror=alert(1)>", 1, 0.5), ("<b>x</b>", 2, 0.5)), END)
    run(view)
    view.click("summary")
    assert shown(view) == ["<img·src=x·onerror=alert(1)>", "<b>x</b>"]
    assert view.inner_text(".plain p") == "<img src=x onerror=alert(1)><b>x</b>"
    assert view.locator("img, b").count() == 0
    assert view.locator("select[name=model] option").all_inner_texts() == ["m", "<b>wide</b>"]


def test_another_block_size_offers_its_own_steps(view, stub):
    view.select_option("[name=steps_per_block]", label="2")
    view.select_option("[name=model]", "<b>wide</b>")
    assert view.locator("[name=steps_per_block] option").all_inner_texts() == ["1", "2", "4", "8"]
    run(view)
    assert stub.bodies[0]["steps_per_block"] == 4  # still two tokens a step
    assert stub.bodies[0]["model"] == "<b>wide</b>"


def test_fields_of_a_rule_show_and_count_with_it_only(view, stub):
    assert view.locator("[name=threshold]").is_hidden()
    view.select_option("[name=rule]", "low_confidence_dynamic")
    view.fill("[name=threshold]", "0.7")
    run(view)
    view.select_option("[name=rule]", "sequential")
    run(view)
    assert [body.get("threshold") for body in stub.bodies] == [0.7, None]


def test_an_unnamed_seed_is_the_servers(view, stub):
    view.fill("[name=seed]", "")
    stub.script = tell(event(t3d={**BEGIN["choices"][0]["t3d"], "seed": 4711}), FIRST, SECOND, END)
    run(view)
    assert "seed" not in stub.bodies[0]


def test_a_link_survives_changes_before_the_models_are_known(view, server, stub):
    stub.may_list.clear()
    view.goto("about:blank")
    view.goto(server[1] + "#" + urlencode({"prompt": "Count.", "A.seed": "4", "B.seed": "5"}))
    view.select_option("#pace", "instant")
    view.fill("#prompt", "Count on.")
    view.click("#api [value=raw]")
    stub.may_list.set()
    run(view)
    assert sorted((body["prompt"], body["seed"]) for body in stub.bodies) == [("Count on.", 4), ("Count on.", 5)]


def test_wrong_settings_are_not_sent(view, stub):
    view.fill("[name=max_tokens]", "0")
    view.click("#run")
    assert view.evaluate("document.activeElement.name") == "max_tokens"
    view.fill("[name=max_tokens]", "5")
    view.fill("#prompt", "")
    view.click("#run")
    assert "no prompt" in view.inner_text("#notice")
    assert stub.bodies == []
