"""The continuous backend's host side, part by part: pages, prefixes, batch sizes, the forecast, tiles, budgets."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_continuous import DEVICE, checked, drained, make_core, started
from test_engine import MASK, assert_same, mixed_requests, prompt, tiny_model

from t3d.engine.continuous.forecast import Forecast, Shape, ladder, rounded
from t3d.engine.continuous.memory import plan_budget
from t3d.engine.continuous.pages import PAGE_SIZE, PageAllocator, PagedCache, prefix_keys
from t3d.engine.continuous.prefill import prefill_tiles
from t3d.engine.continuous.state import State
from t3d.engine.continuous.steps import Event, Report
from t3d.types import Decoding

torch.set_num_threads(1)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_page_has_the_owners_that_took_it(data):
    """Random takers and sharers: no page given twice, none lost, page 0 never, shared ones free only after the last."""
    allocator = PageAllocator(12)
    keys = [bytes([index]) for index in range(4)]
    held = []
    for _ in range(data.draw(st.integers(1, 40))):
        action = data.draw(st.sampled_from(["take", "share", "give back", "forget"]))
        if action == "take":
            count = data.draw(st.integers(0, allocator.num_free))
            pages = allocator.take(count)
            taken = {page for other in held for page in other}
            assert not taken & set(pages)
            published = min(count, data.draw(st.integers(0, len(keys))))
            allocator.publish(pages[:published], keys[:published])
            held.append(pages)
        elif action == "share":
            pages = allocator.known(keys)
            allocator.share(pages)
            held.append(pages)
        elif action == "forget":
            allocator.forget()
            assert allocator.known(keys) == []
        elif held:
            allocator.give_back(held.pop(data.draw(st.integers(0, len(held) - 1))))
        owned = {page for pages in held for page in pages}
        assert 0 not in owned
        assert allocator.num_free == 11 - len(owned)


def test_prefix_keys_stand_for_all_tokens_up_to_a_pages_end():
    tokens = prompt(3 * PAGE_SIZE + 7, seed=1)
    keys = prefix_keys(tokens, 3 * PAGE_SIZE + 4, block_size=4)
    assert len(set(keys)) == len(keys) == 3
    changed = [*tokens]
    changed[PAGE_SIZE] = tokens[PAGE_SIZE] + 1
    assert [a == b for a, b in zip(keys, prefix_keys(changed, len(tokens), 4), strict=True)] == [True, False, False]
    assert not set(keys) & set(prefix_keys(tokens, len(tokens), block_size=8))
    assert prefix_keys(tokens, len(tokens), block_size=6) == []  # no page ends with a block


def test_pages_go_out_and_come_back_unchanged():
    config = tiny_model().config
    cache = PagedCache(config, 6, 2, 200, torch.float32, torch.device(DEVICE))
    cache.keys.normal_()
    cache.values.normal_()
    before = [each[:, [4, 2]].clone() for each in (cache.keys, cache.values)]
    copies = cache.read([4, 2])
    cache.clear([4, 2])
    assert not cache.keys[:, [4, 2]].any()
    cache.write([1, 5], copies)
    for stored, expected in zip((cache.keys, cache.values), before, strict=True):
        assert torch.equal(stored[:, [1, 5]], expected)


@given(st.integers(1, 600), st.integers(1, 64), st.data())
def test_rounded_shapes_hold_what_was_asked_for_and_are_few(limit, block_size, data):
    sizes = ladder(limit)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == limit
    rows = data.draw(st.integers(1, limit))
    asked = Shape(rows, data.draw(st.integers(0, rows)), data.draw(st.integers(1, rows * block_size)))
    given_ = rounded(asked, sizes, block_size)
    assert given_.rows in sizes
    assert asked.rows <= given_.rows
    assert asked.commits <= given_.commits <= given_.rows
    assert max(asked.samples, block_size) <= given_.samples <= given_.rows * block_size
    assert len({rounded(Shape(rows, count, 1), sizes, block_size).commits for count in range(rows + 1)}) <= 5


def test_the_forecast_of_fixed_quotas_is_what_happens():
    """Room exactly as forecast: every row takes part in every step, and its phase is the one that was foreseen."""
    model = tiny_model(max_positions=512, head_dim=16).to(DEVICE)
    prompts, decodings, seeds = mixed_requests(24)
    static = [Decoding(steps_per_block=one.steps_per_block, max_new_tokens=one.max_new_tokens) for one in decodings]
    core, _ = started(model, checked(model, prompts, static, seeds), num_slots=6)
    num_steps = 0
    while core.has_work:
        foreseen = core._forecast
        if core._under_way is not None:
            launch = core._under_way
            was_running = launch.is_here()
            foreseen = foreseen.after(launch.slots[was_running], launch.shape)
            report = launch.report()
            events = report[:, Report.EVENTS]
            stopped_early = (events & int(Event.IS_OVER)) > 0
            assert ((events[was_running] & int(Event.TOOK_PART)) > 0).all()
            goes_on = was_running & ~stopped_early
            assert np.array_equal(foreseen.masked[launch.slots][goes_on], report[goes_on, Report.NUM_MASKED])
            assert np.array_equal(foreseen.step[launch.slots][goes_on], report[goes_on, Report.STEP_IN_BLOCK])
            num_steps += 1
        core.step()
    assert num_steps > 20


def test_room_that_is_short_costs_a_wait_and_no_token():
    """A forecast that promises too little: rows wait their turn, and the responses are the same."""
    model = tiny_model(max_positions=512, head_dim=16).to(DEVICE)
    requests = checked(model, *mixed_requests(20))
    core, sequences = started(model, requests)
    expected = drained(core, sequences)
    stingy = make_core(model, requests)
    own = Forecast.shape
    try:
        Forecast.shape = lambda self, slots: Shape(len(slots), 1, self.block_size)
        sequences = [type(one)(one.request, one.arrival) for one in sequences]
        for sequence in sequences:
            stingy.submit(sequence)
        assert [one.token_ids for one in drained(stingy, sequences)] == [one.token_ids for one in expected]
    finally:
        Forecast.shape = own
    assert stingy.counters.num_steps > core.counters.num_steps
    assert stingy.counters.num_rows == core.counters.num_rows


def test_a_large_batch_lets_several_in_at_once():
    """128 slots: the next two enter together, and the last one need not wait for a second."""
    model = tiny_model(max_positions=512, head_dim=16).to(DEVICE)
    count = 131
    lengths = [4 * (1 + index % 30) for index in range(count)]
    prompts = [prompt(8, seed=index) for index in range(count)]
    decodings = [Decoding(max_new_tokens=length, steps_per_block=1) for length in lengths]
    requests = checked(model, prompts, decodings, range(count))
    core, sequences = started(model, requests, num_slots=128)
    running = []
    while core.has_work:
        core.step()
        running.append(core.num_running)
    assert max(running) == 128
    assert core.counters.num_prefills <= 3  # 128, two of the rest, the last
    assert all(sequence.is_over for sequence in sequences)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 50), st.integers(1, 300)), min_size=1, max_size=6),
    st.sampled_from([1, 8, 32]),
)
def test_prefill_tiles_cover_each_token_once(spans, half):
    slots, starts, lengths = (np.array(column) for column in zip(*spans, strict=True))
    tiles = prefill_tiles(slots, starts, lengths, half)
    covered = []
    for slot, position, first, second, end in tiles.tolist():
        assert second == first + half
        assert 1 <= end <= 2 * half
        covered += [(slot, position + place, first + place) for place in range(end)]
    expected, token = [], 0
    for slot, start, length in spans:
        expected += [(slot, start + offset, token + offset) for offset in range(length)]
        token += length
    assert covered == expected


def test_budgets_follow_memory():
    config = tiny_model().config
    model = tiny_model(max_positions=512)
    bytes_per_page = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * PAGE_SIZE * 4
    budget = plan_budget(model, 4, 300, num_slots=100, memory_gib=50 * bytes_per_page / 2**30)
    assert budget.num_pages == 50
    assert plan_budget(model, 4, 300, num_slots=2, memory_gib=1).num_pages == 2 * 6 + 1  # no more than can be used
    shortened = plan_budget(model, 4, 5000, memory_gib=11 * bytes_per_page / 2**30, may_shorten=True)
    assert shortened.num_positions == 10 * PAGE_SIZE


def test_a_state_row_survives_a_round_trip():
    state = State(3, 4, MASK, 2, torch.device(DEVICE))
    request = checked(tiny_model(), [prompt(7)], [Decoding(max_new_tokens=9, temperature=0.5, top_k=3)], [12345])[0]
    row = state.new_row(request)
    state.write([1], [row])
    for written, read in zip(row, state.read(1), strict=True):
        assert torch.equal(written, read)
    assert not state.read(2)[0][:-1].any()


def test_a_request_with_more_stop_tokens_than_the_state_holds_makes_a_wider_one():
    from t3d.engine import Engine

    model = tiny_model().to(DEVICE)
    engine = Engine(model, stop_token_ids=[], backend="continuous")
    few = engine.generate([prompt(5)], Decoding(max_new_tokens=30, stop_token_ids=()))
    many = engine.generate([prompt(5)], Decoding(max_new_tokens=30, stop_token_ids=tuple(range(2, 30))))
    plain = Engine(model, stop_token_ids=[], backend="plain")
    assert_same(many, plain.generate([prompt(5)], Decoding(max_new_tokens=30, stop_token_ids=tuple(range(2, 30)))))
    assert len(many[0].token_ids) < len(few[0].token_ids)


def test_wrong_backends_are_refused():
    from t3d.engine import Engine
    from t3d.errors import RequestError

    with pytest.raises(RequestError, match="backend 'fast' is unknown: use continuous or plain"):
        Engine(tiny_model(), backend="fast")
    model = tiny_model()
    model.model.layers[0].mlp.up_proj = torch.nn.Linear(16, 32, bias=True)
    with pytest.raises(RequestError, match=r"mlp\.up_proj has a bias; use the plain one"):
        Engine(model, backend="continuous")
    model.model.layers[0].mlp.up_proj = torch.nn.Sequential()
    with pytest.raises(RequestError, match=r"mlp\.up_proj is not a plain linear layer; use the plain one"):
        Engine(model, backend="continuous")
