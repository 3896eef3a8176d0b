"""What the pictures of docs/concepts.md show: computed by the package's own functions, plain enough for JSON."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from t3d.config import CorruptionConfig
from t3d.corruption import LossTokens, NoisyExample, TrainingRow, corrupt, pack, row_generator
from t3d.demo import ROUNDS, TEACHER, demo_recipe
from t3d.engine import Engine
from t3d.engine.plain import PlainEngine
from t3d.models import mask_token_id
from t3d.models.attention import block_causal_mask, block_index, block_start, first_response_block, two_copy_mask
from t3d.objectives import Scores, build_objective
from t3d.objectives.path import path_weights
from t3d.types import Decoding, Generation
from t3d.viewer.order import step_rank

QUESTION = (
    "Question: Anna has 21 stamps. She sells 4 of them. She gets 14 more. How many stamps does Anna have now?\nAnswer:"
)
STUDENT = "story-mini-student"
NUM_BLOCKS_SHOWN = 3
SEED = 3
"""Of the corruption that is shown."""
RATIOS = (1.0, 0.75, 0.5, 0.25)
PROMPT_LENGTH, LENGTH, BLOCK_SIZE = 5, 7, 4
"""Of the sequence whose attention is shown; the prompt ends inside a block."""
GAPS = tuple(range(-60, 61, 4))
"""Nats, of the DDO curves."""


@cache
def engine_of(model: str, fused: bool = True) -> Engine:
    """A built-in model on the CPU."""
    engine = Engine.from_pretrained(model, device="cpu")
    if fused:
        return engine
    return Engine(engine.model, engine.tokenizer, backend=PlainEngine(engine.model, fused_commit=False))


@cache
def answer_of(model: str, steps_per_block: int, fused: bool = True) -> Generation:
    """A model's greedy answer to `QUESTION`."""
    decoding = Decoding(steps_per_block=steps_per_block, max_new_tokens=160)
    return engine_of(model, fused).generate_text([QUESTION], decoding)[0]


def shown(token_id: int) -> str:
    """A token for people: blanks as ·, newlines as ⏎."""
    return engine_of(TEACHER).tokenizer.decode([token_id]).replace(" ", "·").replace("\n", "⏎")


def attention() -> dict[str, Any]:
    """Who sees whom: `decoding` [S][S] of whole blocks; `training` [S'][S'], the clean sequence and its noisy copy."""
    num_positions = 3 * BLOCK_SIZE
    positions = torch.arange(num_positions)
    decoding = block_causal_mask(positions[None], positions, BLOCK_SIZE)[0]
    ids = torch.arange(PROMPT_LENGTH + LENGTH).numpy()
    row = TrainingRow("shown", ids[:PROMPT_LENGTH], ids[PROMPT_LENGTH:], ids[:LENGTH] + 1)
    batch = pack([_corrupted(row, 1.0)], row_tokens=None, block_size=BLOCK_SIZE, num_examples_in_step=1)
    real = (batch.document_ids[0] >= 0).nonzero()[:, 0]
    training = two_copy_mask(batch.position_ids, batch.document_ids, batch.copy_ids, BLOCK_SIZE)[0][real][:, real]
    return {
        "block_size": BLOCK_SIZE,
        "prompt_length": PROMPT_LENGTH,
        "decoding": decoding.int().tolist(),
        "training": training.int().tolist(),
        "training_positions": batch.position_ids[0][real].tolist(),
        "training_is_noisy": batch.copy_ids[0][real].tolist(),
    }


def trajectory() -> dict[str, Any]:
    """The first blocks of two answers: positions from `start`, tokens, and the step that revealed each (0: prompt)."""
    return {
        "start": block_start(first_response_block(len(answer_of(TEACHER, 4).prompt_ids), 4), 4),
        "answers": [
            {"model": model, "steps_per_block": steps, **_first_blocks(answer_of(model, steps))}
            for model, steps in ((TEACHER, 4), (STUDENT, 2))
        ],
    }


def _first_blocks(answer: Generation) -> dict[str, Any]:
    start = block_start(first_response_block(len(answer.prompt_ids), 4), 4)
    left_over = answer.prompt_ids[start:]
    count = NUM_BLOCKS_SHOWN * 4 - len(left_over)
    return {
        "tokens": [shown(each) for each in [*left_over, *answer.token_ids[:count]]],
        "steps": [0] * len(left_over) + answer.reveal_steps[:count],
        "num_tokens": len(answer.token_ids),
        "num_forwards": answer.num_forwards,
    }


def hiding() -> dict[str, Any]:
    """The noisy copies of the teacher's first blocks at each ratio, by the trajectory and in reverse.

    `rows` holds for each (mask order, ratio) the tokens shown; None is the mask token.
    """
    answer = answer_of(TEACHER, 4)
    prompt_length = len(answer.prompt_ids)
    start = block_start(first_response_block(prompt_length, 4), 4)
    count = start + NUM_BLOCKS_SHOWN * 4 - prompt_length
    ids, steps = torch.tensor(answer.token_ids[:count]).numpy(), torch.tensor(answer.reveal_steps[:count]).numpy()
    row = TrainingRow("shown", torch.tensor(answer.prompt_ids).numpy(), ids, steps)
    mask = mask_token_id(engine_of(TEACHER).model.config)
    settings = [("trajectory", ratio) for ratio in RATIOS] + [("reverse", 0.5)]
    rows = []
    for order, ratio in settings:
        example = _corrupted(row, ratio, order, 0.1, mask, len(engine_of(TEACHER).tokenizer))
        tokens = [None if each == mask else shown(each) for each in example.noisy_ids.tolist()]
        rows.append({"mask_order": order, "ratio": ratio, "tokens": tokens, "loss": example.loss_offsets.tolist()})
    blocks = block_index(prompt_length + torch.arange(count).numpy(), 4)
    return {
        "start": start,
        "num_known": prompt_length - start,
        "tokens": [shown(each) for each in [*answer.prompt_ids[start:], *answer.token_ids[:count]]],
        "turns": [0] * (prompt_length - start) + step_rank(steps, blocks).tolist(),
        "rows": rows,
    }


def _corrupted(
    row: TrainingRow, ratio: float, order: Any = "trajectory", share: float = 0.0, mask: int = 99, vocab: int = 100
) -> NoisyExample:
    config = CorruptionConfig(ratios=(ratio,), mask_order=order, random_token_share=share)
    rng = row_generator(SEED, 0, row.row_id)
    return corrupt(row, config, "order", block_size=4, mask_token_id=mask, vocab_size=vocab, rng=rng)


def budget() -> dict[str, Any]:
    """What each step budget cost the student: tokens per step against tokens per forward, with and without own commits.

    `timeline` is, for the first blocks at two steps each, how many denoising steps each took.
    """
    rows = []
    for steps in (4, 2, 1):
        fused, unfused = answer_of(STUDENT, steps), answer_of(STUDENT, steps, fused=False)
        rows.append(
            {
                "tokens_per_step": 4 // steps,
                "num_tokens": len(fused.token_ids),
                "num_forwards": fused.num_forwards,
                "num_forwards_unfused": unfused.num_forwards,
            }
        )
    answer = answer_of(STUDENT, 2)
    positions = len(answer.prompt_ids) + torch.arange(len(answer.token_ids)).numpy()
    blocks = block_index(positions, 4)
    turns = step_rank(torch.tensor(answer.reveal_steps).numpy(), blocks)
    timeline = [int(turns[blocks == block].max()) for block in sorted(set(blocks.tolist()))[:NUM_BLOCKS_SHOWN]]
    return {"rows": rows, "timeline": timeline}


def objective() -> dict[str, Any]:
    """The two terms of DDO over their gaps (nats), and the weight of each rank in the path term at ratio 1."""
    ddo = build_objective("ddo")
    zero = torch.zeros(1)
    terms: dict[str, list[float]] = {"ddo_real": [], "ddo_fake": []}
    for gap in GAPS:
        scores = Scores(zero + gap, zero.long(), fake=zero + gap, reference_real=zero, reference_fake=zero)
        _, metrics = ddo(scores, _one_example([0], 4))
        for name, values in terms.items():
            values.append(round(metrics[name].item(), 4))
    weights = {  # by k, in blocks of 8
        str(k): [round(each, 4) for each in path_weights(_one_example(range(8), 8), k).tolist()] for k in (2, 4, 8)
    }
    return {"gaps": list(GAPS), "terms": terms, "path_weights": weights}


def _one_example(ranks: Any, block_size: int) -> LossTokens:
    ranks = torch.tensor(list(ranks))
    nothing = torch.zeros_like(ranks)
    return LossTokens(
        targets=nothing,
        ranks=ranks,
        turns=ranks,
        weights=torch.ones(len(ranks)),
        draw_keys=nothing,
        example=nothing,
        num_examples=1,
        num_examples_in_step=1,
        block_size=block_size,
    )


def rounds() -> dict[str, Any]:
    """The demo's rounds: tokens per step of the answers that each learns from, and what is kept of them."""
    recipe = demo_recipe(".", 0)  # type: ignore[arg-type]
    every = recipe["every_round"]
    return {
        "teacher": TEACHER,
        "tokens_per_step": [4 // steps for steps in ROUNDS],
        "answers": every["rollout"]["count"],  # type: ignore[index]
        "agree_with": every["agree_with"],  # type: ignore[index]
        "teacher_share": every["teacher_share"],  # type: ignore[index]
    }


FACTS = {
    "attention": attention,
    "trajectory": trajectory,
    "hiding": hiding,
    "budget": budget,
    "objective": objective,
    "rounds": rounds,
}
"""Picture -> what it shows."""
