"""The least time that an engine's work can take: every byte and operation that cannot be avoided, at the device's best.

A forward reads each weight once, each row's keys and values once, and writes the new ones; a multiplication and an
addition are two operations. What a faster engine could avoid (activations in memory, padding, launches) does not count.
Of a mixture of experts a forward reads those that its tokens hit, taken as if each were as likely for each token.

Shape legend: K hidden size, I intermediate size, G * H heads, H key-value heads, D head dimension, V vocabulary, B
block size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from t3d.engine.continuous.counters import Counters
from t3d.models import BlockDiffusionConfig
from t3d.models.counting import FeedForward, feed_forward_of


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What a device can do at best: bytes_per_second to and from its memory, operations_per_second in matrices."""

    bytes_per_second: float
    operations_per_second: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What some forwards have to do: bytes moved, operations done."""

    num_bytes: float
    num_operations: float

    def seconds(self, ceilings: Ceilings) -> float:
        """At least so long, if bytes and operations overlap perfectly."""
        return max(self.num_bytes / ceilings.bytes_per_second, self.num_operations / ceilings.operations_per_second)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Sizes of a model that its costs follow from.

    Attributes:
        num_layers: of them.
        before_attention: parameters of a layer's q, k and v, K * (G * H + 2 * H) * D.
        after_attention: parameters of a layer's output, gate, up and down, K * (G * H * D + 3 * I); of a mixture those
            that one token passes, on average over the layers.
        head: parameters of the LM head, K * V.
        query_width: G * H * D.
        bytes_per_position: keys and values in all layers.
        itemsize: bytes of a parameter.
        feed_forward: all layers' gate, up and down, or experts.
    """

    num_layers: int
    before_attention: int
    after_attention: int
    head: int
    query_width: int
    bytes_per_position: int
    itemsize: int
    feed_forward: FeedForward = field(default=FeedForward(shared=0))

    @property
    def layer_parameters(self) -> int:
        """Of all layers, their norms aside; of a mixture those that one token passes."""
        return self.num_layers * (self.before_attention + self.after_attention)

    def other_experts(self, num_tokens: float) -> float:
        """Parameters that a forward over so many tokens reads beside those that one of them passes."""
        return self.feed_forward.expert * (self.feed_forward.hit(num_tokens) - self.feed_forward.used)


def model_facts(config: BlockDiffusionConfig, dtype: torch.dtype) -> ModelFacts:
    """The facts of a model in a dtype."""
    query_width = config.num_attention_heads * config.head_dim
    key_width = config.num_key_value_heads * config.head_dim
    feed_forward = feed_forward_of(config)
    return ModelFacts(
        num_layers=config.num_hidden_layers,
        before_attention=config.hidden_size * (query_width + 2 * key_width),
        after_attention=config.hidden_size * query_width + feed_forward.active // config.num_hidden_layers,
        head=config.hidden_size * config.vocab_size,
        query_width=query_width,
        bytes_per_position=2 * config.num_hidden_layers * key_width * dtype.itemsize,
        itemsize=dtype.itemsize,
        feed_forward=feed_forward,
    )


def decode_cost(facts: ModelFacts, block_size: int, counters: Counters) -> Cost:
    """Of all denoising forwards.

    A row has B queries over its context, and B more over the context before the active block where a block commits
    (taken as the average context: which rows those were is not counted).
    """
    num_tokens = block_size * (counters.num_rows + counters.num_commits)
    num_parameters = facts.layer_parameters + facts.head + facts.other_experts(num_tokens / max(1, counters.num_steps))
    num_bytes = counters.num_steps * num_parameters * facts.itemsize
    num_bytes += (counters.num_context + num_tokens) * facts.bytes_per_position
    mean_context = counters.num_context / max(1, counters.num_rows)
    seen = block_size * (counters.num_context + counters.num_commits * (mean_context - block_size))
    in_matrices = 2 * (facts.layer_parameters * num_tokens + facts.head * counters.num_masked)
    in_attention = 4 * facts.num_layers * facts.query_width * seen
    return Cost(num_bytes, in_matrices + in_attention)


def prefill_cost(facts: ModelFacts, mean_context: float, counters: Counters) -> Cost:
    """Of all prefill forwards: these end at the last layer's keys and values.

    Args:
        facts: the model's.
        mean_context: positions that a prompt token sees, on average.
        counters: what was done.
    """
    num_parameters = facts.layer_parameters - facts.after_attention
    num_tokens = counters.num_prefill_tokens
    others = facts.other_experts(num_tokens / max(1, counters.num_prefills)) * (1 - 1 / facts.num_layers)
    num_bytes = counters.num_prefills * (num_parameters + others) * facts.itemsize
    num_bytes += num_tokens * facts.bytes_per_position
    seen = num_tokens * mean_context
    in_matrices = 2 * num_parameters * num_tokens
    in_attention = 4 * (facts.num_layers - 1) * facts.query_width * seen
    return Cost(num_bytes, in_matrices + in_attention)


def floor_seconds(
    facts: ModelFacts, block_size: int, prompt_tokens: int, counters: Counters, ceilings: Ceilings
) -> float:
    """The least time for what the counters say.

    Args:
        facts: the model's.
        block_size: B.
        prompt_tokens: of each prompt; a token of its whole blocks sees half of those and half a block more on average.
        counters: of the measured time only.
        ceilings: of the device.
    """
    prefill_length = prompt_tokens // block_size * block_size
    prefill = prefill_cost(facts, (prefill_length + block_size) / 2, counters)
    return decode_cost(facts, block_size, counters).seconds(ceilings) + prefill.seconds(ceilings)
