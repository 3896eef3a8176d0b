"""Per-token scores from hidden states: log-probabilities, argmax, entropy and KL, in chunks over the tokens.

No [tokens, vocabulary] array of a whole batch ever exists: each chunk's logits are made, reduced and dropped, and made
again in the backward pass, which needs of the first one only each token's normalisers and entropy. Library kernels
(Liger's and cut-cross-entropy's fused heads, torch's own) do this for the loss of one target a token; here a token has
several targets, and the objective that joins them is known only after the whole batch is scored.

Shape legend: M scored tokens, H hidden size, K targets a token, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from t3d.noise import gumbel_noise

CHUNK_LOGITS = 2**29
"""Logits of one chunk: 1 GiB in bfloat16."""
SMALLEST_CHUNK = 256
LOWEST_LOGP = -1e30
"""What a token's log-probability counts as at least: sums over all tokens of a step stay finite."""


class TokenScores(NamedTuple):
    """What one model says about M positions. A tuple: FSDP looks for a forward's tensors in nothing else.

    Attributes:
        logp: float32 [M, K] log-probabilities of the K targets of each position, from `LOWEST_LOGP` to 0.
        argmax: int64 [M] most likely token, never the mask token.
        own: int64 [M] the token that the model itself would produce: its argmax, or a draw.
        entropy: float32 [M] nats, or None if not asked for.
        divergence: float32 [M] nats, KL(teacher || this model), or None without a teacher.
    """

    logp: Tensor
    argmax: Tensor
    own: Tensor
    entropy: Tensor | None = None
    divergence: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Teacher:
    """Another model's distributions at the same positions, without gradients.

    Attributes:
        hidden: float [M, H'] its final hidden states.
        head_weight: float [V, H'].
    """

    hidden: Tensor
    head_weight: Tensor


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is asked of every chunk; the arguments of `score_tokens` by the same names. No temperature: no entropy."""

    mask_token_id: int
    entropy_temperature: float | None
    append_own: bool
    temperature: float
    chunk_tokens: int
    compute_dtype: torch.dtype
    fused: bool


def score_tokens(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    *,
    mask_token_id: int,
    entropy: bool = False,
    entropy_temperature: float = 1.0,
    append_own: bool = False,
    temperature: float = 0.0,
    draw_keys: Tensor | None = None,
    teacher: Teacher | None = None,
    chunk_tokens: int | None = None,
    fused: bool = False,
) -> TokenScores:
    """Score M positions with the LM head.

    Log-probabilities are over the whole vocabulary, the mask token included, as the public code has them; the argmax
    and the draw leave it out, since decoding can never produce it. Products are computed in autocast's dtype where it
    is on; what follows them, and the sum of the head's gradient over chunks, in float32 (float64 for float64 inputs).

    Args:
        hidden: float [M, H] final hidden states at the positions to score.
        head_weight: float [V, H].
        targets: int64 [M, K].
        mask_token_id: never the model's own token.
        entropy: also return the entropy.
        entropy_temperature: of the softmax whose entropy it is, > 0; all other scores are at temperature 1.
        append_own: score the model's own token as one more target: `logp` is then [M, K + 1].
        temperature: of the own token; 0 is the argmax.
        draw_keys: int64 [M], what each draw depends on (`t3d.noise`); needed when temperature > 0.
        teacher: also return the divergence from it.
        chunk_tokens: positions per chunk; None takes as many as make 2**29 logits.
        fused: let torch.compile join what happens between the products.

    Returns:
        `TokenScores`; `logp`, `entropy` and `divergence` carry gradients where `hidden` or `head_weight` do.
    """
    device_type = hidden.device.type
    lowered = torch.is_autocast_enabled(device_type)
    wanted = _Wanted(
        mask_token_id=mask_token_id,
        entropy_temperature=entropy_temperature if entropy else None,
        append_own=append_own,
        temperature=temperature,
        chunk_tokens=chunk_tokens or max(SMALLEST_CHUNK, CHUNK_LOGITS // head_weight.shape[0]),
        compute_dtype=torch.get_autocast_dtype(device_type) if lowered else hidden.dtype,
        fused=fused,
    )
    keys = draw_keys if temperature > 0 else None
    theirs = (teacher.hidden.detach(), teacher.head_weight.detach()) if teacher is not None else (None, None)
    logp, spread, divergence, argmax, own = _ScoreTokens.apply(hidden, head_weight, targets, keys, *theirs, wanted)
    return TokenScores(logp, argmax, own, spread if entropy else None, divergence if teacher is not None else None)


class _ScoreTokens(torch.autograd.Function):
    """(hidden, head_weight) -> (logp, entropy, divergence), with argmax and own token beside them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head_weight: Tensor,
        targets: Tensor,
        keys: Tensor | None,
        teacher_hidden: Tensor | None,
        teacher_weight: Tensor | None,
        wanted: _Wanted,
    ) -> tuple[Tensor, ...]:
        summarise = _fused_summary if wanted.fused else _summary
        with torch.autocast(hidden.device.type, enabled=False):
            weight = head_weight.to(wanted.compute_dtype)
            parts = [
                summarise(
                    hidden[part].to(wanted.compute_dtype) @ weight.T,
                    _logits(teacher_hidden, teacher_weight, part, wanted.compute_dtype),
                    targets[part],
                    keys[part] if keys is not None else None,
                    wanted.mask_token_id,
                    wanted.entropy_temperature,
                    wanted.append_own,
                    wanted.temperature,
                )
                for part in _chunks(hidden.shape[0], wanted.chunk_tokens)
            ]
        logp, entropy, divergence, normalisers, argmax, own = map(torch.cat, zip(*parts, strict=True))
        scored = torch.cat([targets, own[:, None]], dim=1) if wanted.append_own else targets
        ctx.save_for_backward(hidden, head_weight, teacher_hidden, teacher_weight, scored, normalisers, entropy)
        ctx.wanted = wanted
        ctx.mark_non_differentiable(argmax, own)
        return logp, entropy, divergence, argmax, own

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, logp_gradient: Tensor, entropy_gradient: Tensor, divergence_gradient: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, ...]:
        hidden, head_weight, teacher_hidden, teacher_weight, scored, normalisers, entropy = ctx.saved_tensors
        wanted: _Wanted = ctx.wanted
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        differentiate = _fused_logit_gradient if wanted.fused else _logit_gradient
        summed_in = torch.promote_types(head_weight.dtype, torch.float32)
        hidden_gradient = torch.empty_like(hidden) if wants_hidden else None
        weight_gradient = torch.zeros_like(head_weight, dtype=summed_in) if wants_weight else None
        weight = head_weight.to(wanted.compute_dtype)
        for part in _chunks(hidden.shape[0], wanted.chunk_tokens):
            inputs = hidden[part].to(wanted.compute_dtype)
            gradient = differentiate(
                inputs @ weight.T,
                _logits(teacher_hidden, teacher_weight, part, wanted.compute_dtype),
                scored[part],
                normalisers[part],
                logp_gradient[part],
                entropy[part],
                entropy_gradient[part],
                divergence_gradient[part],
                wanted.entropy_temperature,
            )
            if hidden_gradient is not None:
                hidden_gradient[part] = gradient @ weight
            if weight_gradient is not None:
                weight_gradient += _product(gradient.T, inputs, summed_in)
        if weight_gradient is not None:
            weight_gradient = weight_gradient.to(head_weight.dtype)
        return hidden_gradient, weight_gradient, None, None, None, None, None


def _chunks(num_tokens: int, chunk_tokens: int) -> list[slice]:
    """No tokens: one empty chunk, so that every result has its shape."""
    return [slice(start, start + chunk_tokens) for start in range(0, max(1, num_tokens), chunk_tokens)]


def _logits(hidden: Tensor | None, head_weight: Tensor | None, part: slice, dtype: torch.dtype) -> Tensor | None:
    """A teacher's of one chunk, [C, V]; without a teacher, none."""
    if hidden is None or head_weight is None:
        return None
    return hidden[part].to(dtype) @ head_weight.to(dtype).T


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """left @ right in `dtype`, not rounded to the inputs' before, where the device can do that."""
    if left.is_cuda and left.dtype != dtype:
        return torch.mm(left, right, out_dtype=dtype)
    return left @ right


def _summary(
    logits: Tensor,
    teacher_logits: Tensor | None,
    targets: Tensor,
    draw_keys: Tensor | None,
    mask_token_id: int,
    entropy_temperature: float | None,
    append_own: bool,
    temperature: float,
) -> tuple[Tensor, ...]:
    """All that is kept of one chunk's logits [C, V]: logp, entropy, divergence, normalisers, argmax, own token.

    The normalisers, [C, 3], are the greatest logit and, of logits less that one, those of the plain softmax and of the
    entropy's. However large logits are, log-probabilities are then as exact as their differences.
    """
    logits = _at_least_float32(logits)
    greatest = logits.amax(dim=-1)
    logits = logits - greatest[:, None]
    normaliser = entropy_normaliser = logits.exp().sum(dim=-1).log()
    entropy, divergence = torch.zeros_like(normaliser), torch.zeros_like(normaliser)
    if entropy_temperature is not None:
        tempered = logits / entropy_temperature
        entropy_normaliser = tempered.exp().sum(dim=-1).log()
        log_probabilities = (tempered - entropy_normaliser[:, None]).clamp_min(LOWEST_LOGP)  # 0 * -inf would be NaN
        entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=-1)
    if teacher_logits is not None:
        theirs = _at_least_float32(teacher_logits).log_softmax(dim=-1).clamp_min(LOWEST_LOGP)
        ours = (logits - normaliser[:, None]).clamp_min(LOWEST_LOGP)
        divergence = (theirs.exp() * (theirs - ours)).sum(dim=-1)
    is_mask = torch.arange(logits.shape[1], device=logits.device) == mask_token_id
    allowed = logits.masked_fill(is_mask, -torch.inf)
    argmax = own = allowed.argmax(dim=-1)
    if draw_keys is not None:
        own = (allowed / temperature + gumbel_noise(draw_keys, allowed.shape[1])).argmax(dim=-1)
    if append_own:
        targets = torch.cat([targets, own[:, None]], dim=1)
    logp = (logits.gather(1, targets) - normaliser[:, None]).clamp_min(LOWEST_LOGP)
    normalisers = torch.stack([greatest, normaliser, entropy_normaliser], dim=1)
    return logp, entropy, divergence, normalisers, argmax, own.clone()


def _logit_gradient(
    logits: Tensor,
    teacher_logits: Tensor | None,
    targets: Tensor,
    normalisers: Tensor,
    logp_gradient: Tensor,
    entropy: Tensor,
    entropy_gradient: Tensor,
    divergence_gradient: Tensor,
    entropy_temperature: float | None,
) -> Tensor:
    """Gradient with respect to one chunk's logits, [C, V] in their dtype.

    With p the softmax and q the teacher's: d logp_k / d z_j = [j = k] - p_j and d KL(q || p) / d z_j = p_j - q_j. With
    p' the softmax at temperature T: d entropy / d z_j = -p'_j (log p'_j + entropy) / T.
    """
    dtype = logits.dtype
    logits = _at_least_float32(logits) - normalisers[:, :1]
    pull = logp_gradient.sum(dim=1, keepdim=True)
    if teacher_logits is not None:
        pull = pull - divergence_gradient[:, None]
    gradient = -(logits - normalisers[:, 1:2]).exp() * pull
    if entropy_temperature is not None:
        log_probabilities = (logits / entropy_temperature - normalisers[:, 2:]).clamp_min(LOWEST_LOGP)
        weight = entropy_gradient[:, None] / entropy_temperature
        gradient = gradient - log_probabilities.exp() * weight * (log_probabilities + entropy[:, None])
    if teacher_logits is not None:
        gradient = gradient - divergence_gradient[:, None] * _at_least_float32(teacher_logits).softmax(dim=-1)
    tokens = torch.arange(logits.shape[1], device=logits.device)
    for k in range(targets.shape[1]):
        gradient = gradient + torch.where(tokens == targets[:, k, None], logp_gradient[:, k, None], 0.0)
    return gradient.to(dtype)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


_fused_summary = torch.compile(_summary)
_fused_logit_gradient = torch.compile(_logit_gradient)
