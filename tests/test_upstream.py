"""Rollouts of the public T3D code become trajectories that mean the same, or are refused and counted."""

import json
import math
from copy import deepcopy
from pathlib import Path

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.cli import run
from t3d.config import PromptConfig
from t3d.engine import Engine
from t3d.errors import RequestError, WorkError
from t3d.interop.upstream.json_rows import BrokenFileError, read_entries
from t3d.interop.upstream.rollouts import convert_rollouts, load_vocabulary, tally_file
from t3d.interop.upstream.rows import RowConverter
from t3d.interop.upstream.steps import check_blocks, numbered_through, per_block
from t3d.interop.upstream.tally import DESCRIBED, REFUSALS, REPAIRS, RefusedError, Tally
from t3d.tasks import get_task, take_problems
from t3d.tasks.prompts import put_questions
from t3d.trajectories import read, read_meta, rollout
from t3d.trajectories.schema import rows_to_table
from t3d.types import Decoding

MODEL = "story-mini"
FULL_STEP = Decoding(block_size=4, steps_per_block=4)


@pytest.fixture(scope="module")
def vocabulary():
    return load_vocabulary(MODEL)


@pytest.fixture(scope="module")
def engine():
    return Engine.from_pretrained(MODEL, device="cpu")


def own_rollout(engine, folder, decoding, samples=1):
    task = get_task("story", None)
    asked = put_questions(task, take_problems(task, "train", 12, None, 0), PromptConfig(), engine.tokenizer)
    rollout(engine, asked.prompts, decoding, folder, model_name=MODEL, samples=samples, shown=False)
    return list(read(folder))


def as_upstream(rows, tokenizer):
    """Our rows as the public code writes them: one entry a prompt, all its answers in it."""
    entries = {}
    for row in rows:
        known = {"question": "?", "prompt": row.prompt_text, "ground_truth_answer": row.answer}
        entry = entries.setdefault(row.prompt_id, {**known, "full_output": [], "step_map": []})
        entry["full_output"].append(tokenizer.decode(list(row.response_ids)))
        entry["step_map"].append(list(row.reveal_step))
    return list(entries.values())


def facts(row):
    """All of a row that the public code's file holds."""
    lists = (row.prompt_ids, row.response_ids, row.reveal_step)
    return row.sample, *map(list, lists), row.finish_reason, row.prompt_text, row.response_text, row.answer


def written(folder, entries):
    file = folder / "rollouts.json"
    file.write_text(entries if isinstance(entries, str) else json.dumps(entries, indent=2, ensure_ascii=False))
    return file


# --- two ways to the same rows ---


@pytest.mark.parametrize("name", ["full_output", "answer"])
def test_what_we_write_as_the_public_code_does_comes_back_the_same(tmp_path, engine, name):
    ours = own_rollout(engine, tmp_path / "ours", Decoding(temperature=0.7, max_new_tokens=60), samples=2)
    entries = [
        {name if key == "full_output" else key: each[key] for key in each}
        for each in as_upstream(ours, engine.tokenizer)
    ]
    tally = convert_rollouts(written(tmp_path, entries), tmp_path / "out", MODEL, FULL_STEP, shown=False)
    theirs = list(read(tmp_path / "out"))
    assert [facts(row) for row in theirs] == [facts(row) for row in ours]
    assert tally.num_kept == 24
    assert tally.num_unfinished == sum(row.finish_reason == "length" for row in ours)
    assert not tally.repaired
    assert not tally.refused
    assert {row.finish_reason for row in ours} == {"stop", "length"}
    assert all(math.isnan(each) for row in theirs for each in row.confidence)
    meta = read_meta(tmp_path / "out")
    assert meta.tokenizer_fingerprint == read_meta(tmp_path / "ours").tokenizer_fingerprint
    assert (meta.mask_token_id, meta.eos_token_ids) == (engine.mask_token_id, tuple(engine.stop_token_ids))
    assert meta.prompt is None


def test_prompts_that_the_public_engine_wrote_over_are_refused(tmp_path, engine):
    """Two steps a block of 4 take two tokens each: 1 or 3 masks in the first block are not enough for that."""
    decoding = Decoding(block_size=4, steps_per_block=2, max_new_tokens=40)
    ours = own_rollout(engine, tmp_path / "ours", decoding)
    tally = convert_rollouts(
        written(tmp_path, as_upstream(ours, engine.tokenizer)), tmp_path / "out", MODEL, decoding, shown=False
    )
    safe = [facts(row) for row in ours if len(row.prompt_ids) % 4 in (0, 2)]
    assert 0 < len(safe) < len(ours)
    assert [facts(row) for row in read(tmp_path / "out")] == safe
    assert {kind: each.count for kind, each in tally.refused.items()} == {"overwritten": len(ours) - len(safe)}


def test_forwards_are_those_of_the_public_engine(vocabulary):
    """Prompt of 5, answer of 6 on blocks of 4: a prefill, 6 steps, and the keys of blocks 1 (3 tokens) and 2 (3)."""
    prompt = vocabulary.tokenizer.decode(vocabulary.tokenizer.encode("There are 32 shells")[:5])
    ids = vocabulary.tokenizer.encode(" There are 32 shells in the bag")[:6]
    (row,) = kept(
        vocabulary,
        {"prompt": prompt, "full_output": [vocabulary.tokenizer.decode(ids)], "step_map": [[3, 1, 2, 4, 5, 6]]},
    )
    assert len(row.prompt_ids) == 5
    assert row.num_forwards == 1 + 6 + 2


def test_prompts_end_as_the_public_template_let_them(vocabulary):
    """Its `sdar_sample.py` renders a template that ends in a newline, which jinja2 drops; ours keeps what was seen."""
    template = "<|im_start|>user\n{{problem}}<|im_end|>\n<|im_start|>assistant\n"
    seen = jinja2.Template(template).render(problem="1+1?")
    assert seen == "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant"
    (row,) = kept(vocabulary, changed(good_entry(vocabulary), prompt=seen, **whole_answer(vocabulary)))
    assert row.prompt_text == seen
    assert vocabulary.tokenizer.decode(row.prompt_ids) == seen


def whole_answer(vocabulary):
    """Left to right, one token a step: fits blocks wherever the prompt ends."""
    ids = vocabulary.tokenizer.encode("\nIt is 2.<|endoftext|>")
    return {"full_output": [vocabulary.tokenizer.decode(ids)], "step_map": [[*range(1, len(ids) + 1)]]}


# --- steps ---


def test_steps_by_block():
    assert per_block([1, 2, 3, 4, 5, 6], prompt_length=7, block_size=4) == [[1], [2, 3, 4, 5], [6]]
    assert per_block([1, 2, 3], prompt_length=8, block_size=4) == [[1, 2, 3]]


def test_steps_counted_in_each_block_are_numbered_through():
    assert numbered_through([[1], [2, 1, 3, 4], [1, 2]], 4) == [[1], [3, 2, 4, 5], [6, 7]]
    assert numbered_through([[1], [3, 2, 4, 5], [6, 7]], 4) is None
    assert numbered_through([[2, 1, 3, 4], [1, 2]], 4) is None, "two blocks might be somebody else's"


@pytest.mark.parametrize(
    ("blocks", "steps_per_block", "rule", "kind"),
    [
        ([[2, 1, 3, 4], [5, 6, 8, 7], [10, 9]], 4, "low_confidence_static", None),
        ([[1, 1, 2, 2], [4, 3, 4, 3]], 2, "low_confidence_static", None),
        ([[1, 1, 1, 2], [3, 4, 4]], 4, "low_confidence_dynamic", None),
        ([[1, 2, 3, 4], [4, 5, 6, 7]], 4, "low_confidence_static", "order"),
        ([[1, 2, 3, 5], [6, 7, 8, 9]], 4, "low_confidence_static", "jump"),
        ([[1, 2, 3, 4], [9, 10, 11, 12]], 4, "low_confidence_static", "jump"),
        ([[2, 3, 4, 5], [6, 7, 8, 9]], 4, "low_confidence_static", "jump"),
        ([[1, 1, 1, 2], [3, 3, 4, 4]], 2, "low_confidence_static", "quota"),
        ([[1, 1, 2, 2], [3, 3, 4, 4]], 4, "low_confidence_static", "quota"),
        ([[1, 1, 1, 2], [3, 3, 4, 4]], 2, "low_confidence_dynamic", "overwritten"),
    ],
)  # fmt: skip
def test_steps_that_decoding_cannot_give(blocks, steps_per_block, rule, kind):
    decoding = Decoding(block_size=4, steps_per_block=steps_per_block, rule=rule)
    if kind is None:
        check_blocks(blocks, 8, decoding)
        return
    with pytest.raises(RefusedError) as refused:
        check_blocks(blocks, 8, decoding)
    assert refused.value.kind == kind


# --- every kind of damage ---


def good_entry(vocabulary, end="<|endoftext|>"):
    text = " She has 64 shells and 3 boxes." + end
    steps = [*range(1, len(vocabulary.tokenizer.encode(text)) + 1)]
    return {
        "question": "?",
        "prompt": "Question: Anna has 32 shells.\nAnswer:",
        "full_output": [text],
        "step_map": [steps],
    }


def kept(vocabulary, *entries, on_damage="repair", decoding=FULL_STEP):
    converter = RowConverter(vocabulary, decoding, on_damage)
    return [row for number, entry in enumerate(entries) for row in converter.convert(entry, number)]


def outcome(vocabulary, entry, on_damage="repair"):
    """(rows kept, kinds of repairs, kinds of refusals, kinds of doubts)."""
    converter = RowConverter(vocabulary, FULL_STEP, on_damage)
    rows, tally = list(converter.convert(entry, 0)), converter.tally
    return rows, [*tally.repaired], [*tally.refused], [*tally.doubted]


def changed(entry, **fields):
    return {key: value for key, value in {**entry, **fields}.items() if value is not ...}


def refusals(vocabulary):
    """(kind, entry) for every kind that one entry alone can have."""
    good = good_entry(vocabulary)
    text, steps = good["full_output"][0], good["step_map"][0]
    with_steps = lambda new: changed(good, step_map=[new])  # noqa: E731
    with_text = lambda new: changed(good, full_output=[new])  # noqa: E731
    letters = [each for letter in " shells" for each in vocabulary.tokenizer.encode(letter)]
    assert len(vocabulary.tokenizer.encode(" shells")) < len(letters)
    tokens = len(vocabulary.tokenizer.encode(" a<|mask|> b"))
    yield from (
        ("not_a_row", 7),
        ("not_a_row", [good]),
        ("no_prompt", changed(good, prompt=...)),
        ("no_prompt", changed(good, prompt=None)),
        ("no_prompt", changed(good, prompt="\ud800")),
        ("prompt_cut", changed(good, prompt="Anna <|pad|> has")),
        ("no_answers", changed(good, full_output=...)),
        ("no_answers", changed(good, full_output=[])),
        ("uneven", changed(good, full_output=[text, text])),
        ("not_text", with_text(None)),
        ("not_text", with_text(["a"])),
        ("empty", with_text("")),
        ("no_steps", changed(good, step_map=...)),
        ("no_steps", changed(good, step_map=[""])),
        ("no_steps", changed(good, step_map=[[]])),
        ("no_steps", changed(good, step_map=[None])),
        ("not_steps", with_steps("1 2 3")),
        ("not_steps", with_steps([*steps[:-1], None])),
        ("not_steps", with_steps([*steps[:-1], str(steps[-1])])),
        ("not_steps", with_steps([True, *steps[1:]])),
        ("not_steps", with_steps([1.5, *steps[1:]])),
        ("not_steps", with_steps([float("nan"), *steps[1:]])),
        ("not_steps", with_steps([[1], *steps[1:]])),
        ("no_unicode", with_text(text.replace("64", "6\ufffd"))),
        ("no_unicode", with_text(text.replace("64", "6\udc00"))),
        ("slipped", with_steps(steps[:-1])),
        ("slipped", with_steps([*steps, steps[-1] + 1])),
        ("slipped", changed(good, full_output=[" shells"], step_map=[[*range(1, len(letters) + 1)]])),
        ("slipped", changed(good, full_output=[text + " more"])),
        ("mask_tokens", changed(good, full_output=[" a<|mask|> b"], step_map=[[*range(1, tokens + 1)]])),
        ("no_step", with_steps([0, *steps[1:]])),
        ("no_step", with_steps([*steps[:3], -1, *steps[4:]])),
        ("order", with_steps([*steps[:-1], 1])),
        ("jump", with_steps([*steps[:-1], 999999])),
        ("jump", with_steps([step * 10 for step in steps])),
        ("jump", with_steps([10**30, *steps[1:]])),
        ("quota", with_steps([1, 1, *[step - 1 for step in steps[2:]]])),
    )  # fmt: skip


def test_damage_is_refused_by_name(vocabulary):
    assert outcome(vocabulary, good_entry(vocabulary))[1:] == ([], [], [])
    seen = set()
    for kind, entry in refusals(vocabulary):
        rows, _, refused, _ = outcome(vocabulary, entry)
        assert (rows, refused) == ([], [kind]), entry
        seen.add(kind)
    elsewhere = {"overwritten", "duplicate", "cut_off", "changed_text", "token_zero"}
    assert seen | elsewhere == set(REFUSALS)


def repairs(vocabulary):
    """(kind, entry, tokens that are left) for every kind of repair."""
    good = good_entry(vocabulary)
    text, steps = good["full_output"][0], good["step_map"][0]
    length, then = len(steps), [len(steps) + 1, len(steps) + 2]
    remainder = len(vocabulary.tokenizer.encode(good["prompt"])) % 4
    counted = [(remainder + place) % 4 + 1 if place >= 4 - remainder else place + 1 for place in range(length)]
    yield from (
        ("no_list", changed(good, full_output=text), length),
        ("no_list", changed(good, step_map=steps), length),
        ("whole_numbers", changed(good, step_map=[[float(step) for step in steps]]), length),
        ("cut_at_stop", changed(good, full_output=[text + " So"], step_map=[[*steps, then[0]]]), length),
        ("cut_at_stop", changed(good, full_output=[text + "<|mask|><|pad|>"], step_map=[[*steps, 0, -1]]), length),
        ("tail_without_steps", changed(good, full_output=[text + "<|mask|><|mask|>"]), length),
        ("tail_without_steps", changed(good, full_output=[text + "<|endoftext|>" * 3]), length),
        ("counted_per_block", changed(good, step_map=[counted]), length),
    )


def test_damage_that_leaves_no_doubt_is_repaired(vocabulary):
    expected = facts(kept(vocabulary, good_entry(vocabulary))[0])
    seen = set()
    for kind, entry, length in repairs(vocabulary):
        rows, repaired, refused, _ = outcome(vocabulary, entry)
        assert (repaired, refused) == ([kind], []), entry
        assert facts(rows[0]) == expected
        assert len(rows[0].response_ids) == length
        assert outcome(vocabulary, entry, "refuse")[:3] == ([], [], [kind])
        with pytest.raises(RequestError, match=r"row 0: .*--on-damage repair"):
            outcome(vocabulary, entry, "stop")
        seen.add(kind)
    assert seen == set(REPAIRS)


def test_copies_of_rows_are_left_out_and_equal_samples_of_one_row_are_not(vocabulary):
    good = good_entry(vocabulary)
    twice = changed(good, full_output=good["full_output"] * 2, step_map=good["step_map"] * 2)
    assert [(row.prompt_id, row.sample) for row in kept(vocabulary, twice, good)] == [("0", 0), ("0", 1)]


def test_a_copy_of_what_was_refused_is_kept(vocabulary):
    good = good_entry(vocabulary)
    repaired = changed(good, step_map=[[float(step) for step in good["step_map"][0]]])
    assert [row.prompt_id for row in kept(vocabulary, repaired, good, on_damage="refuse")] == ["1"]
    assert [row.prompt_id for row in kept(vocabulary, repaired, good)] == ["0"]


def test_tokens_that_became_token_zero(vocabulary):
    """The built-in tokenizer's token 0 is its stop token; of most vocabularies, and here, it is a word."""
    word = type(vocabulary)(vocabulary.tokenizer, vocabulary.mask_token_id, frozenset({5}))
    inside, first = good_entry(vocabulary, end="<|endoftext|> so"), good_entry(vocabulary, end="")
    first["full_output"][0] = "<|endoftext|>" + first["full_output"][0]
    first["step_map"] = [[*range(1, len(first["step_map"][0]) + 2)]]
    assert outcome(word, first)[1:] == ([], ["token_zero"], [])
    rows, _, refused, doubted = outcome(word, inside)
    assert (len(rows), refused, doubted) == (1, [], ["token_zero_inside"])
    assert outcome(word, inside, "refuse")[2] == ["token_zero_inside"]


def test_another_tokenizer_shows(vocabulary, monkeypatch):
    monkeypatch.setattr(type(vocabulary.tokenizer), "decode", lambda *_, **__: "other")
    assert outcome(vocabulary, good_entry(vocabulary))[2] == ["changed_text"]


def test_lost_answers_say_that_others_are_at_wrong_prompts():
    tally = Tally()
    for place in range(9):
        tally.refuse(("order", "jump", "quota")[place % 3], str(place))
    assert tally.likely_misplaced(4) == 0, "no answer was lost"
    tally.refuse("empty", "9")
    assert tally.likely_misplaced(4) == 3  # of four remainders three show: 9 are three quarters of 12


# --- files ---


def test_rows_are_read_one_by_one_whatever_the_size_of_a_piece(tmp_path, monkeypatch):
    rows = [{"a": 'é\n\\" [,]{}'}, 12, [1, [2]], "x" * 50, None, -1.5e3]
    file = written(tmp_path, rows)
    for size in (1, 2, 7, 1000):
        monkeypatch.setattr("t3d.interop.upstream.json_rows.CHARACTERS", size)
        told = []
        assert list(read_entries(file, told.append)) == rows
        assert sum(told) == file.stat().st_size
        assert 0 not in told, "the end of the file is no progress, and would be shown again"
    assert list(read_entries(written(tmp_path, "[ ]"))) == []
    assert list(read_entries(written(tmp_path, ' {"a": 1} '))) == [{"a": 1}]


@pytest.mark.parametrize(
    "text",
    ["", "x", "3", '"a"', "[1", "[1,", "[1,]", "[1 2]", "[1]]", "[1][", "{", "[" * 99_999, "[" + "9" * 9999 + "]"],
)
def test_broken_files_are_told(tmp_path, text):
    with pytest.raises(BrokenFileError):
        list(read_entries(written(tmp_path, text)))


def test_a_file_that_breaks_off_gives_its_whole_rows(tmp_path, vocabulary):
    good = good_entry(vocabulary)
    rows = [changed(good, prompt=f"Anna has {number} shells.") for number in range(3)]
    whole = json.dumps(rows)
    file = written(tmp_path, whole[: len(whole) - 40])
    tally = convert_rollouts(file, tmp_path / "out", MODEL, FULL_STEP, shown=False)
    assert (tally.num_kept, tally.refused["cut_off"].first) == (2, ["2"])
    assert [row.prompt_id for row in read(tmp_path / "out")] == ["0", "1"]
    with pytest.raises(RequestError, match=r"rollouts\.json: row 2: file breaks off"):
        convert_rollouts(file, tmp_path / "stopped", MODEL, FULL_STEP, "stop", shown=False)
    assert not (tmp_path / "stopped").exists()


@pytest.mark.parametrize("content", [b"", b"no JSON", b"\xff\xfe[", b"[", b"3", b"[3, {}]"])
def test_what_is_no_rollout_file_is_refused_whole(tmp_path, content):
    file = tmp_path / "rollouts.json"
    file.write_bytes(content)
    with pytest.raises(RequestError, match=r"rollouts\.json: .*sdar_sample"):
        convert_rollouts(file, tmp_path / "out", MODEL, FULL_STEP, shown=False)
    with pytest.raises(RequestError, match="cannot be read"):
        convert_rollouts(tmp_path / "missing.json", tmp_path / "out", MODEL, FULL_STEP, shown=False)
    assert not (tmp_path / "out").exists()


def test_a_file_of_which_nothing_can_be_kept_writes_nothing(tmp_path, vocabulary):
    entry = changed(good_entry(vocabulary), full_output=[""])
    with pytest.raises(WorkError, match='no answer can be kept: refused 1 answer is ""'):
        convert_rollouts(written(tmp_path, [entry]), tmp_path / "out", MODEL, FULL_STEP, shown=False)
    assert not (tmp_path / "out").exists()


def test_the_command_counts_all_kinds(tmp_path, capsys, vocabulary):
    entries = [entry for _, entry, _ in repairs(vocabulary)] + [entry for _, entry in refusals(vocabulary)]
    for number, entry in enumerate(entries):  # else the repaired ones are copies of each other
        if isinstance(entry, dict) and str(entry.get("prompt")).startswith("Q"):
            entry["prompt"] = entry["prompt"].replace("32", str(10 + number))
    file = tmp_path / "rollouts.json"
    file.write_bytes(json.dumps(entries).encode())
    options = ["--out", str(tmp_path / "out"), "--model", MODEL]
    assert run(["convert", "upstream-rollouts", str(file), *options]) == 0
    printed, counts = capsys.readouterr().out, json.loads((tmp_path / "out.conversion.json").read_text())
    assert f"the counts are in {tmp_path / 'out.conversion.json'}\n" in printed
    assert counts["rows"] == len(entries)
    assert counts["kept"] == len(list(repairs(vocabulary))) == len(list(read(tmp_path / "out")))
    assert set(counts["repaired"]) == set(REPAIRS)
    for group in ("repaired", "refused"):
        for kind, cases in counts[group].items():
            assert f"{cases['count']}  {DESCRIBED[kind]} (row {', '.join(cases['first'])})" in printed
    assert sum(each["count"] for each in counts["refused"].values()) == len(list(refusals(vocabulary)))
    assert "or more of those kept probably stand at others' prompts" in printed
    assert run(["convert", "upstream-rollouts", str(file), *options]) == 2, "the folder is not empty"
    assert run(["convert", "upstream-rollouts", str(file), "--out", str(tmp_path / "o"), "--on-damage", "guess"]) == 2


@pytest.mark.parametrize("here", [".", "../out", "..//out/", "below/.."])
def test_the_counts_lie_beside_the_folder_however_it_is_named(tmp_path, monkeypatch, here):
    (tmp_path / "out" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "out")
    assert tally_file(Path(here)).resolve() == tmp_path / "out.conversion.json"


def test_counts_that_cannot_be_written_are_told(tmp_path, vocabulary):
    (tmp_path / "out.conversion.json").mkdir()
    with pytest.raises(WorkError, match=r"cannot write .*out\.conversion\.json"):
        convert_rollouts(written(tmp_path, [good_entry(vocabulary)]), tmp_path / "out", MODEL, FULL_STEP, shown=False)


# --- any damage ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.text(max_size=8) | st.integers(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def damaged_entries(draw, good):
    """An entry with other values in some of its fields, or with other steps or other text at some places."""
    entry = deepcopy(good)
    for _ in range(draw(st.integers(0, 2))):
        where = draw(st.sampled_from(["field", "step", "text", "length"]))
        text, steps = entry.get("full_output"), entry.get("step_map")
        if where == "field":
            entry[draw(st.sampled_from(sorted(entry)))] = draw(JSON)
        elif not (isinstance(text, list) and text and isinstance(text[0], str)):
            continue
        elif where == "text":
            place = draw(st.integers(0, len(text[0])))
            new = draw(
                st.sampled_from(["", "<|endoftext|>", "<|mask|>", "<|pad|>", " 7", "\ufffd", "é"]) | st.text(max_size=3)
            )
            text[0] = text[0][:place] + new + text[0][place + draw(st.integers(0, 3)) :]
        elif isinstance(steps, list) and steps and isinstance(steps[0], list) and steps[0]:
            place = draw(st.integers(0, len(steps[0]) - 1))
            steps[0][place : place + (where == "length")] = [draw(st.integers(-1, 30))] * draw(st.integers(0, 2))
    return entry


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_damage_gives_valid_rows_or_a_counted_refusal(vocabulary, data):
    entries = data.draw(st.lists(damaged_entries(good_entry(vocabulary)) | JSON, min_size=1, max_size=3))
    converter = RowConverter(vocabulary, FULL_STEP, data.draw(st.sampled_from(["repair", "refuse"])))
    for number, entry in enumerate(entries):
        refused_before = sum(each.count for each in converter.tally.refused.values())
        rows = list(converter.convert(entry, number))
        refused = sum(each.count for each in converter.tally.refused.values()) - refused_before
        answers = entry.get("full_output", entry.get("answer")) if isinstance(entry, dict) else None
        several = isinstance(answers, list) and len(answers) > 1
        assert len(rows) + refused == 1 or several
        for row in rows:
            assert vocabulary.tokenizer.encode(row.prompt_text) == row.prompt_ids
            text = answers[row.sample] if isinstance(answers, list) else answers
            assert vocabulary.tokenizer.encode(text)[: len(row.response_ids)] == row.response_ids
            assert vocabulary.mask_token_id not in row.response_ids
            first = [*row.response_ids, *vocabulary.stop_token_ids].index(*vocabulary.stop_token_ids)
            assert first >= len(row.response_ids) - 1, "goes on behind the stop token"
            check_blocks(per_block(row.reveal_step, len(row.prompt_ids), 4), len(row.prompt_ids), FULL_STEP)
        rows_to_table(rows, _meta(), "here")
    assert set(converter.tally.refused) <= set(DESCRIBED)
    json.dumps(converter.tally.to_dict())


def _meta():
    from t3d.trajectories import TrajectoryMeta

    return TrajectoryMeta(MODEL, None, "0", 1, (0,), 4, 4, "low_confidence_static", 0.1, 0, 1.0, 0.9, 0.5, 64, 0, "0")
