"""The viewer in a headless Chromium, opened from a file on disk: what a person sees, clicks and presses."""

import re
from dataclasses import replace

import numpy as np
import pytest
from browser import READABLE, chromium, contrasts, file_url, watched  # noqa: F401  a fixture

from t3d.trajectories import read, read_meta, write
from t3d.viewer import agreement, step_rank, write_view

NASTY = "</script><script>document.title = 'broken'</script> & \"quotes\" '<b>bold</b>' 🦉 שלום عليكم"
FOUND = "needle in a haystack"
CELLS = ".pane:nth-child({}) .t3d-cell"
BLOCK = 4


@pytest.fixture(scope="module")
def both(tmp_path_factory, trajectory_folder):
    """Two folders on the same prompts, as lists of rows. Of each three rows in the second one has the same response in
    another order, one has another token in the middle, and one ends a token earlier."""
    rows = list(read(trajectory_folder))
    rows[0] = replace(rows[0], prompt_text=NASTY, answer="<i>7</i>", prompt_id="<b>0</b>")
    rows[7] = replace(rows[7], prompt_text=FOUND)
    others = [_other(row, number % 3) for number, row in enumerate(rows)]
    others[8] = replace(others[8], response_text=FOUND.upper())
    folder = tmp_path_factory.mktemp("viewer")
    write(folder / "teacher", rows, read_meta(trajectory_folder))
    write(folder / "student", others, read_meta(trajectory_folder))
    write_view(folder / "teacher", folder / "one.html")
    write_view(folder / "teacher", folder / "two.html", against=folder / "student")
    write_view(folder / "teacher", folder / "few.html", limit=5)
    return folder, rows, others


def _other(row, kind):
    ids, steps, confidence = list(row.response_ids), list(row.reveal_step), list(row.confidence)
    if kind == 0:
        return replace(row, reveal_step=[max(steps) + 1 - step for step in steps])
    if kind == 1:
        ids[len(ids) // 2] = (ids[len(ids) // 2] + 1) % 500
        return replace(row, response_ids=ids)
    return replace(row, response_ids=ids[:-1], reveal_step=steps[:-1], confidence=confidence[:-1])


@pytest.fixture
def opened(chromium, both):  # noqa: F811
    """Opens a page by name; afterwards it must have logged no error and asked for nothing but itself."""
    contexts = []

    def open_page(name="one", **options):
        context = watched(chromium, **options)
        seen = context.__enter__()
        contexts.append((context, seen))
        seen.page.goto(file_url(both[0] / f"{name}.html"))
        return seen.page

    yield open_page
    for context, seen in contexts:
        context.__exit__(None, None, None)
        assert seen.errors == []
        assert [address for address in seen.requests if not address.startswith("file:")] == []
        assert len(seen.requests) == 1


def masked(page, pane=1):
    return page.locator(f"{CELLS.format(pane)}.masked").count()


def hidden_after(row, step):
    return sum(each > step for each in row.reveal_step)


def test_rows_are_listed_and_the_first_is_shown(opened, both):
    page = opened()
    assert page.locator("#count").inner_text() == "24 of 24 rows"
    assert page.locator("#extent").inner_text() == "all 24 rows"
    assert page.locator(".item").count() == 24
    assert page.locator(CELLS.format(1)).count() == len(both[1][0].response_ids)
    assert masked(page) == 0
    assert str(both[1][0].seed) in page.locator(".pane").inner_text()
    assert opened("few").locator("#extent").inner_text() == "5 of 24 rows, the first of the file (--limit takes more)"


def test_text_from_files_is_text(opened):
    page = opened()
    assert page.locator("#prompt").inner_text() == NASTY
    assert page.locator("#answer").inner_text() == "Reference answer: <i>7</i>"
    assert page.locator("#row-name").inner_text() == "<b>0</b>"
    assert page.title() == "teacher – T3D trajectories"


def test_search_finds_prompts_responses_and_ids(opened, both):
    page, rows = opened("two"), both[1]
    search = page.locator("#search")
    page.keyboard.press("/")
    page.keyboard.type("Needle")
    assert page.locator("#count").inner_text() == "2 of 24 rows"  # one by its prompt, one by the other file's response
    assert page.locator("#prompt").inner_text() == FOUND
    search.fill(rows[3].prompt_id)
    expected = [row for row in rows if rows[3].prompt_id in row.prompt_id]
    assert page.locator(".item").count() == len(expected)
    assert page.locator("#row-name").inner_text() == rows[3].prompt_id


def test_nothing_found_is_said_and_undone(opened):
    page = opened()
    page.locator("#search").fill("no such words <b>")
    assert page.locator("#nothing").inner_text().startswith("No row matches “no such words <b>”.")
    assert not page.locator(".chosen").is_visible()
    page.keyboard.press("j")  # typed, as the search has the focus
    page.get_by_role("button", name="Show all rows").click()
    assert page.locator("#count").inner_text() == "24 of 24 rows"
    assert page.locator(".chosen").is_visible()


def test_filters_by_ending_and_by_difference(opened, both):
    page = opened("two")
    page.locator("#reason").select_option("length")
    num_length = sum(row.finish_reason == "length" for row in both[1])
    assert 0 < num_length < 24
    assert page.locator(".item").count() == num_length
    page.locator("#reason").select_option("")
    page.locator("#differs").select_option("same")
    assert page.locator(".item").count() == 8
    page.locator("#differs").select_option("different")
    assert page.locator(".item").count() == 16
    assert not opened().locator("#differs").is_visible()


def test_rows_are_browsed_by_keyboard(opened, both):
    page = opened()
    for key, place in (("j", 2), ("ArrowDown", 3), ("k", 2), ("ArrowUp", 1), ("k", 1), ("End", 24), ("j", 24)):
        page.keyboard.press(key)
        assert page.locator("#row-place").inner_text() == f"{place} of 24"
    assert page.locator("#row-name").inner_text() == both[1][23].prompt_id
    assert page.locator('.item[aria-selected="true"]').count() == 1
    page.locator("#row-back").click()
    assert page.locator("#row-name").inner_text() == both[1][22].prompt_id


def test_replay_hides_what_was_not_revealed_yet(opened, both):
    page, row = opened(), both[1][0]
    last = max(row.reveal_step)
    for step in range(last - 1, -1, -1):
        page.keyboard.press("ArrowLeft")
        assert page.locator("#step-text").inner_text() == f"step {step} of {last}"
        assert masked(page) == hidden_after(row, step)
    assert masked(page) == len(row.response_ids)
    assert page.locator("#step-back").is_disabled()
    for step in range(1, last + 1):
        page.locator("#step-on").click()
        assert masked(page) == hidden_after(row, step)
        assert page.locator(".t3d-cell.fresh").count() == row.reveal_step.count(step)
    page.locator("#step").focus()
    page.keyboard.press("Home")
    assert masked(page) == len(row.response_ids)


def test_replay_plays_to_the_end_and_pauses(opened, both):
    page, last = opened(), max(both[1][0].reveal_step)
    page.locator("#speed").select_option("30")
    page.locator("#play").click()
    page.get_by_text(f"step {last} of {last}").wait_for()
    page.get_by_role("button", name="Play").wait_for()
    assert masked(page) == 0
    page.locator("#rows").focus()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Pause").wait_for()
    page.keyboard.press("ArrowLeft")  # a step by hand pauses
    page.get_by_role("button", name="Play").wait_for()


def test_masks_do_not_give_tokens_away(opened):
    page = opened()
    page.keyboard.press("ArrowLeft")
    cell = page.locator(".t3d-cell.masked").first
    assert cell.get_attribute("aria-label") == "masked"
    cell.hover()
    assert page.locator(".t3d-tip").inner_text() == "masked"


def test_cells_are_coloured_by_forward_of_their_block(opened, both):
    page, row = opened(), both[1][0]
    blocks = (len(row.prompt_ids) + np.arange(len(row.response_ids))) // BLOCK
    ranks = page.locator(CELLS.format(1)).evaluate_all("cells => cells.map((cell) => Number(cell.dataset.rank))")
    assert ranks == step_rank(np.array(row.reveal_step), blocks).tolist()
    colours = page.locator(CELLS.format(1)).evaluate_all(PAINTED)
    swatches = page.locator("#legend .scale .swatch").evaluate_all(PAINTED)
    assert len(set(swatches)) == BLOCK
    assert colours == [swatches[rank - 1] for rank in ranks]


def test_one_legend_is_true_for_files_of_two_block_sizes(opened, both):
    folder, rows, _ = both
    write(folder / "larger", rows, replace(read_meta(folder / "teacher"), block_size=2 * BLOCK))
    write_view(folder / "teacher", folder / "sizes.html", against=folder / "larger")
    page = opened("sizes")
    swatches = page.locator("#legend .scale .swatch").evaluate_all(PAINTED)
    assert len(set(swatches)) == 2 * BLOCK
    for pane in (1, 2):
        ranks = page.locator(CELLS.format(pane)).evaluate_all("all => all.map((each) => Number(each.dataset.rank))")
        assert page.locator(CELLS.format(pane)).evaluate_all(PAINTED) == [swatches[rank - 1] for rank in ranks]


PAINTED = "elements => elements.map((element) => getComputedStyle(element).backgroundColor)"


def test_colour_changes_by_key_and_button(opened):
    page = opened()
    by_step = page.locator(CELLS.format(1)).evaluate_all(PAINTED)
    page.keyboard.press("c")
    by_confidence = page.locator(CELLS.format(1)).evaluate_all(PAINTED)
    assert by_confidence != by_step
    assert page.get_by_role("button", name="Confidence").get_attribute("aria-pressed") == "true"
    assert "confidence" in page.locator("#legend").inner_text()
    page.get_by_role("button", name="Step", exact=True).click()
    page.mouse.move(0, 0)
    assert page.locator(CELLS.format(1)).evaluate_all(PAINTED) == by_step


def test_two_files_side_by_side(opened, both):
    page, (_, rows, others) = opened("two"), both
    assert page.locator("#title").inner_text() == "teacher against student"
    assert page.title() == "teacher against student – T3D trajectories"
    assert page.locator("#extent").inner_text() == "all 24 rows"
    for number in range(3):
        pair = agreement(rows[number], others[number], BLOCK, BLOCK)
        said = page.locator("#pair").inner_text()
        marked = page.locator(".t3d-cell.marked").evaluate_all(
            "cells => cells.map((cell) => Number(cell.dataset.index))"
        )
        if number == 0:
            assert said.startswith("The responses are identical. Agreement of their reveal order: -1.00")
            assert marked == []
        else:
            assert f"{pair.num_equal_tokens} of {pair.num_tokens} tokens are equal" in said
            assert set(marked) == {pair.first_difference}
        page.keyboard.press("j")
    table = page.locator("#agreement").inner_text()
    assert "8 of 24" in table
    assert "-1.00" in table
    assert "right one ends after" in said


def test_both_responses_are_replayed_by_one_clock(opened, both):
    page, (_, rows, others) = opened("two"), both
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.locator("#step").focus()
    page.keyboard.press("Home")
    for step in range(1, 4):
        page.keyboard.press("ArrowRight")
        assert masked(page, 1) == hidden_after(rows[2], step)
        assert masked(page, 2) == hidden_after(others[2], step)


def test_reveal_order_of_all_rows_and_of_one(opened, both):
    page = opened()
    cell = page.locator("#orders td[title^='position 2, forward 1:']")
    of_all, of_one = ([], [])
    for number, row in enumerate(both[1]):
        positions = len(row.prompt_ids) + np.arange(len(row.response_ids))
        ranks = step_rank(np.array(row.reveal_step), positions // BLOCK)
        of_all += ranks[positions % BLOCK == 1].tolist()
        of_one = of_one or (number == 0 and ranks[positions % BLOCK == 1].tolist())
    assert cell.get_attribute("title").endswith(f": {of_all.count(1)} of {len(of_all)} tokens")
    page.get_by_role("button", name="This row").click()
    assert cell.get_attribute("title").endswith(f": {of_one.count(1)} of {len(of_one)} tokens")


def test_an_empty_response_says_so(opened, tmp_path, both):
    folder, rows, _ = both
    empty = replace(rows[0], response_ids=[], reveal_step=[], confidence=[], num_forwards=0, finish_reason="error")
    write(tmp_path / "empty", [empty], read_meta(folder / "teacher"))
    write_view(tmp_path / "empty", folder / "empty.html")
    page = opened("empty")
    assert "The response is empty." in page.locator(".pane").inner_text()
    assert page.locator("#step-text").inner_text() == "step 0 of 0"


def test_cells_are_reached_by_arrow_keys(opened, both):
    page, row = opened(viewport={"width": 360, "height": 700}), both[1][0]  # so that it takes several lines
    cells = page.locator(CELLS.format(1))
    assert page.locator('.t3d-cell[tabindex="0"]').count() == 1
    cells.first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert f"step {row.reveal_step[2]}," in label
    assert f"confidence {row.confidence[2]:.3f}" in label
    assert label.endswith(f"id {row.response_ids[2]}")
    assert page.locator(".t3d-tip").inner_text().replace("\n", ", ") == label
    assert masked(page) == 0  # the arrows did not step
    page.keyboard.press("End")
    assert page.evaluate("Number(document.activeElement.dataset.index)") == len(row.response_ids) - 1
    page.keyboard.press("ArrowUp")
    above = page.evaluate("document.activeElement.getBoundingClientRect().top")
    assert above < cells.last.bounding_box()["y"]
    assert page.locator('.t3d-cell[tabindex="0"]').count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(opened, scheme):
    page = opened("two", color_scheme=scheme)
    ground = page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) > 380) == (scheme == "light")
    page.locator("#settings summary").first.click()
    for _ in range(2):
        page.keyboard.press("c")
        assert min(contrasts(page, "body *")) >= READABLE


def test_a_narrow_window_does_not_scroll_sideways(opened):
    page = opened("two", viewport={"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("width", [360, 1000, 1280])
def test_a_wide_table_scrolls_in_its_own_box(opened, both, tmp_path, width):
    folder, rows, _ = both
    write(tmp_path / "wide", rows[:2], replace(read_meta(folder / "teacher"), block_size=128))
    write_view(tmp_path / "wide", folder / "wide.html")
    page = opened("wide", viewport={"width": width, "height": 700})
    scrolls = "each => each.scrollWidth > each.clientWidth"
    assert page.locator(".wide").evaluate(scrolls)
    assert not page.locator(".findings").evaluate(scrolls)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("motion, moves", [("reduce", False), ("no-preference", True)])
def test_who_wants_no_motion_gets_none(opened, motion, moves):
    page = opened(reduced_motion=motion)
    duration = page.locator(".t3d-cell").first.evaluate("cell => getComputedStyle(cell).transitionDuration")
    assert (duration != "0s") == moves
