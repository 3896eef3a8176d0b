"""The pure parts of the server: text that grows, stop strings, seeds, rates and shares."""

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3d.engine.tickets import Block
from t3d.errors import RequestError
from t3d.models import load_tokenizer
from t3d.serve.asking import SEED_LIMIT, Ask, sample_seeds
from t3d.serve.clients import MAX_BUCKETS, RateLimit
from t3d.serve.detokenizing import HALF, Detokenizer
from t3d.serve.models import name_and_source, share_of_memory
from t3d.serve.stopping import StopScanner
from t3d.serve.writing import Writer
from t3d.types import Decoding, Generation


@functools.cache
def tokenizer():
    return load_tokenizer("story-mini")


def decode(token_ids):
    return tokenizer().decode(token_ids, skip_special_tokens=True)


def as_bytes(token_ids):
    """A decoder of raw bytes, as lossy as byte-level tokenizers' are."""
    return bytes(token_ids).decode("utf-8", "replace")


def pieces(values, sizes):
    """Cut a list up into pieces of these sizes, the last of what is left."""
    place = 0
    for size in sizes:
        yield values[place : place + size]
        place += size
    yield values[place:]


def grown(decoder, token_ids, sizes):
    detokenizer = Detokenizer(decoder)
    told = [detokenizer.push(part) for part in pieces(token_ids, sizes)]
    return told, detokenizer.flush()


SIZES = st.lists(st.integers(0, 5), max_size=30)


@given(st.text(max_size=30), SIZES)
def test_text_grows_to_the_whole_and_never_by_half_a_character(text, sizes):
    for decoder, ids in ((decode, tokenizer().encode(text)), (as_bytes, list(text.encode()))):
        told, rest = grown(decoder, ids, sizes)
        assert "".join(told) + rest == decoder(ids)
        if HALF not in text:
            assert all(HALF not in part for part in told)


@given(st.lists(st.integers(0, 255), max_size=40), SIZES)
def test_bytes_that_are_no_text_grow_to_the_whole_too(ids, sizes):
    told, rest = grown(as_bytes, ids, sizes)
    assert "".join(told) + rest == as_bytes(ids)


@given(st.lists(st.integers(0, 597), max_size=40), SIZES)
def test_any_tokens_grow_to_the_text_of_the_whole(ids, sizes):
    told, rest = grown(decode, ids, sizes)
    assert "".join(told) + rest == decode(ids)


def test_an_emoji_of_four_tokens_comes_when_it_is_complete():
    told, rest = grown(as_bytes, list("a😀b".encode()), [1, 1, 1, 1, 1])
    assert told == ["a", "", "", "", "😀", "b"]
    assert rest == ""


def test_a_decoder_that_drops_a_first_space_is_asked_with_context():
    def words(token_ids):
        return "".join([" one", " two", " three", ""][token] for token in token_ids).removeprefix(" ")

    told, rest = grown(words, [3, 0, 3, 1, 2], [1, 1, 1, 1])
    assert "".join(told) + rest == "one two three"


def first_hit(text, stops):
    """The text up to the first stop string, by looking at every end in turn."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@given(st.text("abé😀", max_size=24), st.lists(st.text("abé😀", min_size=1, max_size=4), max_size=3), SIZES)
def test_stop_strings_cut_at_the_same_place_however_the_text_comes(text, stops, sizes):
    scanner = StopScanner(stops)
    told = [scanner.push(part) for part in pieces(text, sizes)]
    told.append(scanner.flush())
    assert ("".join(told), scanner.has_hit) == first_hit(text, stops)


def test_only_what_may_become_a_stop_string_is_held_back():
    scanner = StopScanner(["###", "end"])
    assert [scanner.push(part) for part in ("a#", "#b", "the e", "n", "d", "more")] == ["a", "##b", "the ", "", "", ""]
    assert scanner.has_hit


def block(tokens, generation=None, num_forwards=1):
    return Block(tokens, list(range(1, 1 + len(tokens))), [0.5] * len(tokens), num_forwards, 1.0, generation)


def ask(*stops, needs_offsets=False):
    return Ask([1], Decoding(), stops, needs_offsets)


def whole(tokens, finish_reason, num_forwards=9):
    steps = list(range(1, 1 + len(tokens)))
    return Generation([1], tokens, steps, [0.5] * len(tokens), num_forwards, finish_reason, 0, seconds=3.0)


def test_a_stop_string_ends_the_answer_at_the_token_that_completes_it():
    writer = Writer(as_bytes, ask("cde"))
    first = writer.take(block(list(b"abcd")))
    assert (first.text, first.token_ids, first.end) == ("ab", list(b"abcd"), None)
    second = writer.take(block(list(b"efgh"), num_forwards=7))
    assert (second.text, second.token_ids, second.reveal_steps, second.confidences) == ("", [ord("e")], [1], [0.5])
    assert second.end.finish_reason == "stop"
    assert second.end.num_forwards == 7


def test_a_stop_token_counts_and_is_not_text():
    tokens = list(b"ab.")
    piece = Writer(as_bytes, ask()).take(block(tokens, whole(tokens, "stop")))
    assert (piece.text, piece.token_ids, piece.end.finish_reason, piece.end.num_forwards) == ("ab", tokens, "stop", 9)


def test_what_was_held_back_comes_with_the_end():
    tokens = [*b"ab#", 0xF0]
    piece = Writer(as_bytes, ask("##")).take(block(tokens, whole(tokens, "length")))
    assert (piece.text, piece.end.finish_reason) == ("ab#" + HALF, "length")


def test_offsets_say_where_each_token_begins():
    tokens = [*"é".encode(), *b"ab"]
    piece = Writer(as_bytes, ask(needs_offsets=True)).take(block(tokens, whole(tokens, "stop")))
    assert piece.offsets == [0, 0, 1, 2]
    assert piece.text == "éa"


@given(st.integers(0, 2**63 - 1), st.integers(1, 16))
def test_seeds_of_samples_do_not_depend_on_their_number(seed, count):
    seeds = sample_seeds(seed, count)
    assert seeds == sample_seeds(seed, 16)[:count]
    assert seeds[0] == seed
    assert all(0 <= each < SEED_LIMIT for each in seeds[1:])
    assert len(set(seeds)) == count


def test_a_bucket_holds_a_minutes_requests_and_fills_steadily():
    now = [0.0]
    rate = RateLimit(60, clock=lambda: now[0])
    assert [rate.seconds_to_wait("a") for _ in range(61)] == [0.0] * 60 + [1.0]
    assert rate.seconds_to_wait("b") == 0.0
    now[0] = 0.5
    assert rate.seconds_to_wait("a") == pytest.approx(0.5)
    now[0] = 1.0
    assert rate.seconds_to_wait("a") == 0.0
    assert rate.seconds_to_wait("a") > 0


def test_only_so_many_clients_are_remembered():
    rate = RateLimit(1)
    for client in range(MAX_BUCKETS + 5):
        rate.seconds_to_wait(str(client))
    assert len(rate._buckets) == MAX_BUCKETS
    assert rate.seconds_to_wait("0") == 0.0  # forgotten
    assert rate.seconds_to_wait(str(MAX_BUCKETS)) > 0


def test_models_share_what_the_weights_leave():
    assert share_of_memory(10.0, 4.0, 70.0, 3) == 2.0
    assert share_of_memory(None, 4.0, 20.0, 3) == pytest.approx(6.0)  # nine tenths of 20
    assert share_of_memory(3.0, 0.0, None, 2) == 1.5
    assert share_of_memory(None, 0.0, None, 2) is None


def test_models_may_have_names(tmp_path):
    assert name_and_source("story-mini") == ("story-mini", "story-mini")
    assert name_and_source("student=runs/a/model") == ("student", "runs/a/model")
    odd = tmp_path / "lr=1"
    odd.mkdir()
    assert name_and_source(str(odd)) == (str(odd), str(odd))
    with pytest.raises(RequestError, match="NAME=PATH"):
        name_and_source("=runs")
