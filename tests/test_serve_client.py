"""OpenAI's own client against the server: its answers are the engine's, however they are asked for."""

import asyncio
import copy
import math
import re
from pathlib import Path

import openai
import pytest
from serving import CHAT, COMPLETION, PROMPT, QUESTION, loaded, plain_engine, story_server

from t3d.engine import Engine
from t3d.serve.asking import sample_seeds
from t3d.types import Decoding

QUESTIONS = [
    f"Question: {name} has {count} stamps. She gets {more} more. How many stamps does {name} have now?\nAnswer:"
    for name, count, more in (("Anna", 3, 12), ("Maria", 40, 2), ("Emma", 17, 5), ("Olivia", 9, 30))
]


@pytest.fixture(scope="module")
def server():
    with story_server("story-mini", "story-mini-student", read_timeout=20) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as one:
        yield one


def expected(prompt=PROMPT, seed=0, name="story-mini", **decoding):
    """The reference engine's answer."""
    settings = Decoding(**{"max_new_tokens": COMPLETION["max_tokens"], **decoding})
    engine = plain_engine(name)
    (generation,) = engine.generate(engine.encode([prompt]), settings, seeds=[seed])
    return generation


def complete(client, **fields):
    """A completion, whole."""
    extra = fields.pop("extra_body", {})
    return client.completions.create(**{**COMPLETION, **fields}, extra_body=extra)


def test_a_completion_is_the_engines_token_by_token(client):
    for decoding in ({}, {"steps_per_block": 2}, {"rule": "low_confidence_dynamic", "threshold": 0.7}):
        answer = complete(client, seed=5, extra_body={**decoding, "return_trajectory": True})
        wanted = expected(seed=5, **decoding)
        (choice,) = answer.choices
        assert choice.text == wanted.text
        assert choice.trajectory["token_ids"] == wanted.token_ids
        assert choice.trajectory["reveal_steps"] == wanted.reveal_steps
        assert choice.trajectory["confidences"] == pytest.approx(wanted.confidences, rel=1e-3)
        assert choice.finish_reason == wanted.finish_reason
        assert choice.t3d["forwards"] == wanted.num_forwards
        assert choice.t3d["tokens_per_forward"] == len(wanted.token_ids) / wanted.num_forwards
        assert choice.t3d["seed"] == 5
        assert answer.usage.prompt_tokens == len(wanted.prompt_ids)
        assert answer.usage.completion_tokens == len(wanted.token_ids)


def test_a_chat_of_one_question_is_put_as_t3d_generate_puts_it(client):
    answer = client.chat.completions.create(**{**CHAT, "max_tokens": 120}, seed=0)
    wanted = expected(max_new_tokens=120)
    assert answer.choices[0].message.content == wanted.text
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == len(wanted.prompt_ids) + len(wanted.token_ids)


def test_draws_are_the_requests_own(client):
    settings = {"temperature": 0.8, "top_k": 20, "top_p": 0.9}
    answer = complete(client, seed=11, temperature=0.8, top_p=0.9, extra_body={"top_k": 20, "return_trajectory": True})
    assert answer.choices[0].trajectory["token_ids"] == expected(seed=11, **settings).token_ids


def test_a_stream_is_the_answer_in_pieces(client):
    fields = {"n": 2, "seed": 3, "temperature": 0.7, "logprobs": 0}
    whole = complete(client, **fields, extra_body={"return_trajectory": True})
    stream = client.completions.create(
        **COMPLETION, **fields, stream=True, stream_options={"include_usage": True},
        extra_body={"return_trajectory": True},
    )  # fmt: skip
    *events, usage = list(stream)
    assert usage.choices == []
    assert usage.usage == whole.usage
    for choice in whole.choices:
        parts = [event.choices[0] for event in events if event.choices[0].index == choice.index]
        first, *blocks, last = parts
        assert (first.text, first.finish_reason, "forwards" in first.t3d) == ("", None, False)
        assert "".join(part.text for part in blocks) == choice.text
        assert (last.text, last.finish_reason) == ("", choice.finish_reason)
        same = ("seed", "forwards", "tokens_per_forward", "rule", "block_size", "steps_per_block")
        assert all(last.t3d[name] == choice.t3d[name] for name in same)
        for column, values in choice.trajectory.items():
            assert [each for part in blocks for each in part.trajectory[column]] == pytest.approx(values)
            assert all(len(part.trajectory[column]) <= 4 for part in blocks)
        for column in ("tokens", "text_offset"):
            joined = [each for part in blocks for each in getattr(part.logprobs, column)]
            assert joined == getattr(choice.logprobs, column)


def test_a_streamed_chat_is_the_chat(client):
    whole = client.chat.completions.create(**CHAT, seed=1, logprobs=True)
    first, *blocks, last = list(client.chat.completions.create(**CHAT, seed=1, logprobs=True, stream=True))
    assert first.choices[0].delta.role == "assistant"
    assert first.object == "chat.completion.chunk"
    assert "".join(event.choices[0].delta.content for event in blocks) == whole.choices[0].message.content
    assert last.choices[0].delta.content is None
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    told = [each for event in blocks for each in event.choices[0].logprobs.content]
    assert [each.token for each in told] == [each.token for each in whole.choices[0].logprobs.content]


def test_samples_are_those_of_their_seeds_and_the_first_is_the_request_alone(client):
    several = complete(client, n=3, seed=8, temperature=1.0)
    seeds = sample_seeds(8, 3)
    assert [choice.t3d["seed"] for choice in several.choices] == seeds
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    alone = [complete(client, seed=seed, temperature=1.0).choices[0].text for seed in seeds]
    assert [choice.text for choice in several.choices] == alone
    assert len(set(alone)) > 1


def test_without_a_seed_answers_differ_and_say_theirs(client):
    first, second = (complete(client, temperature=1.0).choices[0] for _ in range(2))
    assert first.t3d["seed"] != second.t3d["seed"]
    again = complete(client, temperature=1.0, seed=first.t3d["seed"])
    assert again.choices[0].text == first.text


def test_a_list_of_prompts_is_answered_as_each_alone(client):
    answer = complete(client, prompt=QUESTIONS[:2], n=2, seed=4, temperature=0.6)
    assert [choice.index for choice in answer.choices] == list(range(4))
    for place, prompt in enumerate(QUESTIONS[:2]):
        alone = complete(client, prompt=prompt, n=2, seed=4, temperature=0.6)
        texts = [choice.text for choice in answer.choices[2 * place : 2 * place + 2]]
        assert texts == [choice.text for choice in alone.choices]


def test_ids_are_prompts_too(client):
    ids = plain_engine().encode(QUESTIONS[:2])
    texts = [choice.text for choice in complete(client, prompt=ids, seed=0).choices]
    assert texts == [complete(client, prompt=prompt, seed=0).choices[0].text for prompt in QUESTIONS[:2]]
    assert complete(client, prompt=ids[0], seed=0).choices[0].text == texts[0]


def test_stop_strings_and_ids_end_answers(client):
    whole = complete(client, seed=0, extra_body={"return_trajectory": True}).choices[0]
    ids, tokens = whole.trajectory["token_ids"], whole.trajectory["tokens"]
    stop = whole.text[9:13]
    cut = complete(client, seed=0, stop=["never", stop], extra_body={"return_trajectory": True})
    text = whole.text[: whole.text.index(stop)]
    assert (cut.choices[0].text, cut.choices[0].finish_reason) == (text, "stop")
    count = len(cut.choices[0].trajectory["token_ids"])
    assert cut.choices[0].trajectory["token_ids"] == ids[:count]
    assert "".join(tokens[: count - 1]).find(stop) == -1
    assert "".join(tokens[:count]).find(stop) == len(text)
    assert cut.usage.completion_tokens == count
    assert cut.choices[0].t3d["forwards"] <= whole.t3d["forwards"]
    streamed = client.completions.create(**COMPLETION, seed=0, stop=stop, stream=True)
    assert "".join(event.choices[0].text for event in streamed) == text
    by_id = complete(client, seed=0, extra_body={"stop_token_ids": [ids[5]], "return_trajectory": True}).choices[0]
    place = ids.index(ids[5])
    assert by_id.trajectory["token_ids"] == ids[: place + 1]
    assert (by_id.text, by_id.finish_reason) == ("".join(tokens[:place]), "stop")


def test_logprobs_are_those_of_the_reveal(client):
    wanted = expected()
    logs = [math.log(each) for each in wanted.confidences]
    told = complete(client, seed=0, logprobs=1).choices[0].logprobs
    assert told.token_logprobs == pytest.approx(logs, rel=1e-2, abs=1e-4)
    assert "".join(told.tokens) == wanted.text
    assert told.top_logprobs == [{token: value} for token, value in zip(told.tokens, told.token_logprobs, strict=True)]
    assert all(wanted.text[at:].startswith(token) for at, token in zip(told.text_offset, told.tokens, strict=True))
    chat = client.chat.completions.create(**CHAT, seed=0, logprobs=True, top_logprobs=0).choices[0].logprobs.content
    assert [each.logprob for each in chat] == pytest.approx(logs, rel=1e-2, abs=1e-4)
    assert bytes(value for each in chat for value in each.bytes).decode() == wanted.text
    with pytest.raises(openai.BadRequestError, match="logprobs must be 0, or 1 where temperature is 0"):
        complete(client, logprobs=1, temperature=0.5)


def test_company_changes_nothing(server):
    """Twenty-four at once through eight places: each is what it is alone."""
    asked = [
        {"prompt": QUESTIONS[place % 4], "seed": place, "temperature": 0.3 * (place % 3), "max_tokens": 8 + place % 13}
        for place in range(24)
    ]

    async def all_at_once():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def one(place, fields):
                model = ("story-mini", "story-mini-student")[place % 2]
                if place % 3:
                    answer = await client.completions.create(model=model, **fields)
                    return answer.choices[0].text
                stream = await client.completions.create(model=model, stream=True, **fields)
                return "".join([event.choices[0].text async for event in stream])

            return await asyncio.gather(*(one(*each) for each in enumerate(asked)))

    texts = asyncio.run(all_at_once())
    for place, (fields, text) in enumerate(zip(asked, texts, strict=True)):
        decoding = {"max_new_tokens": fields["max_tokens"], "temperature": fields["temperature"]}
        name = ("story-mini", "story-mini-student")[place % 2]
        assert text == expected(fields["prompt"], fields["seed"], name, **decoding).text


def test_the_example_of_the_docs_runs(server, capsys):
    page = (Path(__file__).parent.parent / "docs" / "serving.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(compile(code.replace("http://127.0.0.1:8000", server.url), "serving.md", "exec"), {})
    said = capsys.readouterr().out
    assert "'reveal_steps': [1, 1]" in said  # the two tokens that share the prompt's last block
    assert " 31" in said  # 21 - 4 + 14


def test_models_are_listed(client):
    names = [model.id for model in client.models.list()]
    assert names == ["story-mini", "story-mini-student"]
    facts = client.models.retrieve("story-mini").t3d
    assert (facts["block_size"], facts["max_positions"], facts["has_chat_template"]) == (4, 1024, False)
    assert facts["defaults"] == {
        "steps_per_block": 4, "rule": "low_confidence_static", "threshold": 0.9, "temperature": 0.0, "max_tokens": 512,
    }  # fmt: skip


def test_errors_are_the_clients_own(client):
    with pytest.raises(openai.NotFoundError, match="not served here: use story-mini, story-mini-student"):
        complete(client, model="gpt")
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, extra_body={"bogus": 1})
    assert caught.value.param == "bogus"
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match=r"has 40 tokens and max_tokens is 1000, .* room for 1024"):
        complete(client, prompt=[7] * 40, max_tokens=1000)
    with pytest.raises(openai.BadRequestError, match=r"has 1024 tokens, but .*: shorten the prompt"):
        client.completions.create(model="story-mini", prompt=[7] * 1024)
    with pytest.raises(openai.BadRequestError, match="at most the model's block size"):
        complete(client, extra_body={"steps_per_block": 5})
    with pytest.raises(openai.BadRequestError, match="outside the model's vocabulary"):
        complete(client, prompt=[10**6])
    with pytest.raises(openai.BadRequestError, match="is empty"):
        complete(client, prompt="")
    with pytest.raises(openai.BadRequestError, match="no chat template: send one message of role user"):
        client.chat.completions.create(model="story-mini", messages=[*CHAT["messages"]] * 2)


def test_an_answer_that_was_left_open_fills_the_room_there_is(client):
    answer = client.completions.create(model="story-mini", prompt=[7] * 1017, extra_body={"return_trajectory": True})
    assert len(answer.choices[0].trajectory["token_ids"]) <= 7


def test_a_chat_template_renders_all_turns():
    model, plain = loaded("story-mini")
    tokenizer = copy.deepcopy(plain)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    )
    turns = [("developer", "Be brief."), ("user", QUESTION), ("assistant", "31"), ("user", "Sure?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    with story_server(tokenizer=tokenizer) as server:
        answer = server.post({"model": "story-mini", "messages": messages, "max_tokens": 12}, "/v1/chat/completions")
        facts = server.http.get("/v1/models").json()["data"][0]["t3d"]
    text = f"system: Be brief.\nuser: {QUESTION}\nassistant: 31\nuser: Sure?\nA:"
    engine = Engine(model, tokenizer, backend="plain")
    (wanted,) = engine.generate(engine.encode([text]), Decoding(max_new_tokens=12))
    assert answer.json()["choices"][0]["message"]["content"] == wanted.text
    assert facts["has_chat_template"]
