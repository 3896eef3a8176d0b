"""Trajectory -> x_t: which tokens are hidden, what stands in their place, and where the noise comes from."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import MASK, VOCAB, noisy_example, random_row

from t3d.config import CorruptionConfig
from t3d.corruption import HIDERS, TrainingRow, pack, reveal_rank, row_generator
from t3d.corruption.hiding import SMALLEST_HIDDEN_PROBABILITY, hide_by_chance, hide_by_order, ratio_probabilities
from t3d.models.attention import block_index

any_speed = settings(deadline=None)
block_sizes = st.integers(1, 8)
RATIOS = (1.0, 0.75, 0.5, 0.25, 0.1, 1 / 3)


@st.composite
def rows(draw):
    """Prompts on and off the grid, tokens, and reveal steps with ties (several tokens a step)."""
    length = draw(st.integers(1, 20))
    tokens = st.integers(2, MASK - 1)
    return TrainingRow(
        row_id=draw(st.text(max_size=4)),
        prompt_ids=np.asarray(draw(st.lists(tokens, max_size=12)), dtype=np.int64),
        response_ids=np.asarray(draw(st.lists(tokens, min_size=length, max_size=length))),
        reveal_step=np.asarray(draw(st.lists(st.integers(1, 9), min_size=length, max_size=length))),
    )


def places_by_block(row, block_size):
    """Response offsets of each block, in order; laid on absolute positions."""
    blocks = {}
    for offset in range(len(row.response_ids)):
        blocks.setdefault((len(row.prompt_ids) + offset) // block_size, []).append(offset)
    return list(blocks.values())


def slow_order(places, steps):
    """Offsets of a block in order of reveal; ties: lowest position."""
    return sorted(places, key=lambda place: (steps[place], place))


def slow_hidden(row, block_size, share_of, last_first=True):
    """The floor(r n) last (or first) revealed of each block, with r given as (numerator, denominator)."""
    numerator, denominator = share_of
    hidden = set()
    for places in places_by_block(row, block_size):
        order = slow_order(places, row.reveal_step)
        number = len(places) * numerator // denominator
        hidden |= set(order[len(order) - number :] if last_first else order[:number])
    if not hidden:
        order = slow_order(places_by_block(row, block_size)[-1], row.reveal_step)
        hidden = {order[-1] if last_first else order[0]}
    return hidden


def hidden_offsets(example, row):
    return set((example.loss_offsets + example.noisy_start - len(row.prompt_ids)).tolist())


FRACTIONS = {1.0: (1, 1), 0.75: (3, 4), 0.5: (1, 2), 0.25: (1, 4), 0.1: (1, 10), 1 / 3: (1, 3)}


@given(rows(), block_sizes, st.sampled_from(RATIOS), st.sampled_from(["trajectory", "reverse"]))
@settings(max_examples=300, deadline=None)
def test_the_last_revealed_are_hidden(row, block_size, ratio, order):
    example = noisy_example(row, block_size=block_size, ratios=(ratio,), mask_order=order)
    expected = slow_hidden(row, block_size, FRACTIONS[ratio], last_first=order == "trajectory")
    assert hidden_offsets(example, row) == expected


@given(rows(), block_sizes, st.sampled_from(RATIOS))
@any_speed
def test_a_trajectory_state_is_one_the_teacher_was_in(row, block_size, ratio):
    """In each block, whatever is hidden was revealed no earlier than anything visible."""
    example = noisy_example(row, block_size=block_size, ratios=(ratio,))
    hidden = hidden_offsets(example, row)
    for places in places_by_block(row, block_size):
        shown = [row.reveal_step[place] for place in places if place not in hidden]
        masked = [row.reveal_step[place] for place in places if place in hidden]
        assert not shown or not masked or max(shown) <= min(masked)


def test_random_order_hides_as_many_and_any():
    row = random_row("row", 3, 13)
    counts = Counter()
    for epoch in range(400):
        example = noisy_example(row, epoch=epoch, ratios=(0.5,), mask_order="random")
        hidden = hidden_offsets(example, row)
        for places in places_by_block(row, 4):
            assert len(hidden & set(places)) == len(places) // 2
        counts.update(hidden)
    assert counts[0] == 0  # alone in its block: floor(0.5 * 1)
    assert all(150 < counts[offset] < 250 for offset in range(1, 13))  # 200 +- 5 deviations


def test_an_example_that_would_hide_nothing_hides_its_last_revealed_token():
    row = TrainingRow("row", np.arange(2, 6), np.arange(6, 13), np.array([1, 2, 3, 4, 7, 6, 5]))
    assert hidden_offsets(noisy_example(row, ratios=(0.2,)), row) == {4}
    assert hidden_offsets(noisy_example(row, ratios=(0.2,), mask_order="reverse"), row) == {6}


def test_rank_by_hand():
    steps, blocks = np.array([5, 2, 2, 9, 1, 1, 1]), np.array([0, 0, 0, 0, 1, 1, 3])
    assert reveal_rank(steps, blocks).tolist() == [2, 0, 1, 3, 0, 1, 0]


@given(rows(), block_sizes)
@any_speed
def test_ranks_number_each_block(row, block_size):
    positions = len(row.prompt_ids) + np.arange(len(row.response_ids))
    ranks = reveal_rank(row.reveal_step, block_index(positions, block_size))
    for places in places_by_block(row, block_size):
        assert [ranks[place] for place in slow_order(places, row.reveal_step)] == list(range(len(places)))


def test_order_of_reveal_on_another_grid_than_the_rollouts():
    """Rolled out with B = 4, in which each block had an order of its own; steps count through the response."""
    steps = np.array([4, 1, 3, 2, 6, 8, 7, 5])
    positions = np.arange(8)
    assert reveal_rank(steps, block_index(positions, 4)).tolist() == [3, 0, 2, 1, 1, 3, 2, 0]
    # inside a smaller block the order of its own tokens is left
    assert reveal_rank(steps, block_index(positions, 2)).tolist() == [1, 0, 1, 0, 0, 1, 1, 0]
    # in a larger one the first block comes first
    assert reveal_rank(steps, block_index(positions, 8)).tolist() == [3, 0, 2, 1, 5, 7, 6, 4]


@given(st.integers(0, 9), st.integers(1, 20), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
@any_speed
def test_states_on_a_grid_of_several_blocks_of_the_rollouts(prompt, length, block_size, several, seed):
    """In a training block that joins blocks of the rollout, no block is touched before the one in front is done."""
    row = random_row("row", prompt, length, seed)
    blocks = block_index(prompt + np.arange(length), block_size)
    decoded = TrainingRow("row", row.prompt_ids, row.response_ids, 100 * blocks + row.reveal_step)
    example = noisy_example(decoded, block_size=several * block_size, ratios=(0.5,))
    hidden = hidden_offsets(example, decoded)
    for places in places_by_block(decoded, several * block_size):
        begun = [blocks[place] for place in places if place not in hidden]
        assert not begun or all(blocks[place] >= max(begun) for place in hidden & set(places))


# More and more


@given(rows(), block_sizes, st.floats(0, 1), st.floats(0.05, 1), st.floats(0, 1))
@any_speed
def test_the_floor_of_the_hidden_share_rises(row, block_size, lowest, highest, progress):
    lowest, highest = min(lowest, highest), max(lowest, highest)
    example = noisy_example(row, "more_and_more", block_size, progress=progress, rho_min=lowest, rho_max=highest)
    hidden = hidden_offsets(example, row)
    floor = lowest + (highest - lowest) * progress
    for places in places_by_block(row, block_size):
        number = len(hidden & set(places))
        assert np.ceil(floor * len(places) - 1e-6) <= number <= np.ceil(highest * len(places))
        order = slow_order(places, row.reveal_step)
        assert hidden & set(places) == set(order[len(order) - number :])  # a state of the teacher's


def test_hidden_shares_are_drawn_evenly_above_the_floor():
    """One block of 100 tokens: the share can be read off."""
    row = random_row("row", 0, 100)
    for progress, floor in ((0.0, 0.2), (0.5, 0.5), (1.0, 0.8)):
        options = {"block_size": 100, "progress": progress, "rho_min": 0.2, "rho_max": 0.8, "random_token_share": 0}
        shares = [
            len(noisy_example(row, "more_and_more", epoch=epoch, **options).targets) / 100 for epoch in range(400)
        ]
        assert min(shares) >= floor
        assert max(shares) <= 0.8
        assert np.mean(shares) == pytest.approx((floor + 0.8) / 2 + 0.005, abs=0.04)  # rounded up to whole tokens
        assert np.std(shares) == pytest.approx((0.8 - floor) / 12**0.5, abs=0.02)


def test_the_largest_share_hides_a_whole_block_of_four():
    """ceil(0.8 * 4) = 4: what one step a block starts from."""
    row = random_row("row", 4, 8)
    assert hidden_offsets(noisy_example(row, "more_and_more", progress=1.0), row) == set(range(8))


@pytest.mark.parametrize("hider", ["order", "more_and_more"])
def test_any_hider_on_states_takes_masks_at_random(hider):
    row, options = random_row("row", 4, 8), {"ratios": (0.5,), "rho_min": 0.5, "rho_max": 0.5}
    masks = {
        order: {
            frozenset(hidden_offsets(noisy_example(row, hider, epoch=e, mask_order=order, **options), row))
            for e in range(9)
        }
        for order in ("trajectory", "reverse", "random")
    }
    assert len(masks["trajectory"]) == len(masks["reverse"]) == 1
    assert set.union(*map(set, masks["trajectory"] | masks["reverse"])) == set(range(8))  # halves of each block
    assert len(masks["random"]) > 4
    assert all(len(mask) == 4 for mask in masks["random"])


# A mask and its complement


@given(rows(), block_sizes, st.sampled_from(sorted(HIDERS)), st.floats(0, 1))
@any_speed
def test_the_complement_hides_what_the_mask_shows(row, block_size, hider, progress):
    options = {"block_size": block_size, "progress": progress, "random_token_share": 0}
    mask, complement = (noisy_example(row, hider, complement=half, **options) for half in (False, True))
    assert hidden_offsets(mask, row) ^ hidden_offsets(complement, row) == set(range(len(row.response_ids)))
    assert hidden_offsets(mask, row) & hidden_offsets(complement, row) == set()
    assert mask.clean_ids.tolist() == complement.clean_ids.tolist()


def test_a_coin_hides_each_token_half_the_time_alone():
    row = random_row("row", 2, 12)
    hidden = np.zeros((1000, 12))
    for epoch in range(1000):
        example = noisy_example(row, "coin", epoch=epoch)
        hidden[epoch, list(hidden_offsets(example, row))] = 1
        assert (example.weights == 1).all()
    assert hidden.mean(axis=0) == pytest.approx(np.full(12, 0.5), abs=0.08)  # 5 deviations
    correlations = np.corrcoef(hidden.T)[np.triu_indices(12, 1)]
    assert np.abs(correlations).max() < 0.16


# Turns


def test_turns_by_hand():
    """B = 4, two prompt tokens in the first block: what the teacher reveals next among what is hidden."""
    row = TrainingRow("row", np.array([2, 3]), np.arange(4, 10), np.array([2, 1, 6, 3, 5, 4]))
    options = {"row_tokens": None, "block_size": 4, "num_examples_in_step": 2}
    state = noisy_example(row, ratios=(0.75,), random_token_share=0)
    assert hidden_offsets(state, row) == {0, 2, 4, 5}  # of 2 the last 1, of 4 the last 3
    assert pack([state], **options).tokens.turns.tolist() == [0, 2, 1, 0]
    reverse = noisy_example(row, ratios=(0.75,), mask_order="reverse", random_token_share=0)
    assert hidden_offsets(reverse, row) == {1, 3, 4, 5}
    assert pack([reverse], **options).tokens.turns.tolist() == [0, 0, 2, 1]
    assert pack([state, reverse], **options).tokens.turns.tolist() == [0, 2, 1, 0, 0, 0, 2, 1]


@given(rows(), block_sizes, st.sampled_from(sorted(HIDERS)))
@any_speed
def test_turns_number_the_hidden_tokens_of_each_block(row, block_size, hider):
    example = noisy_example(row, hider, block_size)
    tokens = pack([example], row_tokens=None, block_size=block_size, num_examples_in_step=1).tokens
    turns = dict(zip(sorted(hidden_offsets(example, row)), tokens.turns.tolist(), strict=True))
    for places in places_by_block(row, block_size):
        hidden = [place for place in slow_order(places, row.reveal_step) if place in turns]
        assert [turns[place] for place in hidden] == list(range(len(hidden)))


# Layout


@given(rows(), block_sizes, st.sampled_from(sorted(HIDERS)), st.floats(0, 1))
@any_speed
def test_layout(row, block_size, hider, share):
    example = noisy_example(row, hider, block_size, random_token_share=share)
    prompt, length = len(row.prompt_ids), len(row.response_ids)
    assert example.clean_ids.tolist() == [*row.prompt_ids, *row.response_ids]
    assert example.noisy_start == prompt // block_size * block_size
    end = example.noisy_start + len(example.noisy_ids)
    assert end % block_size == 0
    assert prompt + length <= end < prompt + length + block_size
    absolute = dict(enumerate(example.noisy_ids.tolist(), start=example.noisy_start))
    hidden = hidden_offsets(example, row)
    assert hidden <= set(range(length))  # no loss on the prompt's left-over tokens, nor after the stop token
    for position in range(example.noisy_start, prompt):
        assert absolute[position] == row.prompt_ids[position]
    for offset in set(range(length)) - hidden:
        assert absolute[prompt + offset] == row.response_ids[offset]
    for position in range(prompt + length, end):
        assert absolute[position] == MASK
    assert example.targets.tolist() == [row.response_ids[offset] for offset in sorted(hidden)]
    ranks = {
        place: rank
        for places in places_by_block(row, block_size)
        for rank, place in enumerate(slow_order(places, row.reveal_step))
    }
    assert example.ranks.tolist() == [ranks[offset] for offset in sorted(hidden)]
    assert example.num_tokens == prompt + length + end - example.noisy_start


@given(st.integers(0, 9), st.integers(1, 12), block_sizes)
@any_speed
def test_a_text_without_an_order_counts_as_written_left_to_right(prompt, length, block_size):
    written = random_row("row", prompt, length)
    text = TrainingRow("row", written.prompt_ids, written.response_ids, None)
    ordered = TrainingRow("row", written.prompt_ids, written.response_ids, np.arange(length))
    left, right = (noisy_example(row, block_size=block_size, ratios=(0.5,)) for row in (text, ordered))
    assert left.noisy_ids.tolist() == right.noisy_ids.tolist()
    assert left.ranks.tolist() == right.ranks.tolist()


@given(st.integers(0, 12), st.integers(1, 12), block_sizes)
@any_speed
def test_one_grid_for_all_prompt_lengths(prompt, length, block_size):
    """Blocks lie on absolute positions: lengthening the prompt by whole blocks moves nothing."""
    row = random_row("row", prompt, length)
    prefix = np.full(2 * block_size, 7)
    longer = TrainingRow("row", np.concatenate([prefix, row.prompt_ids]), row.response_ids, row.reveal_step)
    left, right = noisy_example(row, block_size=block_size), noisy_example(longer, block_size=block_size)
    assert right.noisy_start == left.noisy_start + 2 * block_size
    assert left.noisy_ids.tolist() == right.noisy_ids.tolist()
    assert left.loss_offsets.tolist() == right.loss_offsets.tolist()


# Random tokens


@pytest.mark.parametrize("share, number", [(0.0, 0), (0.1, 4), (0.25, 10), (1.0, 40)])
def test_random_token_share_is_exact(share, number):
    row = random_row("row", 4, 40)
    masked = [
        noisy_example(row, epoch=epoch, ratios=(1.0,), random_token_share=share).noisy_ids == MASK
        for epoch in range(20)
    ]
    assert {int(is_mask.sum()) for is_mask in masked} == {40 - number}
    assert number in (0, 40) or len({tuple(is_mask) for is_mask in masked}) > 10  # at other places every epoch


def test_random_tokens_are_uniform_and_never_the_mask_token():
    row = random_row("row", 0, 60)
    drawn = Counter()
    for epoch in range(100):
        drawn.update(noisy_example(row, epoch=epoch, ratios=(1.0,), random_token_share=1).noisy_ids.tolist())
    assert set(drawn) == set(range(VOCAB)) - {MASK}
    assert all(130 < number < 270 for number in drawn.values())  # 200 +- 5 deviations


# Where the noise comes from


def same_noise(left, right):
    return left.noisy_ids.tolist() == right.noisy_ids.tolist() and left.weights.tolist() == right.weights.tolist()


@pytest.mark.parametrize("hider", HIDERS)
def test_noise_depends_on_seed_epoch_and_row_id_only(hider):
    row = random_row("row", 5, 30)
    first = noisy_example(row, hider)
    noisy_example(random_row("other", 5, 30), hider)
    np.random.seed(3)  # noqa: NPY002 - somebody else's randomness must not matter
    assert same_noise(first, noisy_example(row, hider))
    renamed = TrainingRow("other", row.prompt_ids, row.response_ids, row.reveal_step)
    assert not same_noise(first, noisy_example(row, hider, seed=1))
    assert not same_noise(first, noisy_example(row, hider, epoch=1))
    assert not same_noise(first, noisy_example(renamed, hider))


def test_a_rows_stream_never_changes():
    """Resumed and published runs rest on these numbers, on every platform."""
    assert row_generator(0, 0, "story/train/0/0").integers(0, 1000, 5).tolist() == [347, 911, 738, 972, 95]


def test_keys_do_not_run_together():
    streams = [row_generator(*key).integers(0, 2**63) for key in [(1, 11, "x"), (11, 1, "x"), (1, 1, "1:x")]]
    assert len(set(streams)) == 3


# Ratios


def test_ratio_probabilities_by_hand():
    found = ratio_probabilities(CorruptionConfig())
    powers = [1.0, 0.1001129150390625, 0.00390625, 0.0000152587890625]  # 1, .75, .5, .25 to the 8th
    assert found == pytest.approx([power / 1.1040344238281250 for power in powers], abs=1e-12)


def test_the_power_of_the_ratios_changes_over_the_run():
    config = CorruptionConfig(ratios=(1.0, 0.5), ratio_power=-1, final_ratio_power=3)
    assert ratio_probabilities(config, 0.0) == pytest.approx([1 / 3, 2 / 3])  # 1 to 2
    assert ratio_probabilities(config, 0.5) == pytest.approx([2 / 3, 1 / 3])  # half way, power 1: 1 to 1/2
    assert ratio_probabilities(config, 1.0) == pytest.approx([8 / 9, 1 / 9])  # 1 to 1/8
    still = CorruptionConfig(ratios=(1.0, 0.5), ratio_power=3)
    assert (ratio_probabilities(still, 0.7) == ratio_probabilities(still)).all()


@pytest.mark.parametrize("power", [-100, 100])
def test_small_ratios_with_large_powers_have_probabilities(power):
    """1e-5 ** 100 is no number that a float holds."""
    likely, unlikely = sorted((1e-5, 1e-4), reverse=power > 0)
    config = CorruptionConfig(ratios=(likely, unlikely), ratio_power=power)
    assert ratio_probabilities(config) == pytest.approx([1, 0], abs=1e-12)


def test_states_follow_the_power_of_the_moment():
    row, options = random_row("row", 0, 4), {"ratios": (1.0, 0.25), "ratio_power": -50, "final_ratio_power": 50}
    early, late = ([len(noisy_example(row, epoch=e, progress=p, **options).targets) for e in range(20)] for p in (0, 1))
    assert set(early) == {1}
    assert set(late) == {4}


def test_ratios_are_drawn_with_these_probabilities():
    row = random_row("row", 0, 4)
    drawn = Counter(len(noisy_example(row, epoch=epoch, ratio_power=2).targets) for epoch in range(3000))
    for number, share in {4: 16 / 30, 3: 9 / 30, 2: 4 / 30, 1: 1 / 30}.items():
        assert drawn[number] / 3000 == pytest.approx(share, abs=5 * (share * (1 - share) / 3000) ** 0.5)


# NELBO


def chances(blocks, epochs):
    """(hidden [epochs, L], t [epochs, L]) of `hide_by_chance`; t is read off the weights."""
    drawn = [
        hide_by_chance(np.zeros_like(blocks), blocks, row_generator(0, epoch, "row"), CorruptionConfig())
        for epoch in range(epochs)
    ]
    hidden, weights = (np.stack(column) for column in zip(*drawn, strict=True))
    return hidden, 1 / (weights * len(blocks))


def test_each_blocks_chance_is_uniform():
    blocks = np.array([2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5])
    _, t = chances(blocks, 4000)
    for block in (2, 3, 4, 5):
        of_block = t[:, blocks == block]
        assert (of_block == of_block[:, :1]).all()  # one t a block
        quantiles = np.sort(of_block[:, 0])
        distance = np.abs(quantiles - (np.arange(4000) + 0.5) / 4000).max()  # Kolmogorov and Smirnov
        assert distance < 1.95 / 4000**0.5  # exceeded once in a thousand; the seed is fixed


def test_chances_are_stratified():
    """With n blocks, each n-th of (0, 1] holds exactly one of their t."""
    _, t = chances(np.arange(8), 200)
    assert (np.sort(np.floor(t * 8 - 1e-9), axis=1) == np.arange(8)).all()


def test_tokens_are_hidden_with_probability_t():
    hidden, t = chances(np.repeat(np.arange(5), 4), 4000)
    for low in np.arange(0, 1, 0.1):
        inside = (t >= low) & (t < low + 0.1)
        assert hidden[inside].mean() == pytest.approx(t[inside].mean(), abs=0.03)


def test_chance_weights_are_one_over_t_l_and_finite():
    hidden, t = chances(np.zeros(3, np.int64), 5000)
    assert (t >= SMALLEST_HIDDEN_PROBABILITY * (1 - 1e-12)).all()
    assert (t <= 1).all()
    row = random_row("row", 1, 3)
    for epoch in range(50):
        example = noisy_example(row, "chance", epoch=epoch)
        assert example.weights == pytest.approx(1 / (t[epoch, 0] * 3) * np.ones(hidden[epoch].sum()))


def test_nelbo_estimate_is_unbiased():
    """One block of three tokens whose loss depends on what is hidden, against the integral over t, term by term."""
    loss = {pattern: [1 + i + 2 * sum(pattern) for i in range(3)] for pattern in product((0, 1), repeat=3)}

    def exact():
        steps = (np.arange(20_000) + 0.5) / 20_000
        total = 0.0
        for pattern, values in loss.items():
            number = sum(pattern)
            if number:
                weight = (steps ** (number - 1) * (1 - steps) ** (3 - number)).mean()  # t^n (1 - t)^(3 - n) / t
                total += weight * sum(value for value, is_hidden in zip(values, pattern, strict=True) if is_hidden)
        return total / 3

    rng = np.random.default_rng(0)
    estimates = []
    for _ in range(20_000):
        hidden, weights = hide_by_chance(np.zeros(3), np.zeros(3, np.int64), rng, CorruptionConfig())
        estimates.append((np.asarray(loss[tuple(hidden.astype(int))]) * weights)[hidden].sum())
    error = np.std(estimates) / len(estimates) ** 0.5
    assert np.mean(estimates) == pytest.approx(exact(), abs=4 * error)
    assert error < 0.02 * exact()


def test_hiding_by_order_weighs_every_token_one():
    hidden, weights = hide_by_order(np.arange(4), np.zeros(4, np.int64), row_generator(0, 0, "x"), CorruptionConfig())
    assert weights.tolist() == [1.0] * 4
    assert hidden.dtype == bool
