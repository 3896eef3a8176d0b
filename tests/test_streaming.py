"""The asynchronous face: blocks as they finish, the plain engine's responses, and nothing held for those who left."""

import asyncio
import time
from contextlib import aclosing

import pytest
import torch
from test_continuous import DEVICE
from test_engine import EOS, assert_same, mixed_requests, prompt, tiny_model

from t3d.engine import AsyncEngine, Engine
from t3d.errors import RequestError, WorkError
from t3d.types import Decoding

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model():
    return tiny_model(max_positions=512, head_dim=16).to(DEVICE)


@pytest.fixture
def engine(model):
    one = AsyncEngine(model, stop_token_ids=[EOS], max_batch_size=8, max_positions=400)
    yield one
    one.close()


async def collected(engine, *request):
    return [block async for block in engine.stream(*request)]


def test_streams_of_many_callers_are_the_plain_engines_responses(model, engine):
    prompts, decodings, seeds = mixed_requests(40)

    async def all_streams():
        return await asyncio.gather(*(collected(engine, *one) for one in zip(prompts, decodings, seeds, strict=True)))

    streams = asyncio.run(all_streams())
    expected = Engine(model, stop_token_ids=[EOS], backend="plain").generate(prompts, decodings, seeds)
    assert_same([blocks[-1].generation for blocks in streams], expected)
    for blocks, whole in zip(streams, expected, strict=True):
        assert all(block.generation is None for block in blocks[:-1])
        for column in ("token_ids", "reveal_steps", "confidences"):
            joined = [value for block in blocks for value in getattr(block, column)]
            assert joined == pytest.approx(getattr(whole, column), rel=1e-3)


def test_block_sizes_wait_for_each_other(model, engine):
    decodings = [Decoding(block_size=size, max_new_tokens=12) for size in (4, 8, 4, 2)]

    async def both():
        return await asyncio.gather(*(engine.generate(prompt(9, seed=i), one) for i, one in enumerate(decodings)))

    plain = Engine(model, stop_token_ids=[EOS], backend="plain")
    expected = [plain.generate([prompt(9, seed=i)], [one])[0] for i, one in enumerate(decodings)]
    assert_same(asyncio.run(both()), expected)


def test_who_leaves_frees_what_it_held(engine):
    async def leave_early():
        async with aclosing(engine.stream(prompt(70), Decoding(max_new_tokens=300, stop_token_ids=()))) as blocks:
            async for _ in blocks:
                break
        await engine.generate(prompt(4), Decoding(max_new_tokens=4))
        for _ in range(100):
            if engine.load().num_running == 0:
                break
            await asyncio.sleep(0.02)
        return engine.load()

    load = asyncio.run(leave_early())
    assert (load.num_running, load.num_waiting, load.share_of_pages_in_use) == (0, 0, 0)


def test_wrong_requests_and_a_closed_engine_say_so(model):
    engine = AsyncEngine(model, max_batch_size=2, max_positions=100)
    with pytest.raises(RequestError, match="prompt 0 is empty"):
        asyncio.run(engine.generate([]))
    with pytest.raises(RequestError, match="take 208 positions"):
        asyncio.run(engine.generate(prompt(8), Decoding(max_new_tokens=200)))

    async def closed_meanwhile():
        waiting = asyncio.create_task(engine.generate(prompt(8), Decoding(max_new_tokens=90, stop_token_ids=())))
        await asyncio.sleep(0)
        await asyncio.to_thread(engine.close)
        await waiting

    with pytest.raises(WorkError, match="closed"):
        asyncio.run(closed_meanwhile())
    with pytest.raises(WorkError, match="closed"):
        asyncio.run(engine.generate(prompt(8), Decoding(max_new_tokens=9)))


def test_a_request_that_nobody_has_taken_in_is_answered_when_the_engine_closes(model, monkeypatch):
    monkeypatch.setattr("t3d.engine.streaming._Worker._take_in", lambda self: time.sleep(0.01))
    engine = AsyncEngine(model, max_batch_size=2, max_positions=100)

    async def closed_meanwhile():
        waiting = asyncio.create_task(engine.generate(prompt(8), Decoding(max_new_tokens=9)))
        await asyncio.sleep(0)
        await asyncio.to_thread(engine.close)
        await asyncio.wait_for(waiting, timeout=10)

    with pytest.raises(WorkError, match="closed"):
        asyncio.run(closed_meanwhile())


def test_a_broken_worker_leaves_nobody_waiting(model, engine, monkeypatch):
    def broken(core):
        raise RuntimeError("out of order")

    monkeypatch.setattr("t3d.engine.continuous.core.Core.step", broken)
    with pytest.raises(WorkError, match="out of order"):
        asyncio.run(engine.generate(prompt(8), Decoding(max_new_tokens=9)))
