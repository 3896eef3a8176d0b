"""Requests are taken as they are or refused in one line that names the field."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from t3d.serve.errors import ApiError
from t3d.serve.fields import IGNORED, MAX_PROMPTS, NEUTRAL
from t3d.serve.protocol import ChatRequest, CompletionRequest, parse

COMPLETION = {"model": "m", "prompt": "x"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def completion(**fields):
    return parse(CompletionRequest, json.dumps({**COMPLETION, **fields}).encode())


def chat(**fields):
    return parse(ChatRequest, json.dumps({**CHAT, **fields}).encode())


def refusal(kind, body):
    with pytest.raises(ApiError) as caught:
        parse(kind, body)
    assert caught.value.status == 400
    assert "\n" not in caught.value.message
    return caught.value


WRONG = [
    ({"n": True}, "n", "n: input should be a valid integer, not true"),
    ({"n": "3"}, "n", "not '3'"),
    ({"n": 0}, "n", "greater than or equal to 1, not 0"),
    ({"n": 17}, "n", "less than or equal to 16"),
    ({"n": 1.5}, "n", "valid integer"),
    ({"temperature": "1"}, "temperature", "valid number"),
    ({"temperature": False}, "temperature", "valid number"),
    ({"temperature": -0.1}, "temperature", "greater than or equal to 0"),
    ({"top_p": 0}, "top_p", "greater than 0"),
    ({"top_p": 1.1}, "top_p", "less than or equal to 1"),
    ({"top_k": -1}, "top_k", "greater than or equal to 0"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": 10**30}, "max_tokens", "a number of so many digits"),
    ({"seed": -1}, "seed", "greater than or equal to 0"),
    ({"seed": 2**63}, "seed", "less than"),
    ({"stream": 1}, "stream", "valid boolean"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "set stream to true"),
    ({"stream": True, "stream_options": {"wrong": True}}, "stream_options.wrong", "not a field"),
    ({"rule": "best"}, "rule", "use one of sequential, "),
    ({"threshold": 2}, "threshold", "less than or equal to 1"),
    ({"steps_per_block": 0}, "steps_per_block", "greater than or equal to 1"),
    ({"stop": [1]}, "stop", "list of strings"),
    ({"stop": ""}, "stop", "1 to 256 characters"),
    ({"stop": ["a"] * 17}, "stop", "at most 16"),
    ({"stop_token_ids": [1, -1]}, "stop_token_ids.1", "not -1"),
    ({"stop_token_ids": [True]}, "stop_token_ids.0", "valid integer"),
    ({"stop_token_ids": list(range(17))}, "stop_token_ids", "at most 16"),
    ({"model": ""}, "model", "at least 1 character"),
    ({"model": None}, "model", "valid string"),
    ({"return_trajectory": "yes"}, "return_trajectory", "valid boolean"),
    ({"bogus": 1}, "bogus", "'bogus' is not a field of this request: leave it out"),
    ({"x" * 10**5: 1}, "x" * 100, "is not a field"),
]
WRONG_COMPLETION = [
    ({"prompt": None}, "prompt", "must be a string"),
    ({"prompt": []}, "prompt", "is empty"),
    ({"prompt": [[]]}, "prompt", "is empty"),
    ({"prompt": [1, "a"]}, "prompt", "must be a string"),
    ({"prompt": [1, True]}, "prompt", "must be a string"),
    ({"prompt": [[1], ["a"]]}, "prompt", "must be a string"),
    ({"prompt": {"text": "a"}}, "prompt", "must be a string"),
    ({"prompt": ["a"] * (MAX_PROMPTS + 1)}, "prompt", f"at most {MAX_PROMPTS}"),
    ({"best_of": 2}, "best_of", "must equal n"),
    ({"logprobs": True}, "logprobs", "valid integer"),
    ({"messages": []}, "messages", "not a field"),
]
WRONG_CHAT = [
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": "hi"}, "messages", "valid array"),
    ({"messages": ["hi"]}, "messages.0", "must be a JSON object"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "is missing"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "not 'tool'"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content", "a string or a list of text parts"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content", "'image_url'"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "messages.0.content", "content parts look like"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}, "messages.0.tool_calls", "not a field"),
    ({"top_logprobs": 2}, "top_logprobs", "must be 0"),
    ({"logprobs": 1}, "logprobs", "valid boolean"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "give one of them"),
    ({"prompt": "x"}, "prompt", "not a field"),
]


@pytest.mark.parametrize("fields, param, message", WRONG + WRONG_COMPLETION)
def test_wrong_completions_are_refused_by_name(fields, param, message):
    error = refusal(CompletionRequest, json.dumps({**COMPLETION, **fields}).encode())
    assert error.param == param
    assert message in error.message
    assert len(error.message) < 300


@pytest.mark.parametrize("fields, param, message", WRONG + WRONG_CHAT)
def test_wrong_chats_are_refused_by_name(fields, param, message):
    error = refusal(ChatRequest, json.dumps({**CHAT, **fields}).encode())
    assert error.param == param
    assert message in error.message


BROKEN = [
    b"",
    b"{",
    b"\xff\xfe{}",
    b'{"model": "\xff"}',
    b'{"model": "\\ud800"}',
    b"[" * 10**5,
    b'{"n": 1' + b"0" * 10**4,
]


@pytest.mark.parametrize("body", BROKEN)
def test_what_is_no_json_is_called_so(body):
    error = refusal(CompletionRequest, body)
    assert error.code == "invalid_json"
    assert error.message.startswith("the body is not valid JSON: ")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_are_finite(number):
    body = f'{{"model": "m", "prompt": "x", "temperature": {number}}}'.encode()
    assert refusal(CompletionRequest, body).param == "temperature"


@pytest.mark.parametrize("body", [b"[]", b"3", b'"x"', b"null"])
def test_a_body_is_an_object(body):
    assert refusal(ChatRequest, body).message == "the body must be a JSON object"


@pytest.mark.parametrize("name", NEUTRAL)
def test_fields_without_a_feature_are_taken_at_their_neutral_values_only(name):
    for value in NEUTRAL[name]:
        assert completion(**{name: value}) == completion()
        assert chat(**{name: value}) == chat()
    for value in (True, 1, 0.5, "x", {"type": "json_object"}, [1]):
        if value is True and name == "parallel_tool_calls":
            continue
        with pytest.raises(ApiError) as caught:
            chat(**{name: value})
        assert (caught.value.param, caught.value.code) == (name, "unsupported")
        assert caught.value.message == f"{name} is not supported by this server: leave it out"


def test_false_is_not_zero():
    for name in ("frequency_penalty", "presence_penalty"):
        with pytest.raises(ApiError):
            completion(**{name: False})
        assert completion(**{name: 0.0}) == completion()


def test_who_asks_is_taken_and_forgotten():
    assert completion(**dict.fromkeys(IGNORED, "someone")) == completion()


def test_null_is_as_good_as_nothing():
    fields = set(CompletionRequest.model_fields) - {"model", "prompt"}
    assert completion(**dict.fromkeys(fields)) == completion()
    fields = set(ChatRequest.model_fields) - {"model", "messages"}
    assert chat(**dict.fromkeys(fields)) == chat()


def test_prompts_come_in_four_forms():
    assert completion(prompt="ab").prompt == ["ab"]
    assert completion(prompt=["a", "b"]).prompt == ["a", "b"]
    assert completion(prompt=[1, 2]).prompt == [[1, 2]]
    assert completion(prompt=[[1, 2], [3]]).prompt == [[1, 2], [3]]


def test_a_whole_number_is_a_number():
    assert completion(temperature=1).temperature == 1.0


def test_text_parts_and_sent_back_answers_are_messages():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    answer = {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None, "annotations": []}
    request = chat(messages=[{"role": "user", "content": parts}, answer])
    assert [(each.role, each.content) for each in request.messages] == [("user", "ab"), ("assistant", "c")]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted({*CompletionRequest.model_fields, *ChatRequest.model_fields, *NEUTRAL})


@given(st.sampled_from((CompletionRequest, ChatRequest)), st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4))
def test_anything_is_taken_or_refused(kind, fields):
    body = json.dumps({**(COMPLETION if kind is CompletionRequest else CHAT), **fields}).encode()
    try:
        kind.model_validate_json(body)
    except ValidationError:
        assert refusal(kind, body).message
    else:
        assert isinstance(parse(kind, body), kind)


@given(st.binary(max_size=60))
def test_any_bytes_are_refused(body):
    assert refusal(CompletionRequest, body).status == 400
