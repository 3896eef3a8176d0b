"""From logits to one candidate token per masked position. Pure functions, all in float32.

Shape legend: M positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from t3d.noise import gumbel_noise


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to draw at each position.

    Attributes:
        temperature: float32 [M]; 0 is argmax, and then `top_k` and `top_p` have no say.
        top_k: int64 [M]; 0 keeps all.
        top_p: float32 [M]; 1 keeps all.
        keys: int64 [M] from `draw_keys`, the draw's randomness.
        has_draws, has_filters: whether any temperature is above 0, and any top-k or top-p on. None looks at the
            tensors, which waits for the device.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    keys: Tensor
    has_draws: bool | None = None
    has_filters: bool | None = None

    def slice(self, start: int, stop: int) -> SamplingParams:
        """Those of positions start .. stop-1."""
        part = slice(start, stop)
        columns = (self.temperature[part], self.top_k[part], self.top_p[part], self.keys[part])
        return SamplingParams(*columns, self.has_draws, self.has_filters)


@dataclass(frozen=True, slots=True)
class Candidates:
    """One drawn token per position.

    Attributes:
        token_ids: int64 [M].
        confidence: float32 [M] probability of the token under the distribution that it was drawn from; not finite
            where the logits were not.
        entropy: float32 [M] of that distribution, in nats.
    """

    token_ids: Tensor
    confidence: Tensor
    entropy: Tensor

    @staticmethod
    def concatenate(parts: list[Candidates]) -> Candidates:
        """The candidates of several chunks of positions, in order."""
        return Candidates(
            torch.cat([part.token_ids for part in parts]),
            torch.cat([part.confidence for part in parts]),
            torch.cat([part.entropy for part in parts]),
        )


def draw_candidates(logits: Tensor, params: SamplingParams, mask_token_id: int) -> Candidates:
    """Draw one token at each position; the mask token never.

    Args:
        logits: float [M, V].
        params: for the same M positions.
        mask_token_id: id whose probability is 0 always.
    """
    log_probs = filtered_log_probs(logits, params, mask_token_id)
    probs = log_probs.exp()
    entropy = -(probs * log_probs.clamp_min(torch.finfo(torch.float32).min)).sum(dim=-1)  # 0 * -inf would be NaN
    token_ids = _race(log_probs, params).argmax(dim=-1)
    confidence = probs.gather(1, token_ids[:, None])[:, 0]
    return Candidates(token_ids, confidence, entropy)


def filtered_log_probs(logits: Tensor, params: SamplingParams, mask_token_id: int) -> Tensor:
    """Log-probabilities after temperature, then top-k, then top-p; plain softmax where temperature is 0.

    Returns:
        float32 [M, V], -inf for what was filtered out and for the mask token.
    """
    logits = logits.float().index_fill(1, torch.full((1,), mask_token_id, device=logits.device), -torch.inf)
    logits -= logits.amax(dim=-1, keepdim=True)  # so that a tiny temperature cannot overflow the best token
    is_greedy = params.temperature == 0
    logits /= params.temperature.masked_fill(is_greedy, 1.0)[:, None]
    top_k, top_p = params.top_k.masked_fill(is_greedy, 0), params.top_p.masked_fill(is_greedy, 1.0)
    has_filters = params.has_filters
    if has_filters is None:
        has_filters = bool(((top_k > 0) | (top_p < 1)).any())
    if has_filters:
        logits = _keep_likeliest(logits, top_k, top_p)
    return logits.log_softmax(dim=-1)


def _keep_likeliest(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """-inf on all but the top-k and, among these, the smallest set with probability top-p; ties: lowest id first."""
    ordered, token_ids = logits.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[-1], device=logits.device)
    ordered = ordered.masked_fill((top_k[:, None] > 0) & (rank >= top_k[:, None]), -torch.inf)
    mass_up_to = ordered.softmax(dim=-1).cumsum(dim=-1)
    mass_before = functional.pad(mass_up_to[:, :-1], (1, 0))
    outside = (mass_before >= top_p[:, None]) & (top_p[:, None] < 1)  # at 1, rounding must not cut the tail
    return logits.scatter(1, token_ids, ordered.masked_fill(outside, -torch.inf))


def _race(log_probs: Tensor, params: SamplingParams) -> Tensor:
    """Scores whose argmax is the drawn token: Gumbel-max, or the plain log-probabilities where greedy. [M, V]."""
    is_drawn = params.temperature > 0
    if params.has_draws is not None:
        if not params.has_draws:
            return log_probs
        noise = gumbel_noise(params.keys, log_probs.shape[-1])
        return torch.where(is_drawn[:, None], log_probs + noise, log_probs)
    if not bool(is_drawn.any()):
        return log_probs
    if bool(is_drawn.all()):
        return log_probs + gumbel_noise(params.keys, log_probs.shape[-1])
    rows = is_drawn.nonzero()[:, 0]
    noise = gumbel_noise(params.keys[rows], log_probs.shape[-1])
    return log_probs.index_add(0, rows, noise)
