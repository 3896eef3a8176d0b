"""Where prompts come from: rendering, prompt files and the registered tasks."""

import json

import pytest

from t3d.errors import RequestError
from t3d.tasks import TASKS, get_task
from t3d.tasks.prompts import read_prompts, render_question, render_response
from t3d.types import Prompt


def _write(tmp_path, *lines):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


def test_rendering():
    assert render_question("How many?") == "Question: How many?\nAnswer:"
    assert render_response("Two.") == " Two."


def test_reads_every_accepted_form(tmp_path):
    rows = [
        {"id": "a", "prompt": "As it is", "answer": "4"},
        {"task_id": "b", "question": "How many?", "answer": 42},
        {"id": 7, "question": "Wörld\u2028?", "other": [1]},
        {"id": None, "prompt": None, "question": "No id", "answer": None},
    ]
    path = _write(tmp_path, *(json.dumps(row, ensure_ascii=False) for row in rows[:3]), "", json.dumps(rows[3]), "")
    assert read_prompts(path) == [
        Prompt("a", "As it is", "4"),
        Prompt("b", "Question: How many?\nAnswer:", "42"),
        Prompt("7", "Question: Wörld\u2028?\nAnswer:", None),
        Prompt("p/5", "Question: No id\nAnswer:", None),
    ]


def test_accepts_windows_files(tmp_path):
    path = _write(tmp_path, b'\xef\xbb\xbf{"prompt": "a"}\r', b'{"prompt": "b"}\r', b"")
    assert [prompt.text for prompt in read_prompts(str(path))] == ["a", "b"]


def test_questions_go_through_the_given_rendering(tmp_path):
    path = _write(tmp_path, '{"question": "q"}', '{"prompt": "p"}')
    assert [prompt.text for prompt in read_prompts(path, render=lambda q: f"<{q}>")] == ["<q>", "p"]


GOOD = '{"id": "a", "prompt": "x"}'


@pytest.mark.parametrize(
    "lines, message",
    [
        ([""], "holds no prompts; write one JSON object a line"),
        (["", "  ", ""], "holds no prompts"),
        ([GOOD, '{"prompt": '], "line 2: not JSON"),
        ([GOOD, "", "hello"], "line 3: not JSON"),
        (["[" * 100_000], "line 1: not JSON"),
        (["9" * 5000], "line 1: not JSON"),
        (["[1, 2]"], "line 1: not a JSON object"),
        ([GOOD, '{"id": "b"}'], "line 2: give either `prompt` or `question`, not neither"),
        (['{"prompt": "x", "question": "y"}'], "line 1: give either `prompt` or `question`, not both"),
        (['{"prompt": 3}'], "line 1: `prompt` must be text"),
        (['{"question": "  "}'], "line 1: `question` must be text that is not blank"),
        ([GOOD, '{"id": "b", "prompt": "y"}', GOOD], "line 3: id 'a' is already used in line 1"),
        (['{"id": 1, "prompt": "x"}', '{"task_id": "1", "prompt": "y"}'], "line 2: id '1' is already used in line 1"),
        (['{"id": ["a"], "prompt": "x"}'], "line 1: `id` must be text or a number"),
        (['{"id": "", "prompt": "x"}'], "line 1: `id` must be text or a number"),
        (['{"prompt": "x", "answer": true}'], "line 1: `answer` must be text or a number, not true"),
        ([GOOD, b'{"prompt": "\xff"}'], "line 2: not UTF-8"),
    ],
)
def test_wrong_files_say_where_and_what_to_do(tmp_path, lines, message):
    path = _write(tmp_path, *lines)
    with pytest.raises(RequestError) as caught:
        read_prompts(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(RequestError, match="cannot read prompts from"):
            read_prompts(path)


# Every registered task


@pytest.mark.parametrize("name", sorted(TASKS))
def test_task_contract(name):
    task = get_task(name)
    assert task.name == name
    prompts, documents = task.prompts("test", 20, 3), task.documents("test", 20, 3)
    assert prompts == [prompt for prompt, _ in documents] == task.prompts("test", 40, 3)[:20]
    assert len({prompt.prompt_id for prompt in prompts}) == 20
    for prompt, response in documents:
        assert task.grade(response, prompt.answer)
    for call in (task.prompts, task.documents):
        with pytest.raises(RequestError, match=r"unknown split 'dev'.*train, validation, test"):
            call("dev", 1, 0)
        with pytest.raises(RequestError, match="count must be 0 or more, not -1"):
            call("test", -1, 0)


def test_prompt_ids_name_their_source():
    assert [p.prompt_id for p in get_task("story").prompts("test", 2, 17)] == [
        "story/test/17/0",
        "story/test/17/1",
    ]


def test_unknown_task_lists_the_known():
    with pytest.raises(RequestError, match="unknown task 'gsm9k': choose one of story"):
        get_task("gsm9k")
