"""Who sees whom: the patterns against a slow reading of the design, and training against decoding."""

from itertools import count

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import MASK, ODD_LENGTHS, noisy_example, random_row, tiny_model

from t3d.corruption import pack
from t3d.corruption.packing import PADDING_DOCUMENT
from t3d.models import FAMILIES
from t3d.models.attention import (
    CLEAN,
    NOISY,
    as_attention_mask,
    block_causal_mask,
    first_response_block,
    padded_length,
    two_copy_mask,
)

any_speed = settings(deadline=None)
block_sizes = st.integers(1, 6)


def block_of(position, block_size):
    """Block j is [jB, (j + 1)B), looked up one block after the other."""
    return next(j for j in count() if j * block_size <= position < (j + 1) * block_size)


def may_see(query, key, block_size):
    """Design section 4, token by token; a token is (document, position, copy)."""
    query_block, key_block = block_of(query[1], block_size), block_of(key[1], block_size)
    if query[0] != key[0]:
        return False
    if query[2] == CLEAN:
        return key[2] == CLEAN and key_block in range(query_block + 1)
    if key[2] == CLEAN:
        return key_block in range(query_block)
    return key_block == query_block


@st.composite
def layouts(draw):
    """A block size and the tokens of one row: several documents, each in two copies, in any order, and padding."""
    block_size = draw(block_sizes)
    tokens = [(-1, 0, CLEAN)] * draw(st.integers(0, 3))
    lengths = st.tuples(st.integers(0, 9), st.integers(1, 9))
    for document, (prompt, response) in enumerate(draw(st.lists(lengths, min_size=1, max_size=3))):
        start = prompt - prompt % block_size
        tokens += [(document, position, CLEAN) for position in range(prompt + response)]
        end = -(-(prompt + response) // block_size) * block_size
        tokens += [(document, position, NOISY) for position in range(start, end)]
    return block_size, draw(st.permutations(tokens))


@given(layouts())
@any_speed
def test_two_copy_mask_is_the_design_read_slowly(layout):
    block_size, tokens = layout
    documents, positions, copies = (torch.tensor(column)[None] for column in zip(*tokens, strict=True))
    fast = two_copy_mask(positions, documents, copies, block_size)
    slow = [[may_see(query, key, block_size) for key in tokens] for query in tokens]
    assert fast[0].tolist() == slow


@given(st.integers(1, 20), st.integers(0, 20), block_sizes)
@any_speed
def test_block_causal_mask_is_the_design_read_slowly(queries, first, block_size):
    query_positions, key_positions = torch.arange(first, first + queries), torch.arange(first + queries)
    fast = block_causal_mask(query_positions[None], key_positions, block_size)
    slow = [
        [block_of(k, block_size) <= block_of(q, block_size) for k in range(first + queries)]
        for q in range(first, first + queries)
    ]
    assert fast[0].tolist() == slow
    assert torch.equal(fast, block_causal_mask(query_positions[None], key_positions[None], block_size))


@given(st.integers(0, 50), block_sizes)
@any_speed
def test_block_grid(length, block_size):
    whole = padded_length(length, block_size)
    assert whole % block_size == 0
    assert length <= whole < length + block_size
    assert first_response_block(length, block_size) == block_of(length, block_size)


def logits_of(model, batch):
    """[tokens, V] of a training forward over one row, padding left out."""
    mask = two_copy_mask(batch.position_ids, batch.document_ids, batch.copy_ids, batch.tokens.block_size)
    with torch.no_grad():
        hidden = model.model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=as_attention_mask(mask, model.dtype),
            use_cache=False,
        ).last_hidden_state
        return model.lm_head(hidden)[batch.document_ids != PADDING_DOCUMENT]


def block_causal_logits(model, ids, block_size):
    """[S, V] as decoding makes them: one sequence, a token sees its own and earlier blocks."""
    positions = torch.arange(len(ids))[None]
    mask = block_causal_mask(positions, positions[0], block_size)
    with torch.no_grad():
        hidden = model.model(
            input_ids=torch.as_tensor(ids)[None], attention_mask=as_attention_mask(mask, model.dtype), use_cache=False
        ).last_hidden_state
        return model.lm_head(hidden)[0]


def packed(examples, row_tokens=None, block_size=4):
    return pack(examples, row_tokens=row_tokens, block_size=block_size, num_examples_in_step=len(examples))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("block_size", [3, 4])
@pytest.mark.parametrize("lengths", ODD_LENGTHS)
def test_training_shows_what_decoding_shows(lengths, block_size, attention, family):
    model = tiny_model(family=family, attn_implementation=attention)
    example = noisy_example(random_row("row", *lengths), block_size=block_size, ratios=(0.5,), random_token_share=0.3)
    close = {"atol": 1e-10 if attention == "sdpa" else 1e-4, "rtol": 0}  # eager's softmax is in float32
    logits = logits_of(model, packed([example], block_size=block_size))
    clean, noisy = logits[: len(example.clean_ids)], logits[len(example.clean_ids) :]
    torch.testing.assert_close(clean, block_causal_logits(model, example.clean_ids, block_size), **close)
    for start in range(example.noisy_start, example.noisy_start + len(example.noisy_ids), block_size):
        offset = start - example.noisy_start
        ids = [*example.clean_ids[:start], *example.noisy_ids[offset : offset + block_size]]
        assert len(ids) == start + block_size
        decoding = block_causal_logits(model, ids, block_size)[-block_size:]
        torch.testing.assert_close(noisy[offset : offset + block_size], decoding, **close)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_do_not_see_each_other(family):
    model = tiny_model(family=family)
    examples = [noisy_example(random_row(str(i), *lengths), ratios=(0.5,)) for i, lengths in enumerate(ODD_LENGTHS)]
    together = packed(examples, row_tokens=1000)
    assert together.input_ids.shape[0] == 1
    logits = logits_of(model, together)
    documents = together.document_ids[together.document_ids != PADDING_DOCUMENT]
    for index, example in enumerate(examples):
        alone = logits_of(model, packed([example]))
        torch.testing.assert_close(logits[documents == index], alone, atol=1e-10, rtol=0)


def test_a_hidden_token_is_really_hidden():
    """Change the clean token behind a hidden one: the logits of its own block do not move, later blocks' do."""
    model = tiny_model()
    row = random_row("row", 5, 12)
    example = noisy_example(row, ratios=(1.0,), random_token_share=0)
    assert set(example.noisy_ids[1:]) == {MASK}
    before = logits_of(model, packed([example]))[len(example.clean_ids) :]
    example.clean_ids[9] = (example.clean_ids[9] + 1) % MASK  # position 9 lies in block 2, noisy places 4 .. 7
    after = logits_of(model, packed([example]))[len(example.clean_ids) :]
    assert torch.equal(before[:8], after[:8])
    assert not torch.isclose(before[8:], after[8:]).all(dim=1).any()
