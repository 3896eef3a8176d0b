"""Rendering: every form of a prompt, written out by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3d.cli_options import prompt_form_of
from t3d.config import DataConfig, PromptConfig
from t3d.errors import RequestError
from t3d.models import SDARConfig, load_tokenizer
from t3d.tasks import get_task
from t3d.tasks.prompts import (
    as_asked,
    put_questions,
    render,
    render_question,
    render_response,
    render_solution,
    resolve_form,
)
from t3d.tasks.story.examples import make
from t3d.training import load_rows
from t3d.types import Problem, Prompt

TEMPLATE = """\
{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nBe helpful.<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"""
HELPFUL = "<|im_start|>system\nBe helpful.<|im_end|>\n"
USER, ASSISTANT = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"

SUM = Problem("p", "What is 1 + 1?", answer="2")
HEAD = Problem("p", "Write f.", prefix="```python\ndef f():\n", solution="    return 2\n```")
TASK = PromptConfig(instruction="Think.")


@pytest.fixture(scope="module")
def plain():
    """A tokenizer without a chat template."""
    return load_tokenizer("story-tokenizer")


@pytest.fixture(scope="module")
def chat():
    """One with a template like Qwen's."""
    tokenizer = load_tokenizer("story-tokenizer")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def text(problem, asked, tokenizer, own=TASK):
    return render(problem, resolve_form(own, asked, tokenizer), tokenizer).text


CHATS = {
    "the task's instruction": ({}, SUM, f"{HELPFUL}{USER}What is 1 + 1?\nThink.{ASSISTANT}"),
    "another instruction": ({"instruction": "Guess."}, SUM, f"{HELPFUL}{USER}What is 1 + 1?\nGuess.{ASSISTANT}"),
    "no instruction": ({"instruction": ""}, SUM, f"{HELPFUL}{USER}What is 1 + 1?{ASSISTANT}"),
    "a system turn": (
        {"system": "Be short."},
        SUM,
        f"<|im_start|>system\nBe short.<|im_end|>\n{USER}What is 1 + 1?\nThink.{ASSISTANT}",
    ),
    "an empty system turn": (
        {"system": ""},
        SUM,
        f"<|im_start|>system\n<|im_end|>\n{USER}What is 1 + 1?\nThink.{ASSISTANT}",
    ),
    "the problem's prefix": ({}, HEAD, f"{HELPFUL}{USER}Write f.\nThink.{ASSISTANT}```python\ndef f():\n"),
    "a prefix around the problem's": (
        {"prefix": "Sure:\n{prefix}    "},
        HEAD,
        f"{HELPFUL}{USER}Write f.\nThink.{ASSISTANT}Sure:\n```python\ndef f():\n    ",
    ),
    "no prefix": ({"prefix": ""}, HEAD, f"{HELPFUL}{USER}Write f.\nThink.{ASSISTANT}"),
    "a variable of the template": (
        {"template_options": {"enable_thinking": False}},
        SUM,
        f"{HELPFUL}{USER}What is 1 + 1?\nThink.{ASSISTANT}<think>\n\n</think>\n\n",
    ),
}


@pytest.mark.parametrize("style", ["auto", "chat"])
@pytest.mark.parametrize("asked, problem, expected", CHATS.values(), ids=CHATS)
def test_chats(style, asked, problem, expected, chat):
    assert text(problem, PromptConfig(style=style, **asked), chat) == expected


PLAIN = {
    "the task's instruction goes into chats only": ({}, SUM, "Question: What is 1 + 1?\nAnswer:"),
    "an instruction": ({"instruction": "Guess."}, SUM, "Question: What is 1 + 1?\nGuess.\nAnswer:"),
    "no instruction": ({"instruction": ""}, SUM, "Question: What is 1 + 1?\nAnswer:"),
    "the problem's prefix": ({}, HEAD, "Question: Write f.\nAnswer: ```python\ndef f():\n"),
    "a prefix": ({"prefix": "So"}, HEAD, "Question: Write f.\nAnswer: So"),
    "no prefix": ({"prefix": ""}, HEAD, "Question: Write f.\nAnswer:"),
}


@pytest.mark.parametrize("asked, problem, expected", PLAIN.values(), ids=PLAIN)
def test_plain(asked, problem, expected, plain, chat):
    assert text(problem, PromptConfig(**asked), plain) == expected  # auto
    assert text(problem, PromptConfig(style="plain", **asked), chat) == expected
    assert text(problem, PromptConfig(**asked), None) == expected
    assert text(problem, PromptConfig(**asked), chat, own=PromptConfig(style="plain", instruction="Think.")) == expected


def test_raw_is_the_question_alone_and_a_prompt_is_used_as_it_is(plain, chat):
    for tokenizer in (plain, chat, None):
        assert text(HEAD, PromptConfig(style="raw"), tokenizer) == "Write f."
        form = resolve_form(TASK, PromptConfig(instruction="x"), tokenizer)
        prompt = render(replace(HEAD, rendered=True), form, tokenizer)
        assert prompt == Prompt("p", "Write f.", None)
    assert render(SUM, resolve_form(TASK, PromptConfig(), None), None).answer == "2"


def test_what_a_task_says_beyond_its_instruction_counts_until_something_else_is_asked(chat):
    own = PromptConfig(system="Own.", prefix="Own {prefix}", template_options={"enable_thinking": True, "x": 1})
    asked = PromptConfig(template_options={"enable_thinking": False})
    assert resolve_form(own, asked, chat) == PromptConfig(
        style="chat",
        instruction="",
        system="Own.",
        prefix="Own {prefix}",
        template_options={"enable_thinking": False, "x": 1},
    )
    assert resolve_form(own, PromptConfig(style="plain"), chat).system is None


FORMS = st.builds(
    PromptConfig,
    style=st.sampled_from(["auto", "chat", "plain"]),
    instruction=st.sampled_from([None, "", "Now."]),
    prefix=st.sampled_from([None, "", "So", "{prefix}", "So {prefix} then"]),
)


@given(own=FORMS, asked=FORMS)
def test_a_resolved_form_leaves_nothing_open_and_stays_as_it_is(own, asked):
    chat = load_tokenizer("story-tokenizer")
    chat.chat_template = TEMPLATE
    form = resolve_form(own, asked, chat)
    assert form.style in ("chat", "plain")
    assert None not in (form.instruction, form.prefix)
    for task in (own, asked, PromptConfig()):
        assert resolve_form(task, form, chat) == form
    for problem in (SUM, HEAD):
        assert render(problem, form, chat).text.endswith(as_asked(problem, form).prefix)


def test_graders_are_given_the_prefix_that_the_prompt_ends_in(plain):
    def prefix(problem, **asked):
        return as_asked(problem, resolve_form(TASK, PromptConfig(**asked), plain)).prefix

    assert prefix(HEAD) == HEAD.prefix
    assert prefix(HEAD, prefix="") == prefix(HEAD, style="raw") == prefix(replace(HEAD, rendered=True)) == ""
    assert prefix(HEAD, prefix="{prefix}    return") == "```python\ndef f():\n    return"
    assert prefix(SUM, prefix="{prefix}So") == "So"


def test_questions_are_problems_and_prompts_in_one_order(chat):
    task = get_task("story")
    problems = task.problems("test", 3)
    put = put_questions(task, problems, PromptConfig(style="chat", prefix="So"), chat)
    assert put.form == PromptConfig(style="chat", instruction="", prefix="So")
    assert put.problems == [replace(each, prefix="So") for each in problems]
    assert put.prompts == [render(each, put.form, chat) for each in problems]


def test_worked_answers_follow_their_prompts(plain, chat):
    solved = replace(SUM, solution="It is 2.")

    def document(problem, tokenizer, **asked):
        form = resolve_form(TASK, PromptConfig(**asked), tokenizer)
        return render(problem, form, tokenizer).text + render_solution(problem, form)

    assert document(solved, plain) == "Question: What is 1 + 1?\nAnswer: It is 2."
    assert document(replace(solved, solution=" It is 2."), plain) == "Question: What is 1 + 1?\nAnswer: It is 2."
    assert document(solved, chat) == f"{HELPFUL}{USER}What is 1 + 1?\nThink.{ASSISTANT}It is 2."
    assert document(solved, chat, style="raw") == "What is 1 + 1?It is 2."
    assert document(HEAD, plain) == "Question: Write f.\nAnswer: ```python\ndef f():\n    return 2\n```"
    assert document(HEAD, chat, prefix="Sure: {prefix}").endswith("Sure: ```python\ndef f():\n    return 2\n```")
    for asked in ({"prefix": ""}, {"prefix": "{prefix}    x"}, {"style": "raw"}):
        with pytest.raises(RequestError, match="goes on from the task's own prefix"):
            document(HEAD, plain, **asked)


def test_training_rows_are_prompts_and_worked_answers(chat, tmp_path):
    (tmp_path / "sums.jsonl").write_text('{"id": "s", "question": "1 + 1 = ?", "answer": 2, "solution": "1 + 1 = 2"}\n')
    (row,) = load_rows(
        DataConfig(task="jsonl", data=str(tmp_path / "sums.jsonl")),
        chat,
        SDARConfig(),
        PromptConfig(style="plain", instruction="Go."),
    )
    assert (row.row_id, chat.decode(row.prompt_ids)) == ("s", "Question: 1 + 1 = ?\nGo.\nAnswer:")
    assert chat.decode(row.response_ids) == f" 1 + 1 = 2{chat.eos_token}"
    rows = load_rows(DataConfig(task="story", count=5, seed=2), chat, SDARConfig(), PromptConfig())
    for row, example in zip(rows, make("train", 5, 2), strict=True):
        assert chat.decode(row.prompt_ids) == example.prompt
        assert chat.decode(row.response_ids) == example.response + chat.eos_token


REFUSALS = {
    "no template": ({"style": "chat"}, "prompt style chat: the tokenizer has no chat template; use plain or raw"),
    "no system turn": ({"system": "Hm."}, "prompt style plain has no system turn"),
    "raw with an instruction": ({"style": "raw", "instruction": "Go."}, "prompt style raw is the question alone"),
    "raw with a prefix": ({"style": "raw", "prefix": "So"}, "prompt style raw is the question alone"),
}


@pytest.mark.parametrize("asked, said", REFUSALS.values(), ids=REFUSALS)
def test_forms_that_cannot_be(asked, said, plain):
    for tokenizer in (plain, None):
        with pytest.raises(RequestError, match=said):
            resolve_form(TASK, PromptConfig(**asked), tokenizer)


def test_what_a_template_refuses_is_a_wrong_request():
    tokenizer = load_tokenizer("story-tokenizer")
    tokenizer.chat_template = "{{ raise_exception('no system turns, please') }}"
    with pytest.raises(RequestError, match="chat template refuses: no system turns, please"):
        text(SUM, PromptConfig(), tokenizer)


def test_plain_texts_by_hand():
    assert render_question("How many?") == "Question: How many?\nAnswer:"
    assert render_response("Two.") == " Two."


# What the command line asks for


def test_the_command_line_changes_what_a_recipe_says(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "model: {source: m}\nobjective: {name: sft}\ndata: {task: story}\noptim: {steps: 1}\nout: o\n"
        "prompt: {style: chat, instruction: Recipe., template_options: {enable_thinking: false}}\n"
    )
    recipe = PromptConfig(style="chat", instruction="Recipe.", template_options={"enable_thinking": False})
    file = tmp_path / "recipe.yaml"
    assert prompt_form_of(None, None, None, None) == PromptConfig()
    assert prompt_form_of(None, "raw", None, None) == PromptConfig(style="raw")
    assert prompt_form_of(file, None, None, None) == recipe
    assert prompt_form_of(file, "plain", "", None) == recipe.model_copy(update={"style": "plain", "instruction": ""})
    assert prompt_form_of(file, None, None, "Hm.") == recipe.model_copy(update={"system": "Hm."})
    with pytest.raises(RequestError, match="--prompt-style 'loud' is unknown: use one of auto, chat, plain, raw"):
        prompt_form_of(None, "loud", None, None)
    with pytest.raises(RequestError, match="cannot be read"):
        prompt_form_of(tmp_path / "none.yaml", None, None, None)
