"""The records that every part of the package speaks: decoding settings, generations, trajectories.

This module imports nothing of ours but the error types.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from t3d.errors import RequestError

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Decoding:
    """How to decode one request. Immutable; wrong values raise `RequestError` on construction.

    Attributes:
        block_size: positions decoded together (B); None takes the model's own.
        steps_per_block: forward passes a full block gets under a static rule (T), 1 <= T <= B; None is
            full-step decoding (T = B). Tokens per step is B / T.
        rule: which masked positions a step reveals, a name in `t3d.engine.rules.RULES`.
        temperature: 0 is greedy (argmax).
        top_k: keep the k most likely tokens before drawing; 0 keeps all.
        top_p: keep the smallest set of tokens with at least this probability; 1 keeps all.
        threshold: confidence above which `low_confidence_dynamic` reveals a token, in (0, 1].
        entropy_bound: nats that the entropies revealed in one step of `entropy_bounded` may sum to.
        max_new_tokens: longest response, stop token included.
        stop_token_ids: extra ids that end a response, beside the model's own.
        seed: a request's draws depend on this number and on nothing else in the batch.
    """

    block_size: int | None = None
    steps_per_block: int | None = None
    rule: str = "low_confidence_static"
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    threshold: float = 0.9
    entropy_bound: float = 0.5
    max_new_tokens: int = 512
    stop_token_ids: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.stop_token_ids is not None:
            object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        checks = (
            (self.block_size is None or self.block_size >= 1, "block_size must be at least 1"),
            (self.steps_per_block is None or self.steps_per_block >= 1, "steps_per_block must be at least 1"),
            (_finite(self.temperature) and self.temperature >= 0, "temperature must be 0 or more"),
            (self.top_k >= 0, "top_k must be 0 (off) or more"),
            (_finite(self.top_p) and 0 < self.top_p <= 1, "top_p must be in (0, 1]"),
            (_finite(self.threshold) and 0 < self.threshold <= 1, "threshold must be in (0, 1]"),
            (_finite(self.entropy_bound) and self.entropy_bound >= 0, "entropy_bound must be 0 or more"),
            (self.max_new_tokens >= 1, "max_new_tokens must be at least 1"),
            (0 <= self.seed < 2**63, "seed must be in [0, 2**63)"),
        )
        for holds, message in checks:
            if not holds:
                name = message.split(" ", 1)[0]
                raise RequestError(f"{message}, not {getattr(self, name)}")
        self._check_steps()

    def _check_steps(self) -> None:
        if self.block_size is None or self.steps_per_block is None:
            return
        if self.steps_per_block > self.block_size:
            raise RequestError(
                f"steps_per_block must be at most block_size ({self.block_size}), not {self.steps_per_block}"
            )

    def resolve(self, model_block_size: int) -> Decoding:
        """The same settings with `block_size` and `steps_per_block` filled in from the model's block size."""
        block_size = self.block_size or model_block_size
        return replace(self, block_size=block_size, steps_per_block=self.steps_per_block or block_size)


def _finite(value: float) -> bool:
    return math.isfinite(value)


@dataclass(slots=True)
class Generation:
    """What the engine returns for one request; the four lists have the response's length.

    Attributes:
        prompt_ids: the request's tokens.
        token_ids: the response, its stop token included when there is one.
        reveal_steps: for each response token the 1-based denoising step of this request that revealed it.
        confidences: for each response token its probability when it was revealed.
        num_forwards: forward passes of the model that this request took part in, prefill included.
        finish_reason: "stop" (a stop token ended it), "length" (`max_new_tokens` did) or "error".
        seed: the seed that the request was decoded with.
        text: the decoded response, if the engine has a tokenizer.
        error: what went wrong when `finish_reason` is "error".
        seconds: latency: from its admission, at which the prefill of its prompt begins, until its last token is known;
            what it waited before in the queue is not counted. Two generations with the same tokens are equal.
    """

    prompt_ids: list[int]
    token_ids: list[int]
    reveal_steps: list[int]
    confidences: list[float]
    num_forwards: int
    finish_reason: FinishReason
    seed: int
    text: str | None = None
    error: str | None = None
    seconds: float = field(default=0.0, compare=False)


@dataclass(slots=True)
class Trajectory:
    """One response with the order in which it was revealed; a row of a trajectory file.

    Ids are the truth, text is for people: nothing is ever re-tokenised. Worked example, two tokens per step:

        prompt_ids    [17, 4]  [P]   response_ids [8, 9, 3, 2]  [L]   reveal_step [1, 2, 1, 2]  [L]

    Attributes:
        prompt_id: the source's own id of the prompt.
        sample: 0-based number of the sample of this prompt.
        prompt_ids: the rendered prompt's tokens, exactly as the model saw them.
        response_ids: the response's tokens, stop token included.
        reveal_step: for each response token the 1-based step that revealed it.
        confidence: for each response token its probability when revealed.
        num_forwards: forward passes spent on the response, prefill included.
        finish_reason: "stop", "length" or "error".
        prompt_text, response_text: for people.
        answer: the reference answer, where the source has one.
        seed: the seed that the response was decoded with.
    """

    prompt_id: str
    sample: int
    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    reveal_step: Sequence[int]
    confidence: Sequence[float]
    num_forwards: int
    finish_reason: FinishReason
    prompt_text: str
    response_text: str
    answer: str | None
    seed: int

    def __post_init__(self) -> None:
        lengths = {len(self.response_ids), len(self.reveal_step), len(self.confidence)}
        if len(lengths) != 1:
            raise RequestError(
                f"trajectory {self.prompt_id}/{self.sample}: response_ids, reveal_step and confidence "
                f"differ in length ({sorted(lengths)})"
            )


@dataclass(frozen=True, slots=True)
class Prompt:
    """One rendered question: what the model sees, and what is needed to grade its answer.

    Attributes:
        prompt_id: the source's own id.
        text: the whole rendered prompt; tokenised exactly once.
        answer: the reference answer, if there is one.
    """

    prompt_id: str
    text: str
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class ProgramTests:
    """What a program must do to count as right; either kind, or both.

    Attributes:
        code: Python that runs after the program, in its namespace, and raises (`assert`) where it is wrong.
        cases: (standard input, expected standard output) of a program that reads and prints.
        preamble: Python that runs before the program, such as the imports of a function's head that the question shows.
    """

    code: str = ""
    cases: tuple[tuple[str, str], ...] = ()
    preamble: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """One question of a task, as the task words it, with what its answers are graded by.

    Attributes:
        problem_id: the source's own id.
        question: without instructions; what `t3d.tasks.prompts.render` makes a prompt of.
        answer: the reference answer, where there is one.
        tests: of a program, where the answer is one.
        prefix: how the response begins before the model goes on, such as the head of the function that it is to
            complete; part of the prompt.
        solution: a good response, for supervised training: what follows the prompt, the stop token excluded.
        rendered: the question is the whole prompt already, and is used as it is.
    """

    problem_id: str
    question: str
    answer: str | None = None
    tests: ProgramTests | None = None
    prefix: str = ""
    solution: str | None = None
    rendered: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a grader found.

    Attributes:
        right: whether the response counts.
        outcome: one word for reports to count by: "right", "wrong", "no_answer" (it gives none), "unparsed" (its
            answer cannot be read), "timeout", and a program's own ways to fail.
        answer: what the response gives as its answer.
        detail: one line for people, such as the exception that a program raised.
    """

    right: bool
    outcome: str
    answer: str | None = None
    detail: str = ""
