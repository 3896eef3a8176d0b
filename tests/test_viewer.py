"""What the viewer says of trajectories: reveal order and agreement by hand, texts of tokens, pages, refusals."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3d.cli import run
from t3d.corruption import reveal_rank
from t3d.errors import RequestError
from t3d.models import load_tokenizer, tokenizer_fingerprint
from t3d.trajectories import TrajectoryMeta, read, write
from t3d.types import Trajectory
from t3d.viewer import agreement, open_sources, page_data, reveal_order, step_rank, token_texts, write_view
from t3d.viewer.agreement import total
from t3d.web import PAGES, page

META = TrajectoryMeta(
    model="some/model",
    revision=None,
    tokenizer_fingerprint="abc",
    mask_token_id=599,
    eos_token_ids=(0,),
    block_size=4,
    steps_per_block=2,
    rule="low_confidence_static",
    temperature=0.1,
    top_k=0,
    top_p=1.0,
    threshold=0.9,
    entropy_bound=0.5,
    max_new_tokens=64,
    seed=0,
    software_version="0.1.0",
)
NASTY = "</script><script>alert(1)</script> & \"quotes\" '<b>' \u2028 🦉 שלום <!-- "


def make_row(ids=(5, 6, 7), steps=None, prompt_length=3, **changes) -> Trajectory:
    row = Trajectory(
        prompt_id="q",
        sample=0,
        prompt_ids=[9] * prompt_length,
        response_ids=list(ids),
        reveal_step=list(steps or range(1, len(ids) + 1)),
        confidence=[0.5] * len(ids),
        num_forwards=2,
        finish_reason="stop",
        prompt_text="How many?",
        response_text="abc",
        answer="3",
        seed=2**62 + 1,
    )
    return replace(row, **changes)


@st.composite
def rows(draw):
    """A row of any length on any grid, with B; steps in any order."""
    steps = draw(st.lists(st.integers(1, 9), max_size=30))
    prompt_length, block_size = draw(st.integers(0, 9)), draw(st.integers(1, 8))
    return make_row(range(len(steps)), steps, prompt_length), block_size


# --- reveal order


def test_tokens_revealed_together_share_a_rank():
    blocks = np.array([0, 1, 1, 1, 1, 2, 2])
    steps = np.array([3, 5, 4, 5, 9, 11, 10])
    assert step_rank(steps, blocks).tolist() == [1, 2, 1, 2, 3, 2, 1]


@given(rows())
def test_ranks_refine_into_the_order_that_training_uses(case):
    row, block_size = case
    steps = np.asarray(row.reveal_step, dtype=np.int64)
    blocks = (len(row.prompt_ids) + np.arange(len(steps))) // block_size
    ranks = step_rank(steps, blocks)
    assert np.array_equal(reveal_rank(ranks, blocks), reveal_rank(steps, blocks))
    for block in np.unique(blocks):
        assert set(ranks[blocks == block]) == set(range(1, 1 + len(set(steps[blocks == block]))))


def test_full_step_ranks_are_the_order_that_training_uses():
    blocks, steps = np.array([0, 0, 1, 1, 1]), np.array([2, 1, 5, 3, 4])
    assert step_rank(steps, blocks).tolist() == (reveal_rank(steps, blocks) + 1).tolist()


def test_reveal_order_by_hand():
    """P = 3, B = 2: the first token is at position 1 of its block, the others fill one block."""
    row = make_row((5, 6, 7), (1, 3, 2), confidence=[0.5, 0.25, float("nan")])
    found = reveal_order(row, 2)
    assert found.counts.tolist() == [[0, 1], [2, 0]]  # [position][rank - 1]
    assert found.mean_confidence() == [0.5, 0.25]  # rank 1: .5 and an unknown one
    both = found + reveal_order(make_row((5,), (1,), confidence=[1.0]), 2)
    assert both.counts.tolist() == [[0, 1], [3, 0]]
    assert both.mean_confidence() == [0.75, 0.25]


@given(rows())
def test_every_token_is_counted_once_at_its_position(case):
    row, block_size = case
    found = reveal_order(row, block_size)
    positions = [(len(row.prompt_ids) + place) % block_size for place in range(len(row.response_ids))]
    assert found.counts.sum(axis=1).tolist() == [positions.count(place) for place in range(block_size)]


# --- agreement


def test_agreement_of_different_responses_by_hand():
    found = agreement(make_row((5, 6, 7, 8)), make_row((5, 1, 7)), 4, 4)
    assert (found.num_identical, found.num_equal_tokens, found.num_tokens) == (0, 2, 4)  # 5 and 7; 8 has no partner
    assert found.equal_share == 0.5
    assert found.first_difference == 1
    assert found.order_agreement is None


def test_a_response_that_ends_early_first_differs_at_its_end():
    assert agreement(make_row((5, 6, 7)), make_row((5, 6)), 4, 4).first_difference == 2
    assert agreement(make_row(()), make_row((5,)), 4, 4).first_difference == 0


def test_order_agreement_by_hand():
    """P = 0, B = 4. Pairs of the one block: 01 same, 02 opposite, 12 opposite, 03 13 23 same."""
    one = make_row((5, 6, 7, 8), (1, 2, 3, 4), 0)
    two = make_row((5, 6, 7, 8), (2, 3, 1, 4), 0)
    found = agreement(one, two, 4, 4)
    assert (found.same_order, found.opposite_order, found.together) == (4, 2, 0)
    assert found.order_agreement == (4 - 2) / 6


def test_pairs_revealed_in_one_step_and_pairs_of_different_blocks_say_nothing():
    one = make_row((5, 6, 7, 8), (1, 1, 2, 2), 0)
    two = make_row((5, 6, 7, 8), (2, 1, 4, 3), 0)
    within_two = agreement(one, two, 4, 2)  # the finer grid: pairs 01 and 23, both together in the first file
    assert (within_two.same_order, within_two.opposite_order, within_two.together) == (0, 0, 2)
    assert within_two.order_agreement is None
    assert agreement(one, two, 4, 4).same_order == 4  # 02 03 12 13


def pairs_in_blocks(row, block_size):
    sizes = np.bincount((len(row.prompt_ids) + np.arange(len(row.response_ids))) // block_size)
    return sum(n * (n - 1) // 2 for n in sizes)


@given(rows())
def test_the_opposite_order_is_found_in_each_block(case):
    row, block_size = case
    found = agreement(row, replace(row, reveal_step=[10 - step for step in row.reveal_step]), block_size, block_size)
    assert found.same_order == 0
    assert found.opposite_order + found.together == pairs_in_blocks(row, block_size)


@given(rows())
def test_a_response_agrees_with_itself(case):
    row, block_size = case
    found = agreement(row, row, block_size, block_size)
    assert (found.num_identical, found.equal_share, found.first_difference) == (1, 1.0, None)
    assert found.order_agreement in (1.0, None)
    assert found.same_order + found.together == pairs_in_blocks(row, block_size)


@given(rows(), rows())
def test_agreement_has_no_direction(first, second):
    there = agreement(first[0], second[0], first[1], second[1])
    assert there == agreement(second[0], first[0], second[1], first[1])


def test_total_by_hand():
    pairs = [agreement(make_row((1, 2)), make_row((1, 3)), 4, 4), agreement(make_row(), make_row(), 4, 4)]
    found = total(pairs)
    assert (found.num_pairs, found.num_identical) == (2, 1)
    assert found.equal_share == (1 + 3) / (2 + 3)


# --- texts of tokens


def test_texts_are_from_the_tokenizer_that_the_ids_belong_to():
    tokenizer = load_tokenizer("story-mini")
    ids = tokenizer.encode(" so she has 15\n####")
    meta = replace(META, model="story-mini", tokenizer_fingerprint=tokenizer_fingerprint(tokenizer))
    found = token_texts([make_row((*ids, 0, 70_000))], meta)
    assert "".join(found.by_id[each] for each in ids) == " so she has 15\n####"
    assert found.by_id[0] == "<|endoftext|>"
    assert 70_000 not in found.by_id
    assert "story-mini" in found.source
    elsewhere = replace(meta, model="not/here")
    assert token_texts([make_row(ids)], elsewhere, "story-tokenizer").by_id.keys() == set(ids)


def test_without_a_tokenizer_characters_are_taken_where_that_is_unambiguous():
    spelt = make_row((5, 6, 5, 0), response_text="aba")
    assert token_texts([spelt], META).by_id == {5: "a", 6: "b"}
    for ambiguous in (make_row((5, 6, 5), response_text="abc"), make_row((5, 6), response_text="abc")):
        found = token_texts([spelt, ambiguous], META)
        assert found.by_id == {}
        assert "ids" in found.source


@pytest.mark.parametrize("tokenizer, said", [("nowhere", "give a folder"), ("story-mini", "not the tokenizer")])
def test_a_wrong_tokenizer_is_refused(tokenizer, said):
    with pytest.raises(RequestError, match=said):
        token_texts([make_row()], META, tokenizer)


# --- pages


def embedded(html):
    """The data inside a page."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html)
    return json.loads(text)


def test_data_cannot_become_markup():
    html = page("viewer", text=NASTY)
    assert embedded(html) == {"text": NASTY}
    assert html.count("<script") == page("viewer").count("<script")
    assert "alert(1)" in html  # as text


@pytest.mark.parametrize("name", PAGES)
def test_pages_may_load_nothing(name):
    html = page(name)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', html)
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert ("connect-src 'self'" in policy) == PAGES[name].may_connect
    assert re.findall(r'(?:src|href)="(.*?)"', html) == ["data:,"]


def test_pages_refuse_what_json_cannot_say():
    with pytest.raises(ValueError):
        page("viewer", confidence=float("nan"))


def test_page_data_keeps_large_seeds_and_unknown_confidences(tmp_path):
    write(tmp_path / "a", [make_row(confidence=[0.12345678, float("nan"), 1.0])], META)
    data = page_data(*open_sources(tmp_path / "a", None, 9), token_texts([], META))
    (row,) = json.loads(json.dumps(data, allow_nan=False))["files"][0]["rows"]
    assert row["seed"] == str(2**62 + 1)
    assert row["confidences"] == [0.1235, None, 1.0]
    assert row["tpf"] == 1.5  # 3 tokens, 2 forwards
    assert row["order"]["counts"] == [[0, 0, 1], [1, 1, 1], [3, 0, 1]]  # P = 3, B = 4: the first is alone in its block


# --- two files


def write_rows(folder, prompt_ids, meta=META, **changes):
    write(folder, [make_row(prompt_id=prompt_id, **changes) for prompt_id in prompt_ids], meta)
    return folder


def test_rows_are_matched_by_prompt_and_sample(tmp_path):
    one = write_rows(tmp_path / "one", "abcd")
    two = write_rows(tmp_path / "two", "dxbca", ids=(5, 6))
    source, other = open_sources(one, two, limit=3)
    assert [row.prompt_id for row in source.rows] == list("abc") == [row.prompt_id for row in other.rows]
    assert (source.num_rows, other.num_rows) == (4, 5)
    assert page_data(source, other, token_texts([], META))["agreement"]["equal_share"] == 2 / 3
    with pytest.raises(RequestError, match="no row of the same prompt_id"):
        open_sources(one, write_rows(tmp_path / "three", "abcd", sample=1), limit=3)


def test_files_of_one_name_are_told_apart(tmp_path):
    folders = [write_rows(tmp_path / side / "out", "a") for side in ("left", "right")]
    data = page_data(*open_sources(*folders, limit=1), token_texts([], META))
    assert [file["name"] for file in data["files"]] == [str(folder) for folder in folders]


# --- the command


def view(*arguments):
    return run(["view", *map(str, arguments)])


def test_view_writes_one_page(trajectory_folder, tmp_path, capsys):
    out = tmp_path / "new" / "page.html"
    assert view(trajectory_folder, "--out", out, "--limit", 5) == 0
    said = capsys.readouterr().out
    assert "the first 5 of 24 rows (--limit takes more)" in said
    data = embedded(out.read_text(encoding="utf-8"))
    expected = list(read(trajectory_folder))[:5]
    assert [row["ids"] for row in data["files"][0]["rows"]] == [row.response_ids for row in expected]
    assert [row["steps"] for row in data["files"][0]["rows"]] == [row.reveal_step for row in expected]


def test_with_another_file_the_limit_is_told_as_what_it_may_be(tmp_path, capsys):
    one, two = write_rows(tmp_path / "one", "abcd"), write_rows(tmp_path / "two", "abx")
    for limit, told in ((1, "1 of 4 rows, the first that"), (3, "2 of 4 rows, those that")):
        assert view(one, "--against", two, "--limit", limit, "--out", tmp_path / "page.html") == 0
        said = capsys.readouterr().out
        assert f"{told} {two} has too" in said
        assert ("(a higher --limit may take more)" in said) == (limit == 1)


def test_view_reads_a_single_file(trajectory_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert view(trajectory_folder / "shard-00001.parquet") == 0
    assert "all 8 rows" in capsys.readouterr().out
    assert (tmp_path / "shard-00001.html").exists()


def test_rows_of_one_prompt_are_all_shown(tmp_path, capsys):
    folder = write_rows(tmp_path / "twice", "aab")
    assert view(folder, "--out", tmp_path / "page.html") == 0
    assert "all 3 rows" in capsys.readouterr().out


def test_wrong_requests_are_one_line_and_leave_nothing(trajectory_folder, tmp_path, capsys):
    strange = write_rows(tmp_path / "strange", "a", meta=replace(META, tokenizer_fingerprint="other"))
    empty = write_rows(tmp_path / "empty", "")
    damaged = write_rows(tmp_path / "damaged", "a")
    shard = damaged / "shard-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-9])
    before = sorted(tmp_path.iterdir())
    for arguments, said in (
        ((tmp_path / "nowhere",), "does not exist"),
        ((damaged,), "is damaged"),
        ((empty,), "holds no rows"),
        ((trajectory_folder, "--against", strange), "tokenizer"),
        ((trajectory_folder, "--against", tmp_path / "nowhere"), "does not exist"),
        ((trajectory_folder, "--tokenizer", "nowhere"), "--tokenizer nowhere"),
        ((trajectory_folder, "--limit", 0), "--limit"),
    ):
        assert view(*arguments, "--out", tmp_path / "new" / "page.html") == 2, said
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    for out in (tmp_path, shard):
        assert view(trajectory_folder, "--out", out) == 2
        assert "ends in .html" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("opens", [True, False])
def test_the_page_is_opened_if_asked(trajectory_folder, tmp_path, capsys, monkeypatch, opens):
    asked = []
    monkeypatch.setattr("webbrowser.open", lambda address: asked.append(address) or opens)
    out = tmp_path / "a page.html"
    assert view(trajectory_folder, "--out", out, "--open") == 0
    assert asked == [out.as_uri()]
    assert ("no browser" in capsys.readouterr().err) != opens


def test_a_full_or_forbidden_disk_is_one_line(trajectory_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert view(trajectory_folder, "--out", tmp_path / "file" / "page.html") == 1
    assert "cannot write" in capsys.readouterr().err


def test_writing_again_gives_the_same_page(trajectory_folder, tmp_path):
    pages = [tmp_path / name for name in ("one.html", "two.html")]
    for each in pages:
        write_view(trajectory_folder, each, against=trajectory_folder)
    assert pages[0].read_bytes() == pages[1].read_bytes()
