"""What a server asks of the asynchronous engine: one core for all requests, and callers that may vanish."""

import asyncio
import threading

import pytest
import torch
from serving import wait_for
from test_continuous import DEVICE
from test_engine import EOS, assert_same, mixed_requests, prompt, tiny_model

from t3d.engine import AsyncEngine, Engine
from t3d.engine.streaming import _Worker
from t3d.errors import RequestError
from t3d.serve import ModelOptions, load_served
from t3d.serve.fields import MAX_STOPS
from t3d.types import Decoding

torch.set_num_threads(1)

ENDLESS = Decoding(max_new_tokens=300)


@pytest.fixture(scope="module")
def model():
    return tiny_model(max_positions=512, head_dim=16)


def engine_for(model, **options):
    return AsyncEngine(model, stop_token_ids=[], max_batch_size=4, max_positions=402, **options)


@pytest.fixture
def engine(model):
    one = engine_for(model, num_stop_tokens=MAX_STOPS)
    yield one
    one.close()


def test_many_stop_tokens_run_beside_none(engine):
    stops = tuple(range(100, 100 + MAX_STOPS))  # ids that the model does not have: they end nothing

    async def both():
        long = asyncio.create_task(engine.generate(prompt(5), ENDLESS))
        short = await engine.generate(prompt(6), Decoding(max_new_tokens=8, stop_token_ids=stops))
        return short, long.done(), await long

    short, was_done, long = asyncio.run(both())
    assert len(short.token_ids) == 8
    assert not was_done
    assert len(long.token_ids) == 300


def test_blocks_count_forwards_and_time(engine):
    async def blocks():
        return [block async for block in engine.stream(prompt(9), Decoding(max_new_tokens=21))]

    told = asyncio.run(blocks())
    forwards = [block.num_forwards for block in told]
    assert forwards == sorted(set(forwards))
    assert forwards[-1] == told[-1].generation.num_forwards
    seconds = [block.seconds for block in told]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


def test_a_request_is_checked_before_it_runs(engine):
    assert engine.max_positions == 402
    asyncio.run(engine.generate(prompt(5), Decoding(max_new_tokens=4)))
    assert engine.max_positions == 402
    assert engine.check(prompt(5), Decoding(max_new_tokens=300), seed=3).seed == 3
    with pytest.raises(RequestError, match="memory holds 402"):
        engine.check(prompt(5), Decoding(max_new_tokens=400))
    with pytest.raises(RequestError, match="is empty"):
        engine.check([])


def test_a_caller_whose_loop_has_ended_harms_nobody(engine):
    loop = asyncio.new_event_loop()
    left = engine.stream(prompt(5), ENDLESS)
    loop.run_until_complete(anext(left))
    loop.close()
    answer = asyncio.run(engine.generate(prompt(6), Decoding(max_new_tokens=8)))
    assert len(answer.token_ids) == 8
    wait_for(lambda: engine.load().num_running == 0)


def test_who_leaves_during_a_long_prefill_frees_what_it_held(model):
    engine = engine_for(model, prefill_tokens=4)

    async def leave():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.generate(prompt(380), Decoding(max_new_tokens=4)), 0.02)

    asyncio.run(leave())
    wait_for(lambda: engine.load().num_running == 0 and engine.load().share_of_pages_in_use == 0, 15)
    engine.close()


def test_those_an_engine_fails_get_errors_of_their_own(model, monkeypatch):
    def broken(core):
        raise RuntimeError("out of order")

    monkeypatch.setattr("t3d.engine.continuous.core.Core.step", broken)
    engine = engine_for(model)

    async def both():
        asked = (engine.generate(prompt(length), Decoding(max_new_tokens=4)) for length in (5, 6))
        return await asyncio.gather(*asked, return_exceptions=True)

    errors = asyncio.run(both())
    assert all("out of order" in str(error) for error in errors)
    assert errors[0] is not errors[1]  # a traceback grows with each that raises it
    engine.close()


def test_two_engines_of_one_device_do_not_disturb_each_other():
    """On CUDA each captures graphs of many shapes while the other runs."""
    models = [tiny_model(max_positions=512, head_dim=16, seed=seed).to(DEVICE) for seed in range(2)]
    engines = [AsyncEngine(one, stop_token_ids=[EOS], max_batch_size=8, max_positions=400) for one in models]
    prompts, decodings, seeds = mixed_requests(24)

    async def all_answers():
        asked = [engine.generate(*one) for one in zip(prompts, decodings, seeds, strict=True) for engine in engines]
        return await asyncio.gather(*asked)

    answers = asyncio.run(all_answers())
    for number, (one, engine) in enumerate(zip(models, engines, strict=True)):
        plain = Engine(one, stop_token_ids=[EOS], backend="plain")
        assert_same(answers[number::2], plain.generate(prompts, decodings, seeds))
        engine.close()


def test_a_worker_works_on_its_models_device(monkeypatch):
    chosen = []
    monkeypatch.setattr("torch.cuda.set_device", lambda device: chosen.append((threading.get_ident(), device)))
    device = torch.device("cuda", 3)
    worker = _Worker(lambda *_: None, device)
    worker.start()
    worker.stop()
    assert chosen == [(worker.ident, device)]


def test_models_load_beside_a_running_loop_and_within_few_positions():
    async def load():
        return load_served(["story-mini"], Decoding(), ModelOptions(device="cpu", max_positions=8))

    (served,) = asyncio.run(load())
    assert served.max_positions == 8
    served.close()
    with pytest.raises(RequestError, match=r"max_positions \(3\) must be at least block_size \(4\)"):
        load_served(["story-mini"], Decoding(), ModelOptions(device="cpu", max_positions=3))


def test_a_model_that_cannot_be_run_ends_those_before_it(monkeypatch):
    started = []

    def second_fails(served):
        started.append(served)
        if len(started) == 2:
            raise RequestError("no room")

    monkeypatch.setattr("t3d.serve.models.warm_up", second_fails)
    with pytest.raises(RequestError, match="no room"):
        load_served(["story-mini", "other=story-mini"], Decoding(), ModelOptions(device="cpu"))
    assert [served.engine.has_ended for served in started] == [True, True]


def test_an_engine_says_when_it_has_ended(model):
    engine = engine_for(model)
    assert not engine.has_ended
    engine.close()
    assert engine.has_ended
