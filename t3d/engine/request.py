"""One request: what was asked, and what follows from that alone. What changes while it runs is in `Batch`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PretrainedConfig

from t3d.engine.rules import RULES
from t3d.errors import RequestError
from t3d.models.attention import block_start, first_response_block, padded_length
from t3d.types import Decoding, FinishReason, Generation


@dataclass(frozen=True)
class Request:
    """A checked request.

    Attributes:
        index: its place among the prompts that the caller gave.
        prompt_ids: the prompt, not empty.
        decoding: settings with `block_size` and `steps_per_block` filled in.
        seed: in [0, 2**63).
        stop_token_ids: every id that ends the response.
    """

    index: int
    prompt_ids: list[int]
    decoding: Decoding
    seed: int
    stop_token_ids: frozenset[int]

    @property
    def block_size(self) -> int:
        """B."""
        return self.decoding.block_size or 0  # resolved: never None

    @property
    def steps_per_block(self) -> int:
        """T."""
        return self.decoding.steps_per_block or 0  # resolved: never None

    @property
    def prompt_length(self) -> int:
        """P."""
        return len(self.prompt_ids)

    @cached_property
    def prefill_length(self) -> int:
        """Prompt tokens in whole blocks; the response's first block starts there and holds the left-over ones."""
        return block_start(first_response_block(self.prompt_length, self.block_size), self.block_size)

    @property
    def max_length(self) -> int:
        """Prompt and the longest response that was asked for."""
        return self.prompt_length + self.decoding.max_new_tokens

    @property
    def num_positions(self) -> int:
        """Positions that decoding may touch: the last block is denoised whole."""
        return padded_length(self.max_length, self.block_size)

    def generation(
        self,
        token_ids: list[int],
        reveal_steps: list[int],
        confidences: list[float],
        num_forwards: int,
        seconds: float,
        error: str | None,
    ) -> Generation:
        """The result, cut after the first stop token or at `max_new_tokens`.

        Args:
            token_ids, reveal_steps, confidences: from the first response token to the end of the last block, [L].
            num_forwards: of the model, for this request.
            seconds: from its admission until its last token was known.
            error: what went wrong, if something did.
        """
        length, reason = self._cut(token_ids)
        return Generation(
            prompt_ids=self.prompt_ids,
            token_ids=token_ids[:length],
            reveal_steps=reveal_steps[:length],
            confidences=confidences[:length],
            num_forwards=num_forwards,
            finish_reason="error" if error else reason,
            seed=self.seed,
            error=error,
            seconds=seconds,
        )

    def _cut(self, token_ids: list[int]) -> tuple[int, FinishReason]:
        limit = self.decoding.max_new_tokens
        if self.stop_token_ids.isdisjoint(token_ids):
            return limit, "length"
        for place, token_id in enumerate(token_ids[:limit]):
            if token_id in self.stop_token_ids:
                return place + 1, "stop"
        return limit, "length"


def check_request(
    index: int,
    prompt_ids: Sequence[int],
    decoding: Decoding,
    seed: int,
    stop_token_ids: Sequence[int],
    config: PretrainedConfig,
) -> Request:
    """A request that the engine can run.

    Args:
        stop_token_ids: the engine's; the request's own are added.
        config: the model's, which knows vocabulary, mask id, block size and positions.

    Raises:
        RequestError: one line that names the argument and the cure.
    """
    if decoding.rule not in RULES:
        raise RequestError(f"rule {decoding.rule!r} is unknown: use one of {', '.join(RULES)}")
    if not 0 <= seed < 2**63:
        raise RequestError(f"seeds: {seed} of request {index} must be in [0, 2**63)")
    _check_prompt(index, prompt_ids, config)
    request = Request(
        index=index,
        prompt_ids=list(prompt_ids),
        decoding=decoding.resolve(config.block_size),
        seed=seed,
        stop_token_ids=frozenset(stop_token_ids) | frozenset(decoding.stop_token_ids or ()),
    )
    if request.max_length > config.max_position_embeddings:
        raise RequestError(
            f"prompt {index} ({request.prompt_length} tokens) plus max_new_tokens ({decoding.max_new_tokens}) "
            f"exceeds the model's {config.max_position_embeddings} positions: shorten one of them"
        )
    return request


def _check_prompt(index: int, prompt_ids: Sequence[int], config: PretrainedConfig) -> None:
    if len(prompt_ids) == 0:
        raise RequestError(f"prompt {index} is empty: give at least one token")
    low, high = min(prompt_ids), max(prompt_ids)
    if low < 0 or high >= config.vocab_size:
        wrong = low if low < 0 else high
        raise RequestError(
            f"prompt {index} has token id {wrong}, outside the model's vocabulary of {config.vocab_size}: "
            "use the model's own tokenizer"
        )
    if config.mask_token_id in prompt_ids:
        raise RequestError(f"prompt {index} contains the mask token ({config.mask_token_id}): remove it")
