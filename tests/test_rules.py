"""The decoding rules against a slow, obvious version, and the contract that every rule in the registry keeps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t3d.engine.rules import RULES

torch.set_num_threads(1)


def quota(step, steps_per_block, block_size):
    return block_size // steps_per_block + (1 if step < block_size % steps_per_block else 0)


def slow_rule(name, confidence, is_masked, step, steps_per_block, entropy, threshold, entropy_bound):
    """One row, in plain Python."""
    masked = [place for place, flag in enumerate(is_masked) if flag]
    count = quota(step, steps_per_block, len(is_masked))
    by_confidence = sorted(masked, key=lambda place: (-confidence[place], place))
    if name == "sequential":
        return set(masked[:count])
    if name == "low_confidence_static":
        return set(by_confidence[:count])
    if name == "low_confidence_dynamic":
        return set(by_confidence[:count]) | {place for place in masked if confidence[place] > threshold}
    chosen, total = set(), 0.0
    for place in sorted(masked, key=lambda place: (entropy[place], place)):
        total += entropy[place]
        if total > entropy_bound and chosen:
            break
        chosen.add(place)
        if total > entropy_bound:
            break
    return chosen


@st.composite
def situations(draw):
    block_size = draw(st.integers(1, 9))
    steps_per_block = draw(st.integers(1, block_size))
    # Eighths are exact in float32, and few values make many ties.
    eighths = st.integers(0, 8).map(lambda number: number / 8)
    row = st.lists(eighths, min_size=block_size, max_size=block_size)
    flags = st.lists(st.booleans(), min_size=block_size, max_size=block_size)
    return {
        "confidence": draw(row),
        "entropy": draw(row),
        "is_masked": draw(flags),
        "step": draw(st.integers(0, steps_per_block - 1)),
        "steps_per_block": steps_per_block,
        "threshold": draw(eighths),
        "entropy_bound": draw(eighths),
    }


def apply(name, situation):
    tensor = {key: torch.tensor([situation[key]]) for key in ("confidence", "entropy", "is_masked")}
    return RULES[name](
        tensor["confidence"],
        tensor["is_masked"],
        situation["step"],
        situation["steps_per_block"],
        entropy=tensor["entropy"],
        threshold=situation["threshold"],
        entropy_bound=situation["entropy_bound"],
    )


@pytest.mark.parametrize("name", ["sequential", "low_confidence_static", "low_confidence_dynamic", "entropy_bounded"])
@settings(max_examples=150, deadline=None)
@given(situation=situations())
def test_rule_equals_the_slow_version(name, situation):
    assert set(apply(name, situation)[0].nonzero()[:, 0].tolist()) == slow_rule(name, **situation)


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=60, deadline=None)
@given(situation=situations())
def test_contract_only_masked_at_least_one_and_pure(name, situation):
    is_masked = torch.tensor([situation["is_masked"]])
    reveal = apply(name, situation)
    assert reveal.dtype == torch.bool
    assert reveal.shape == is_masked.shape
    assert not (reveal & ~is_masked).any()
    assert reveal.any() == is_masked.any()
    assert torch.equal(reveal, apply(name, situation))


@pytest.mark.parametrize("name", RULES)
def test_contract_rows_are_independent_and_settings_may_differ_by_row(name):
    generator = torch.Generator().manual_seed(0)
    rows, block_size = 12, 6
    confidence = torch.rand(rows, block_size, generator=generator)
    entropy = torch.rand(rows, block_size, generator=generator)
    is_masked = torch.rand(rows, block_size, generator=generator) < 0.7
    steps_per_block = torch.randint(1, block_size + 1, (rows,), generator=generator)
    step = torch.zeros(rows, dtype=torch.int64)
    threshold = torch.rand(rows, generator=generator)
    bound = torch.rand(rows, generator=generator)
    together = RULES[name](
        confidence, is_masked, step, steps_per_block, entropy=entropy, threshold=threshold, entropy_bound=bound
    )
    for row in range(rows):
        alone = RULES[name](
            confidence[row : row + 1],
            is_masked[row : row + 1],
            0,
            int(steps_per_block[row]),
            entropy=entropy[row : row + 1],
            threshold=threshold[row].item(),
            entropy_bound=bound[row].item(),
        )
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("block_size", [1, 4, 7])
def test_contract_a_full_block_takes_at_most_the_steps_asked_for(name, block_size):
    """Static rules take exactly T; the others never more, except `entropy_bounded`, which knows no T."""
    for steps_per_block in range(1, block_size + 1):
        is_masked = torch.ones(1, block_size, dtype=torch.bool)
        taken = 0
        while is_masked.any():
            reveal = RULES[name](
                torch.full((1, block_size), 0.5),
                is_masked,
                taken,
                steps_per_block,
                entropy=torch.full((1, block_size), 0.5),
                threshold=0.9,
                entropy_bound=0.1,
            )
            is_masked = is_masked & ~reveal
            taken += 1
        assert taken == (block_size if name == "entropy_bounded" else steps_per_block)
