"""Run a model once over a packed batch and score the tokens with loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from t3d.corruption import PackedBatch
from t3d.models import BlockDiffusionModel, mask_token_id
from t3d.models.attention import as_attention_mask, two_copy_mask
from t3d.models.flex import FLEX, span_block_mask
from t3d.models.scoring import Teacher, TokenScores, score_tokens
from t3d.objectives import Objective, Scores
from t3d.training.computing import PLAIN, Computing


class Scorer(nn.Module):
    """A model behind one `forward`, so that wrappers (DDP, FSDP) see the LM head's work too."""

    def __init__(self, model: BlockDiffusionModel, computing: Computing = PLAIN) -> None:
        super().__init__()
        self.model, self._computing = model, computing
        if computing.attention == "flex":
            model.set_attn_implementation(FLEX)
        if computing.compiled:
            for part in (*model.model.layers, model.model.norm):
                _compile(part, computing.hooked)

    def forward(self, batch: PackedBatch, targets: Tensor, **asked: Any) -> TokenScores:
        """Scores of `targets` (int64 [M, K]) at the batch's M tokens with loss; what is `asked` as `score_tokens`."""
        return score_tokens(
            self._hidden_states(batch),
            self.model.lm_head.weight,
            targets,
            mask_token_id=mask_token_id(self.model.config),
            draw_keys=batch.tokens.draw_keys,
            fused=self._computing.compiled and len(targets) > 0,  # a compiler would make other code for no tokens
            **asked,
        )

    def hidden_states(self, batch: PackedBatch) -> Tensor:
        """float [M, H]: the final ones at the batch's M tokens with loss."""
        return self._hidden_states(batch)

    def _hidden_states(self, batch: PackedBatch) -> Tensor:
        # the residual stream is held in what products are computed in, as it is when the model is served
        embedded = self.model.model.embed_tokens(batch.input_ids)
        if torch.is_autocast_enabled(embedded.device.type):
            embedded = embedded.to(torch.get_autocast_dtype(embedded.device.type))
        hidden = self.model.model(
            inputs_embeds=embedded,
            position_ids=batch.position_ids,
            attention_mask=self._attention_mask(batch, embedded.dtype),
            use_cache=False,
        ).last_hidden_state
        return hidden.flatten(0, 1)[batch.loss_index]

    def run_layer(self, batch: PackedBatch, inputs: Tensor) -> Tensor:
        """The first layer alone, over float [R, S, H]: to see what a layer costs."""
        model = self.model.model
        return model.layers[0](
            inputs,
            attention_mask=self._attention_mask(batch, inputs.dtype),
            position_ids=batch.position_ids,
            position_embeddings=model.rotary_emb(inputs, batch.position_ids),
        )

    def _attention_mask(self, batch: PackedBatch, dtype: torch.dtype) -> Tensor | BlockMask:
        if self._computing.attention == "flex":
            made = batch.block_mask
            return made if made is not None else span_block_mask(batch.spans)
        mask = two_copy_mask(batch.position_ids, batch.document_ids, batch.copy_ids, batch.tokens.block_size)
        return as_attention_mask(mask, dtype)


def _compile(part: nn.Module, hooked: bool) -> None:
    """Have a part run compiled from now on, in place."""
    if hooked:  # its call runs hooks, which stay as they are
        part.forward = torch.compile(part.forward, dynamic=True)
    else:
        part.compile(dynamic=True)


Verdict = TokenScores | Teacher
"""What the frozen model says of one batch: a reference's scores, or a teacher's distributions."""


def consult(frozen: Scorer, batch: PackedBatch, objective: Objective, temperature: float = 0.0) -> Verdict:
    """The frozen model's forward: what an objective that needs one learns from it; `temperature` as `judge_batch`."""
    return teach_batch(frozen, batch) if objective.needs_teacher else judge_batch(frozen, batch, temperature)


@torch.no_grad()
def judge_batch(reference: nn.Module, batch: PackedBatch, temperature: float = 0.0) -> TokenScores:
    """The reference's forward: it scores the clean tokens and its own, DDO's real and fake.

    Its own token is its argmax, or a draw at `temperature` keyed by the row's noise.
    """
    return reference(batch, batch.tokens.targets[:, None], append_own=True, temperature=temperature)


@torch.no_grad()
def teach_batch(teacher: Scorer, batch: PackedBatch) -> Teacher:
    """The teacher's forward: hidden states, of which the student's scoring makes distributions a chunk at a time."""
    # detached: an offloaded model's head stays on the device for as long as somebody holds this
    return Teacher(teacher.hidden_states(batch), teacher.model.lm_head.weight.detach())


def score_batch(
    student: nn.Module, batch: PackedBatch, verdict: Verdict | None = None, entropy_at: float | None = None
) -> Scores:
    """The student's forward: what an objective needs of one batch, beside what the frozen model said of it.

    Args:
        student: a `Scorer`, or what wraps one.
        batch: to be scored.
        verdict: of the frozen model, if the objective needs one.
        entropy_at: temperature of the softmax whose entropy is needed; None if none is.
    """
    targets = batch.tokens.targets[:, None]
    asked: dict[str, Any] = {}
    if entropy_at is not None:
        asked |= {"entropy": True, "entropy_temperature": entropy_at}
    if isinstance(verdict, Teacher):
        asked |= {"teacher": verdict}
    elif verdict is not None:
        targets = torch.cat([targets, verdict.own[:, None]], dim=1)
    scored = student(batch, targets, **asked)
    scores = Scores(scored.logp[:, 0], scored.argmax, entropy=scored.entropy, divergence=scored.divergence)
    if isinstance(verdict, TokenScores):
        scores.fake = scored.logp[:, 1]
        scores.reference_real, scores.reference_fake = verdict.logp[:, 0], verdict.logp[:, 1]
    return scores
