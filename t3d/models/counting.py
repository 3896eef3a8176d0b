"""How many weights a model has, and how many of them one token passes: fewer in a mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass

from t3d.models.experts import is_mixture
from t3d.models.family import BlockDiffusionConfig, BlockDiffusionModel


def active_parameters(model: BlockDiffusionModel) -> int:
    """Parameters that take part in one token's forward pass, embedding and head included; tied ones count once.

    Of a dense model all; of a mixture all but the experts that a token is not sent to, as the "A3B" of SDAR-30B-A3B has
    it. The model may lie on the meta device.
    """
    idle = 0
    for layer in model.model.layers:
        if is_mixture(layer.mlp):
            held = sum(weight.numel() for weight in layer.mlp.experts.parameters())
            idle += held - held * layer.mlp.gate.top_k // layer.mlp.experts.num_experts
    return model.num_parameters() - idle


@dataclass(frozen=True, slots=True)
class FeedForward:
    """The matrices behind the attention of all layers together; biases aside.

    Attributes:
        shared: weights that every token passes: gate, up and down of dense layers, and routers.
        expert: weights of one expert.
        held: experts, of all layers.
        used: of them by one token.
    """

    shared: int
    expert: int = 0
    held: int = 0
    used: int = 0

    @property
    def active(self) -> int:
        """Weights that one token passes."""
        return self.shared + self.used * self.expert

    def hit(self, num_tokens: float) -> float:
        """Experts that a forward over so many tokens takes, if each is as likely for each of them."""
        return self.held * (1 - (1 - self.used / self.held) ** num_tokens) if self.held else 0.0


def feed_forward_of(config: BlockDiffusionConfig) -> FeedForward:
    """What a config's layers have behind their attention."""
    dense = 3 * config.hidden_size * config.intermediate_size
    num_mixtures = sum(has_experts(config, index) for index in range(config.num_hidden_layers))
    if num_mixtures == 0:
        return FeedForward(config.num_hidden_layers * dense)
    return FeedForward(
        shared=(config.num_hidden_layers - num_mixtures) * dense
        + num_mixtures * config.hidden_size * config.num_experts,
        expert=3 * config.hidden_size * config.moe_intermediate_size,
        held=num_mixtures * config.num_experts,
        used=num_mixtures * config.num_experts_per_tok,
    )


def has_experts(config: BlockDiffusionConfig, layer_index: int) -> bool:
    """Whether a layer of this index is a mixture: transformers' `Qwen3MoeDecoderLayer` decides alike."""
    if not getattr(config, "num_experts", 0) or layer_index in config.mlp_only_layers:
        return False
    return (layer_index + 1) % config.decoder_sparse_step == 0
