"""The pictures of docs/concepts.md: current, small, and true to arithmetic done here a second time."""

import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from t3d.engine import Engine
from t3d.types import Decoding

DOCS = Path(__file__).parent.parent / "docs"
DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"
LARGEST = 60_000
"""Bytes."""


@pytest.fixture(scope="module")
def facts():
    """Picture -> what the package's functions say now."""
    sys.path.insert(0, str(DOCS / "pictures"))
    try:
        from facts import FACTS
    finally:
        sys.path.pop(0)
    return {name: json.loads(json.dumps(make())) for name, make in FACTS.items()}


def drawn(name):
    """What a committed picture says that it shows."""
    tree = ElementTree.parse(DOCS / f"concept-{name}.svg")
    (description,) = tree.iter(DESCRIPTION)
    return json.loads(description.text)


def test_the_committed_pictures_show_what_the_package_does(facts):
    assert {file.name for file in DOCS.glob("concept-*.svg")} == {f"concept-{name}.svg" for name in facts}
    for name, now in facts.items():
        assert drawn(name) == now, f"{name}: python docs/pictures/make.py"


def test_pictures_are_small_and_used():
    page = (DOCS / "concepts.md").read_text()
    for file in DOCS.glob("concept-*.svg"):
        assert file.stat().st_size < LARGEST
        assert f"]({file.name})" in page
        assert not re.search(r"\b(?:href|src)=\"http", file.read_text())


def test_attention_by_hand(facts):
    """B = 4, five prompt tokens: the noisy copy begins at position 4."""
    attention = facts["attention"]
    places = [(0, position) for position in range(12)] + [(1, position) for position in range(4, 12)]
    assert list(zip(attention["training_is_noisy"], attention["training_positions"], strict=True)) == places
    for row, (noisy, position) in enumerate(places):
        for column, (other_noisy, other) in enumerate(places):
            same, earlier = other // 4 == position // 4, other // 4 < position // 4
            sees = (same if other_noisy else earlier) if noisy else (not other_noisy and (same or earlier))
            assert attention["training"][row][column] == sees
    assert attention["decoding"] == [[column // 4 <= row // 4 for column in range(12)] for row in range(12)]


def test_hidden_are_the_last_revealed_of_each_block(facts):
    """By sorting, without `t3d.corruption`: floor(r n) of the n response tokens of a block."""
    hiding, teacher = facts["hiding"], facts["trajectory"]["answers"][0]
    assert hiding["tokens"] == teacher["tokens"]
    for row in hiding["rows"]:
        expected = []
        for start in range(0, 12, 4):
            members = [place for place in range(start, start + 4) if teacher["steps"][place] > 0]
            members.sort(key=lambda place: teacher["steps"][place], reverse=row["mask_order"] == "trajectory")
            expected += members[: int(row["ratio"] * len(members))]
        assert row["loss"] == sorted(expected)
        for place, token in enumerate(row["tokens"]):
            assert place in row["loss"] or token == hiding["tokens"][place]
        assert sum(row["tokens"][place] is not None for place in row["loss"]) == round(0.1 * len(expected))


def test_a_state_on_the_trajectory_is_one_that_decoding_was_in(facts):
    """What each row of the first picture shows of a block at some step, the second shows as its rest at some ratio."""
    answer = facts["trajectory"]["answers"][0]
    was = {
        (start, tuple(step <= now for step in answer["steps"][start : start + 4]))
        for start in range(0, 12, 4)
        for now in range(max(answer["steps"]) + 1)
    }
    for row in facts["hiding"]["rows"]:
        states = {
            (start, tuple(place not in row["loss"] for place in range(start, start + 4))) for start in range(0, 12, 4)
        }
        assert (states <= was) == (row["mask_order"] == "trajectory")


def test_the_budget_counts_forwards(facts):
    engine = Engine.from_pretrained("story-mini-student", device="cpu")
    for row in facts["budget"]["rows"]:
        question = sys.modules["facts"].QUESTION
        decoding = Decoding(steps_per_block=4 // row["tokens_per_step"], max_new_tokens=160)
        (answer,) = engine.generate_text([question], decoding)
        assert (len(answer.token_ids), answer.num_forwards) == (row["num_tokens"], row["num_forwards"])
        first, last = len(answer.prompt_ids), len(answer.prompt_ids) + len(answer.token_ids) - 1
        blocks = last // 4 - first // 4 + 1
        assert row["num_forwards_unfused"] == row["num_forwards"] + blocks - 1  # the last block needs no cache


def test_the_objective_by_hand(facts):
    """beta = 0.1, alpha = 0.5; levels of k tokens each, the mean over levels of the mean over the covered."""
    objective = facts["objective"]
    for gap, real, fake in zip(objective["gaps"], *objective["terms"].values(), strict=True):
        sigma = torch.sigmoid(torch.tensor(0.1 * gap, dtype=torch.float64))
        assert real == pytest.approx(-sigma.log().item(), abs=1e-4)
        assert fake == pytest.approx(-0.5 * (1 - sigma).log().item(), abs=1e-4)
    for k, weights in objective["path_weights"].items():
        levels = [(level + 1) * int(k) for level in range(8 // int(k))]
        by_hand = [sum(1 / end for end in levels if rank < end) / len(levels) for rank in range(8)]
        assert weights == pytest.approx(by_hand, abs=1e-4)
