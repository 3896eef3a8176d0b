"""Run a model once over a packed batch and score the tokens with loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from t3d.corruption import PackedBatch
from t3d.models import SDARForCausalLM, mask_token_id
from t3d.models.attention import as_attention_mask, two_copy_mask
from t3d.models.flex import FLEX, span_block_mask
from t3d.models.scoring import TokenScores, score_tokens
from t3d.objectives import Scores
from t3d.training.computing import PLAIN, Computing


class Scorer(nn.Module):
    """A model behind one `forward`, so that wrappers (DDP, FSDP) see the LM head's work too."""

    def __init__(self, model: SDARForCausalLM, computing: Computing = PLAIN) -> None:
        super().__init__()
        self.model, self._computing = model, computing
        if computing.attention == "flex":
            model.set_attn_implementation(FLEX)
        if computing.compiled:
            for part in (*model.model.layers, model.model.norm):
                part.compile(dynamic=True)

    def forward(
        self, batch: PackedBatch, targets: Tensor, append_own: bool = False, temperature: float = 0.0
    ) -> TokenScores:
        """Scores of `targets` (int64 [M, K]) at the batch's M tokens with loss; the rest as `score_tokens`."""
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
        return score_tokens(
            hidden.flatten(0, 1)[batch.loss_index],
            self.model.lm_head.weight,
            targets,
            mask_token_id=mask_token_id(self.model.config),
            append_own=append_own,
            temperature=temperature,
            draw_keys=batch.tokens.draw_keys,
            fused=self._computing.compiled,
        )

    def run_layer(self, batch: PackedBatch, inputs: Tensor) -> Tensor:
        """The first layer alone, over float [R, S, H]: to see what a layer costs."""
        model = self.model.model
        (mask,) = self._attention_mask(batch, inputs.dtype).values()
        return model.layers[0](
            inputs,
            attention_mask=mask,
            position_ids=batch.position_ids,
            position_embeddings=model.rotary_emb(inputs, batch.position_ids),
        )

    def _attention_mask(self, batch: PackedBatch, dtype: torch.dtype) -> dict[str, Any]:
        if self._computing.attention == "flex":
            made = batch.block_mask
            return {"full_attention": made if made is not None else span_block_mask(batch.spans)}
        mask = two_copy_mask(batch.position_ids, batch.document_ids, batch.copy_ids, batch.tokens.block_size)
        return as_attention_mask(mask, dtype)


@torch.no_grad()
def judge_batch(reference: nn.Module, batch: PackedBatch, temperature: float = 0.0) -> TokenScores:
    """The reference's forward: it scores the clean tokens and its own, DDO's real and fake.

    Its own token is its argmax, or a draw at `temperature` keyed by the row's noise.
    """
    return reference(batch, batch.tokens.targets[:, None], append_own=True, temperature=temperature)


def score_batch(student: nn.Module, batch: PackedBatch, judged: TokenScores | None = None) -> Scores:
    """The student's forward: what an objective needs of one batch, beside what the reference said of it."""
    if judged is None:
        scored = student(batch, batch.tokens.targets[:, None])
        return Scores(real=scored.logp[:, 0], argmax=scored.argmax)
    scored = student(batch, torch.stack([batch.tokens.targets, judged.own], dim=1))
    return Scores(
        real=scored.logp[:, 0],
        argmax=scored.argmax,
        fake=scored.logp[:, 1],
        reference_real=judged.logp[:, 0],
        reference_fake=judged.logp[:, 1],
    )
