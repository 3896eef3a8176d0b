"""The decoding settings that an evaluation goes through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from t3d.errors import RequestError
from t3d.types import Decoding

DYNAMIC = "low_confidence_dynamic"
ENTROPY = "entropy_bounded"
STATIC = "low_confidence_static"
SETTING_FIELDS = (
    "label",
    "tokens_per_step",
    "rule",
    "threshold",
    "entropy_bound",
    "block_size",
    "steps_per_block",
    "temperature",
    "top_k",
    "top_p",
    "max_new_tokens",
)


def settings_to_try(
    tokens_per_step: Sequence[int],
    thresholds: Sequence[float],
    base: Decoding,
    model_block_size: int,
    entropy_bounds: Sequence[float] = (),
) -> list[Decoding]:
    """Decoding settings: the base rule at each number of tokens per step, then the rules that decide by themselves.

    Args:
        tokens_per_step: each divides the block size.
        thresholds: of the dynamic rule.
        base: all else, and the rule of the first kind.
        model_block_size: where `base` has none.
        entropy_bounds: nats, of the entropy-bounded rule.

    Raises:
        RequestError: a number of tokens per step that does not divide the block, a threshold or bound out of range, the
            same setting twice, or none.
    """
    block_size = base.block_size or model_block_size
    for number in tokens_per_step:
        if number < 1 or block_size % number:
            raise RequestError(f"tokens-per-step {number} does not divide the block size {block_size}")
    full = replace(base, block_size=block_size, steps_per_block=block_size)
    settings = [replace(full, steps_per_block=block_size // number) for number in tokens_per_step]
    settings += [replace(full, rule=DYNAMIC, threshold=threshold) for threshold in thresholds]
    settings += [replace(full, rule=ENTROPY, entropy_bound=bound) for bound in entropy_bounds]
    if not settings:
        raise RequestError("nothing to evaluate: give --tokens-per-step, --threshold or --entropy-bound")
    twice = [label for label, count in Counter(map(label_of, settings)).items() if count > 1]
    if twice:
        cure = "name each value once"
        if base.rule in (DYNAMIC, ENTROPY):
            cure = "leave out --rule: --threshold and --entropy-bound name such rules"
        raise RequestError(f"{twice[0]} would be measured twice: {cure}")
    return settings


def label_of(decoding: Decoding) -> str:
    """How tables name a resolved setting."""
    assert decoding.block_size is not None
    assert decoding.steps_per_block is not None
    number = decoding.block_size / decoding.steps_per_block
    if decoding.rule == DYNAMIC:
        return f"dynamic > {decoding.threshold:g}" + (f", at least {number:g}/step" if number != 1 else "")
    if decoding.rule == ENTROPY:
        return f"entropy <= {decoding.entropy_bound:g}"
    label = f"{number:g} token{'s' if number != 1 else ''}/step"
    return label if decoding.rule == STATIC else f"{label}, {decoding.rule}"


def setting_fields(decoding: Decoding) -> dict[str, Any]:
    """What a `SettingResult` says of how it was decoded, from a resolved setting: all of `SETTING_FIELDS`."""
    assert decoding.block_size is not None
    assert decoding.steps_per_block is not None
    decides_itself = decoding.rule in (DYNAMIC, ENTROPY)
    derived = {
        "label": label_of(decoding),
        "tokens_per_step": None if decides_itself else decoding.block_size / decoding.steps_per_block,
        "threshold": decoding.threshold if decoding.rule == DYNAMIC else None,
        "entropy_bound": decoding.entropy_bound if decoding.rule == ENTROPY else None,
    }
    return {name: derived[name] if name in derived else getattr(decoding, name) for name in SETTING_FIELDS}
