"""What surrounds the model in a step: the Triton twins equal the definition, and the definition keeps its promises."""

import contextlib
import copy
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from t3d.engine.continuous import begin_triton, finish_triton, steps, steps_triton
from t3d.engine.continuous.rules_triton import KERNEL_RULES
from t3d.engine.continuous.state import Field, Setting, State
from t3d.engine.continuous.steps import Event, Report
from t3d.engine.rules import RULES, rule_number
from t3d.engine.sampling import Candidates
from t3d.noise import draw_keys

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VOCAB, MASK = 12, 5
PAGE_SIZE, PAGES = 16, 8
TENSORS = ["numbers", "settings", "stop_tokens", "previous", "active", "reveal_steps", "confidences"]
TWINS = [steps, steps_triton]


@contextlib.contextmanager
def new_memory_is_poison():
    """What a kernel forgets to write is then NaN or the largest integer."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


class Scene:
    """A state with random requests in random moments of their lives, and random slots for a step.

    Few values, exact in float32, so that ties are common and sums have no order.
    """

    def __init__(self, seed, block_size, num_slots, num_idle, num_stop_tokens=8, served=lambda rng: rng.random() < 0.8):
        self.rng = random.Random(seed)
        self.state = State(num_slots, block_size, MASK, num_stop_tokens, DEVICE)
        for slot in range(num_slots):
            self.write(slot, is_running=served(self.rng))
        slots = (
            self.rng.sample(range(num_slots), self.rng.randint((num_slots + 1) // 2, num_slots))
            + [num_slots] * num_idle
        )
        self.rng.shuffle(slots)
        self.slots = torch.tensor(slots, device=DEVICE)
        table = torch.randperm(num_slots * PAGES, generator=torch.Generator().manual_seed(seed)) + 1
        rows = [table.view(num_slots, PAGES), torch.zeros(1, PAGES, dtype=torch.int64)]
        self.page_table = torch.cat(rows).to(torch.int32).to(DEVICE)

    def write(self, slot, is_running):
        """A request that is at its first block, which has prompt tokens, or further."""
        rng, state, size = self.rng, self.state, self.state.block_size
        start, in_prompt = size * rng.randint(0, 5), rng.choice([0, 0, rng.randrange(size)])
        known = [place < in_prompt or rng.random() < rng.choice([0.1, 0.5, 1.0]) for place in range(size)]
        numbers = {
            Field.SEED: rng.getrandbits(63),
            Field.PROMPT_LENGTH: start + in_prompt if in_prompt else rng.randint(0, start),
            Field.MAX_LENGTH: start + in_prompt + rng.randint(1, 3 * size),
            Field.STEPS_PER_BLOCK: rng.randint(1, size),
            Field.RULE: rng.randrange(len(RULES)),
            Field.TOP_K: 0,
            Field.IS_RUNNING: int(is_running),
            Field.BLOCK_START: start,
            Field.STEP_IN_BLOCK: rng.randint(0, size),
            Field.NUM_STEPS: rng.randint(0, 40),
            Field.NUM_FORWARDS: rng.randint(0, 40),
            Field.HAS_UNCOMMITTED: int(start > 0 and not in_prompt and rng.random() < 0.7),
        }
        state.numbers[slot] = torch.tensor([numbers[field] for field in Field])
        state.settings[slot, Setting.THRESHOLD] = rng.randint(0, 8) / 8
        state.settings[slot, Setting.ENTROPY_BOUND] = rng.choice([0, rng.randint(0, 16)]) / 8
        stops = rng.sample([token for token in range(VOCAB) if token != MASK], rng.randint(0, 3))
        for place, token in zip(rng.sample(range(state.stop_tokens.shape[1]), len(stops)), stops, strict=True):
            state.stop_tokens[slot, place] = token
        state.previous[slot] = torch.tensor([self.token() for _ in range(size)])
        state.active[slot] = torch.tensor([self.token() if flag else MASK for flag in known])
        is_revealed = torch.tensor([flag and place >= in_prompt for place, flag in enumerate(known)])
        state.reveal_steps[slot] = is_revealed * rng.randint(1, 9)
        state.confidences[slot] = is_revealed * rng.randint(1, 8) / 8

    def token(self):
        return self.rng.choice([token for token in range(VOCAB) if token != MASK])

    def candidates(self, count, broken=0.0):
        """For so many sampling places; a share of them is not finite."""
        rng = self.rng
        confidence = [
            rng.choice([float("nan"), float("inf")]) if rng.random() < broken else rng.randint(1, 8) / 8
            for _ in range(count)
        ]
        return Candidates(
            torch.tensor([self.token() for _ in range(count)], device=DEVICE),
            torch.tensor(confidence, device=DEVICE),
            torch.tensor([rng.randint(0, 8) / 8 for _ in range(count)], device=DEVICE),
        )


@st.composite
def scenes(draw):
    return Scene(
        draw(st.integers(0, 2**32)),
        block_size=draw(st.sampled_from([1, 3, 4, 8])),
        num_slots=draw(st.integers(1, 6)),
        num_idle=draw(st.integers(0, 2)),
        num_stop_tokens=draw(st.sampled_from([1, 20, 70])),
    )


@st.composite
def budgets(draw, scene):
    """Commit and sampling places: too few, just enough, or more."""
    size = scene.state.block_size
    return draw(st.integers(0, 3)), size + draw(st.integers(0, size * len(scene.slots)))


def assert_same_state(left, right):
    for name in TENSORS:
        torch.testing.assert_close(getattr(left, name), getattr(right, name), rtol=0, atol=0, msg=name)


def assert_same_work(work, expected, scene):
    for name in ("slots", "takes_part", "tiles", "samples", "num_samples"):
        assert getattr(work, name).dtype == getattr(expected, name).dtype, name
        assert getattr(work, name).tolist() == getattr(expected, name).tolist(), name
    count = int(expected.num_samples)
    for name in ("sample_tokens", "sample_slots", "sample_keys"):
        assert getattr(work, name).dtype == getattr(expected, name).dtype, name
        assert getattr(work, name).shape == getattr(expected, name).shape, name
        assert getattr(work, name)[:count].tolist() == getattr(expected, name)[:count].tolist(), name
    assert (work.sample_tokens[count:] == 0).all()
    assert (work.sample_slots[count:] == scene.state.idle_slot).all()
    is_used = used_blocks(expected, scene.state.block_size).repeat_interleave(scene.state.block_size)
    for name in ("tokens", "positions", "places"):
        assert getattr(work, name).dtype == getattr(expected, name).dtype, name
        assert getattr(work, name).shape == getattr(expected, name).shape, name
        assert getattr(work, name)[is_used].tolist() == getattr(expected, name)[is_used].tolist(), name
    assert ((work.tokens >= 0) & (work.tokens < VOCAB)).all()
    assert (work.positions[~is_used] == 0).all()
    assert ((work.places[~is_used] >= 0) & (work.places[~is_used] < PAGE_SIZE)).all()


def used_blocks(work, block_size):
    """Blocks of the forward that are not padding, bool [n + c]: those that a tile names."""
    is_used = torch.zeros(len(work.tokens) // block_size, dtype=torch.bool, device=DEVICE)
    firsts = work.tiles[:, 2:4].flatten().long()
    is_used[firsts[firsts >= 0] // block_size] = True
    return is_used


def one_step(scene, twin_state, commits, samples, broken):
    """Both twins take the same step, each in its own state."""
    expected = steps.begin(scene.state, scene.slots, scene.page_table, PAGE_SIZE, commits, samples)
    with new_memory_is_poison():
        work = steps_triton.begin(twin_state, scene.slots, scene.page_table, PAGE_SIZE, commits, samples)
    assert_same_work(work, expected, scene)
    candidates = scene.candidates(samples, broken)
    rules = frozenset(RULES)
    expected_report = steps.finish(scene.state, expected, candidates, rules)
    with new_memory_is_poison():
        report = steps_triton.finish(twin_state, work, candidates, rules)
    assert report.dtype == expected_report.dtype
    assert report[expected.takes_part].tolist() == expected_report[expected.takes_part].tolist()
    assert (report[~expected.takes_part, Report.EVENTS] == 0).all()
    assert_same_state(twin_state, scene.state)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), scene=scenes())
def test_the_twins_agree_on_a_step(data, scene):
    commits, samples = data.draw(budgets(scene))
    broken = data.draw(st.sampled_from([0.0, 0.0, 0.2]))
    one_step(scene, copy.deepcopy(scene.state), commits, samples, broken)


@pytest.mark.parametrize("seed", range(4))
def test_the_twins_agree_on_many_steps(seed):
    block_size = [1, 3, 4, 8][seed]
    scene = Scene(seed, block_size, num_slots=3, num_idle=1, served=lambda rng: True)
    twin_state = copy.deepcopy(scene.state)
    for _ in range(3 * min(block_size, 4)):
        one_step(scene, twin_state, commits=1, samples=2 * block_size, broken=0.02)


def test_the_twins_agree_on_more_rows_than_a_tile_of_rows_and_positions_holds(monkeypatch):
    """Rows, positions and stop tokens are then read in several pieces."""
    monkeypatch.setattr(begin_triton, "_CELLS_AT_ONCE", 32 * 4)
    monkeypatch.setattr(finish_triton, "_MAX_STOP_TILE", 16)
    scene = Scene(7, block_size=8, num_slots=24, num_idle=2, num_stop_tokens=40)
    one_step(scene, copy.deepcopy(scene.state), commits=3, samples=100, broken=0.1)


def test_sampling_places_beyond_one_tile_of_padding_are_written():
    scene = Scene(3, block_size=3, num_slots=1, num_idle=0)
    one_step(scene, copy.deepcopy(scene.state), commits=1, samples=700, broken=0.0)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**62 + 12345, 2**63 - 1])
@pytest.mark.parametrize("twin", TWINS)
def test_keys_are_those_of_the_noise(twin, seed):
    scene = Scene(0, block_size=4, num_slots=1, num_idle=0, served=lambda rng: True)
    numbers = scene.state.numbers
    numbers[0, Field.SEED], numbers[0, Field.BLOCK_START], numbers[0, Field.NUM_STEPS] = seed, 64, 9
    numbers[0, Field.HAS_UNCOMMITTED] = 0
    scene.state.active[0] = MASK
    work = twin.begin(scene.state, torch.zeros(1, dtype=torch.int64, device=DEVICE), scene.page_table, PAGE_SIZE, 0, 4)
    expected = draw_keys(torch.full((4,), seed), torch.arange(64, 68), torch.full((4,), 9))
    assert work.sample_keys.tolist() == expected.tolist()


def test_the_kernels_know_every_rule():
    assert set(RULES) == KERNEL_RULES


def test_a_rule_that_the_kernel_does_not_know_runs_in_plain_torch(monkeypatch):
    monkeypatch.setitem(RULES, "everything", lambda confidence, is_masked, *_, **__: is_masked)
    scene = Scene(1, block_size=4, num_slots=1, num_idle=0, served=lambda rng: True)
    scene.state.numbers[0, Field.RULE] = rule_number("everything")
    scene.state.numbers[0, Field.HAS_UNCOMMITTED] = 0
    scene.state.active[0] = MASK
    work = steps_triton.begin(scene.state, scene.slots, scene.page_table, PAGE_SIZE, 0, 4)
    report = steps_triton.finish(scene.state, work, scene.candidates(4), frozenset({"everything", "sequential"}))
    assert report[0, Report.EVENTS] & Event.FINISHED_BLOCK


@settings(max_examples=60, deadline=None)
@given(data=st.data(), scene=scenes())
def test_only_masked_places_are_revealed_and_only_in_rows_that_take_part(data, scene):
    commits, samples = data.draw(budgets(scene))
    before = copy.deepcopy(scene.state)
    work = steps.begin(scene.state, scene.slots, scene.page_table, PAGE_SIZE, commits, samples)
    report = steps.finish(scene.state, work, scene.candidates(samples), frozenset(RULES))
    tokens = report[:, Report.HEAD : Report.HEAD + scene.state.block_size].long()
    was_masked = before.active[scene.slots] == MASK
    is_revealed = was_masked & (tokens != MASK)
    assert torch.equal(tokens[~was_masked], before.active[scene.slots][~was_masked])
    assert torch.equal(is_revealed.any(dim=1), work.takes_part & was_masked.any(dim=1))
    waits = scene.slots[~work.takes_part]
    for name in TENSORS:
        assert torch.equal(getattr(scene.state, name)[waits], getattr(before, name)[waits]), name


@settings(max_examples=30, deadline=None)
@given(data=st.data(), scene=scenes())
def test_every_request_is_served_in_the_end(data, scene):
    size = scene.state.block_size
    commits, samples = data.draw(st.integers(1, 3)), size * data.draw(st.integers(1, 3))
    blocks_left = (scene.state.numbers[:, Field.MAX_LENGTH] - scene.state.numbers[:, Field.BLOCK_START]) // size + 1
    for _ in range(int(blocks_left.sum()) * size):
        if not scene.state.numbers[scene.slots, Field.IS_RUNNING].any():
            break
        work = steps.begin(scene.state, scene.slots, scene.page_table, PAGE_SIZE, commits, samples)
        assert work.takes_part.any()
        steps.finish(scene.state, work, scene.candidates(samples), frozenset(RULES))
    assert not scene.state.numbers[scene.slots, Field.IS_RUNNING].any()
