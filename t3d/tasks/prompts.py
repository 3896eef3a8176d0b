"""Prompts: the one place where a question becomes the text that a model sees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from t3d.config import PromptConfig
from t3d.errors import RequestError
from t3d.tasks.base import Task
from t3d.tasks.templates import check_powers, within_steps
from t3d.types import Problem, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OWN_PREFIX = "{prefix}"
"""In `PromptConfig.prefix`: the problem's own."""


@dataclass(frozen=True, slots=True)
class Questions:
    """Problems and their prompts, in the same order.

    Attributes:
        problems: each with the prefix that its prompt ends in (`as_asked`): what graders are to be given.
        prompts: what the model sees.
        form: resolved, that they were rendered by.
    """

    problems: list[Problem]
    prompts: list[Prompt]
    form: PromptConfig


def put_questions(
    task: Task, problems: Iterable[Problem], asked: PromptConfig, tokenizer: PreTrainedTokenizerBase | None
) -> Questions:
    """Render a task's problems: `resolve_form`, then `render` and `as_asked` of each.

    Raises:
        RequestError: the form cannot be had with this tokenizer.
    """
    form = resolve_form(task.form, asked, tokenizer)
    put = [(as_asked(each, form), render(each, form, tokenizer)) for each in problems]
    return Questions([problem for problem, _ in put], [prompt for _, prompt in put], form)


def resolve_form(own: PromptConfig, asked: PromptConfig, tokenizer: PreTrainedTokenizerBase | None) -> PromptConfig:
    """The form that `render` takes: nothing in it is left open but a chat's `system`.

    Args:
        own: the task's.
        asked: a request's or a recipe's; what it leaves out is the task's own.
        tokenizer: whose chat template decides where both leave the style open; None is one without.

    Raises:
        RequestError: a chat is asked for and the tokenizer has no template; or something is asked for that prompts of
            this style do not have.
    """
    has_template = tokenizer is not None and tokenizer.chat_template is not None
    style = asked.style if asked.style != "auto" else own.style
    if style == "auto":
        style = "chat" if has_template else "plain"
    if style == "chat" and not has_template:
        raise RequestError("prompt style chat: the tokenizer has no chat template; use plain or raw")
    if style != "chat" and asked.system is not None:
        raise RequestError(f"prompt style {style} has no system turn: leave system out, or use chat")
    if style == "raw" and (asked.instruction or asked.prefix):
        raise RequestError("prompt style raw is the question alone: leave instruction and prefix out")
    if style == "raw":
        return PromptConfig(style=style, instruction="", prefix="")
    prefix = _first_given(asked.prefix, own.prefix, OWN_PREFIX)
    if style == "plain":
        return PromptConfig(style=style, instruction=asked.instruction or "", prefix=prefix)
    return PromptConfig(
        style=style,
        instruction=_first_given(asked.instruction, own.instruction, ""),
        system=asked.system if asked.system is not None else own.system,
        prefix=prefix,
        template_options={**own.template_options, **asked.template_options},
    )


def _first_given(*values: str | None) -> str:
    return next(value for value in values if value is not None)


def render(problem: Problem, form: PromptConfig, tokenizer: PreTrainedTokenizerBase | None) -> Prompt:
    """The prompt of a problem: the one way from a question to the text that a model sees.

    Args:
        problem: its `rendered` question is used as it is.
        form: resolved (`resolve_form`).
        tokenizer: the one that the form was resolved for.

    Raises:
        RequestError: the chat template refuses.
    """
    return Prompt(problem.problem_id, _text_of(problem, form, tokenizer), problem.answer)


def as_asked(problem: Problem, form: PromptConfig) -> Problem:
    """The problem with the prefix that its prompt ends in: what a grader puts before the response.

    Args:
        form: resolved (`resolve_form`).
    """
    assert form.prefix is not None
    prefix = "" if problem.rendered else form.prefix.replace(OWN_PREFIX, problem.prefix)
    return replace(problem, prefix=prefix)


def _text_of(problem: Problem, form: PromptConfig, tokenizer: PreTrainedTokenizerBase | None) -> str:
    if problem.rendered:
        return problem.question
    question = f"{problem.question}\n{form.instruction}" if form.instruction else problem.question
    prefix = as_asked(problem, form).prefix
    if form.style == "raw":
        return question
    if form.style == "plain":
        return render_question(question) + (render_response(prefix) if prefix else "")
    assert tokenizer is not None
    return _chat(question, form, tokenizer) + prefix


def _chat(content: str, form: PromptConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """A chat of one question, up to where the answer begins."""
    turns = [{"role": "user", "content": content}]
    if form.system is not None:
        turns.insert(0, {"role": "system", "content": form.system})
    return render_chat(turns, tokenizer, **form.template_options)


def render_chat(turns: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase, **options: Any) -> str:
    """A chat up to where the next answer begins, by the tokenizer's template.

    Args:
        turns: each with `role` and `content`.
        options: that the template knows.

    Raises:
        RequestError: the template refuses, or takes too long.
    """
    try:
        check_powers(tokenizer.get_chat_template())
        text = within_steps(
            lambda: tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options)
        )
    except Exception as error:  # templates are programs of others: they raise what they like
        raise RequestError(f"prompt: the tokenizer's chat template refuses: {error}") from error
    assert isinstance(text, str)
    return text


def render_question(question: str) -> str:
    """The plain, chat-free prompt; it ends where the model starts writing.

    It ends in ":" and a response starts with a space, so tokenising the two apart or together gives the same ids.
    """
    return f"Question: {question}\nAnswer:"


def render_response(answer: str) -> str:
    """The text that follows a prompt of `render_question`, before the eos token."""
    return f" {answer}"


def render_solution(problem: Problem, form: PromptConfig) -> str:
    """The good response of a problem as it follows the prompt of `render`, before the eos token.

    Args:
        problem: with a solution.
        form: resolved (`resolve_form`).

    Raises:
        RequestError: the prompt does not end in what the solution goes on from.
    """
    assert problem.solution is not None
    prefix = as_asked(problem, form).prefix
    if not prefix.endswith(problem.prefix):
        raise RequestError(
            f"prompt: the worked answer of {problem.problem_id} goes on from the task's own prefix; "
            "leave prompt.prefix out, and do not use the raw style"
        )
    starts_the_answer = form.style == "plain" and not prefix and not problem.rendered
    if starts_the_answer and not problem.solution[:1].isspace():
        return render_response(problem.solution)
    return problem.solution
