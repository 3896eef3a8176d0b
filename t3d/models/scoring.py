"""Per-token scores from hidden states: log-probabilities, argmax and entropy, in chunks over the tokens.

No [tokens, vocabulary] array of a whole batch ever exists: each chunk's logits are made, reduced and dropped, and made
again in the backward pass. Shape legend: M scored tokens, H hidden size, K targets a token, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from t3d.noise import gumbel_noise

CHUNK_TOKENS = 2048


@dataclass(slots=True)
class TokenScores:
    """What one model says about M positions.

    Attributes:
        logp: float32 [M, K] log-probabilities of the K targets of each position.
        argmax: int64 [M] most likely token, never the mask token.
        own: int64 [M] the token that the model itself would produce: its argmax, or a draw.
        entropy: float32 [M] nats, or None if not asked for.
    """

    logp: Tensor
    argmax: Tensor
    own: Tensor
    entropy: Tensor | None = None


def score_tokens(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    *,
    mask_token_id: int,
    entropy: bool = False,
    append_own: bool = False,
    temperature: float = 0.0,
    draw_keys: Tensor | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> TokenScores:
    """Score M positions with the LM head.

    Log-probabilities are over the whole vocabulary, the mask token included, as the public code has them; the argmax
    and the draw leave it out, since decoding can never produce it.

    Args:
        hidden: float [M, H] final hidden states at the positions to score.
        head_weight: float [V, H].
        targets: int64 [M, K].
        mask_token_id: never the model's own token.
        entropy: also return the entropy.
        append_own: score the model's own token as one more target: `logp` is then [M, K + 1].
        temperature: of the own token; 0 is the argmax.
        draw_keys: int64 [M], what each draw depends on (`t3d.noise`); needed when temperature > 0.
        chunk_tokens: positions per chunk.

    Returns:
        `TokenScores`; `logp` and `entropy` carry gradients where `hidden` or `head_weight` do.
    """
    chunks = []
    for start in range(0, max(1, hidden.shape[0]), chunk_tokens):  # no positions: one empty chunk, gradient intact
        part = slice(start, start + chunk_tokens)
        keys = draw_keys[part] if temperature > 0 and draw_keys is not None else None
        arguments = (hidden[part], head_weight, targets[part], mask_token_id, append_own, temperature, keys, entropy)
        if torch.is_grad_enabled():
            chunks.append(checkpoint(_score_chunk, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            chunks.append(_score_chunk(*arguments))
    logp, best, own, spread = zip(*chunks, strict=True)
    return TokenScores(torch.cat(logp), torch.cat(best), torch.cat(own), torch.cat(spread) if entropy else None)


def _score_chunk(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    mask_token_id: int,
    append_own: bool,
    temperature: float,
    draw_keys: Tensor | None,
    entropy: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    logits = torch.nn.functional.linear(hidden, head_weight)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    normaliser = logits.logsumexp(dim=-1)
    allowed = logits.detach().clone()
    allowed[:, mask_token_id] = -torch.inf
    best = own = allowed.argmax(dim=-1)
    if draw_keys is not None:
        own = (allowed / temperature + gumbel_noise(draw_keys, allowed.shape[1])).argmax(dim=-1)
    if append_own:
        targets = torch.cat([targets, own[:, None]], dim=1)
    logp = logits.gather(1, targets) - normaliser[:, None]
    if not entropy:
        return logp, best, own, None
    log_probabilities = logits - normaliser[:, None]
    return logp, best, own, -(log_probabilities.exp() * log_probabilities).sum(dim=-1)
