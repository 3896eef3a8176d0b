"""FlexAttention's block mask is the dense two-copy mask, and attention under it is dense attention."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import noisy_example, random_row, tiny_model

from t3d.corruption import pack
from t3d.corruption.packing import PADDING_DOCUMENT
from t3d.models.attention import TILE, two_copy_mask
from t3d.models.flex import FLEX, flex_attention_forward, span_block_mask
from t3d.training.computing import Computing
from t3d.training.scorer import Scorer

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="FlexAttention has no backward pass on the CPU")

lengths = st.lists(st.tuples(st.integers(0, 90), st.integers(1, 90)), min_size=1, max_size=8)
layouts = st.builds(
    lambda lengths, block_size, tiled: packed(lengths, block_size, tiled),
    lengths,
    st.sampled_from([1, 2, 4, 8, 32]),
    st.booleans(),
)


def packed(lengths, block_size=4, tiled=True):
    examples = [
        noisy_example(random_row(f"row {index}", *each), block_size=block_size, ratios=(1.0, 0.5), ratio_power=0)
        for index, each in enumerate(lengths)
    ]
    return pack(
        examples, row_tokens=None if tiled else 2 * TILE, block_size=block_size, num_examples_in_step=9, tiled=tiled
    )


def dense_mask(batch):
    """bool [N, S, S]; padding, which sees padding there, sees nothing here."""
    mask = two_copy_mask(batch.position_ids, batch.document_ids, batch.copy_ids, batch.tokens.block_size)
    return mask & (batch.document_ids != PADDING_DOCUMENT)[:, :, None]


def from_spans(spans):
    keys = torch.arange(spans.shape[1])
    return ((keys >= spans[..., None, 0]) & (keys < spans[..., None, 1])).any(dim=2)


@settings(deadline=None)
@given(layouts)
def test_spans_are_the_dense_mask(batch):
    assert torch.equal(from_spans(batch.spans), dense_mask(batch))


@settings(deadline=None, max_examples=40)
@given(lengths, st.sampled_from([1, 4, 32]))
def test_tiles_are_sorted_as_the_mask_says(lengths, block_size):
    batch = packed(lengths, block_size)
    mask, block_mask = dense_mask(batch), span_block_mask(batch.spans)
    side = mask.shape[1] // TILE
    seen = mask.view(1, side, TILE, side, TILE).sum(dim=(2, 4))
    partial = listed(block_mask.kv_num_blocks, block_mask.kv_indices, side)
    whole = listed(block_mask.full_kv_num_blocks, block_mask.full_kv_indices, side)
    assert torch.equal(whole, seen[0] == TILE * TILE)
    assert torch.equal(partial, (seen[0] > 0) & (seen[0] < TILE * TILE))
    places = torch.arange(mask.shape[1])
    row = torch.zeros((), dtype=torch.int64)
    assert torch.equal(block_mask.mask_mod(row, row, places[:, None], places[None, :]), mask[0])


def listed(counts, indices, side):
    """The tiles that a block mask lists, as a bool [side, side]."""
    tiles = torch.zeros((side, side), dtype=torch.bool)
    for query in range(side):
        tiles[query, indices[0, 0, query, : counts[0, 0, query]].long()] = True
    return tiles


def attention_inputs(batch, dtype, requires_grad, seed=0):
    torch.manual_seed(seed)
    length = batch.input_ids.shape[1]
    shapes = [(1, heads, length, 16) for heads in (4, 2, 2)]
    return [torch.randn(shape, dtype=dtype, device=DEVICE, requires_grad=requires_grad) for shape in shapes]


def dense_attention(query, key, value, mask):
    output = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    return output.transpose(1, 2)


@settings(deadline=None, max_examples=15)
@given(lengths, st.sampled_from([1, 4, 32]))
def test_values_are_those_of_dense_attention_in_float64(lengths, block_size):
    batch = packed(lengths, block_size).to(DEVICE)
    real = (batch.document_ids != PADDING_DOCUMENT)[0]
    query, key, value = attention_inputs(batch, torch.float64, requires_grad=False)
    mask = two_copy_mask(batch.position_ids, batch.document_ids, batch.copy_ids, block_size)[:, None]
    # uncompiled in float64: the pattern, without the kernel's rounding
    flex = torch.nn.attention.flex_attention.flex_attention
    output = flex(query, key, value, block_mask=span_block_mask(batch.spans), enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(output[:, real], dense_attention(query, key, value, mask)[:, real], atol=1e-12, rtol=0)


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_gradients_are_those_of_dense_attention_in_float64(dtype, tolerance):
    """float64 runs uncompiled (the pattern), the others in the kernel."""
    for seed, lengths in enumerate([[(3, 90), (60, 20), (0, 7)], [(90, 90)] * 6, [(5, 5)]]):
        batch = packed(lengths).to(DEVICE)
        real = (batch.document_ids != PADDING_DOCUMENT)[0]
        exact = attention_inputs(batch, torch.float64, requires_grad=True, seed=seed)
        rounded = [each.detach().to(dtype).requires_grad_() for each in exact]
        mask = two_copy_mask(batch.position_ids, batch.document_ids, batch.copy_ids, 4)[:, None]
        block_mask = span_block_mask(batch.spans)
        if dtype == torch.float64:
            flex = torch.nn.attention.flex_attention.flex_attention
            output = flex(*rounded, block_mask=block_mask, enable_gqa=True).transpose(1, 2)
        else:
            output, _ = flex_attention_forward(None, *rounded, block_mask)
        upstream = torch.randn_like(output[:, real])
        expected = dense_attention(*exact, mask)
        left = torch.autograd.grad((output[:, real] * upstream).sum(), rounded)
        right = torch.autograd.grad((expected[:, real] * upstream.double()).sum(), exact)
        for one, other in [(output[:, real], expected[:, real]), *zip(left, right, strict=True)]:
            assert (one.double() - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("hider", ["order", "chance"])
def test_scores_are_those_under_the_dense_mask(hider):
    """The whole model, in float64; without gradients, which FlexAttention lacks on the CPU."""
    rows = [random_row(f"row {index}", *each) for index, each in enumerate([(5, 9), (4, 40), (7, 2), (0, 30)])]
    examples = [noisy_example(row, hider) for row in rows]
    batch = pack(examples, row_tokens=None, block_size=4, num_examples_in_step=4, tiled=True)
    model = tiny_model()
    targets = batch.tokens.targets[:, None]
    with torch.no_grad():
        dense = Scorer(model)(batch, targets, append_own=True)
        flex = Scorer(model, Computing(attention="flex"))(batch, targets, append_own=True)
    torch.testing.assert_close(flex.logp, dense.logp, atol=1e-12, rtol=0)
    assert torch.equal(flex.own, dense.own)


def test_a_model_that_was_trained_with_flex_still_takes_dense_masks_and_saves_without_it(tmp_path):
    model = tiny_model()
    ids = torch.arange(2, 18)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        model.set_attn_implementation(FLEX)
        torch.testing.assert_close(model(input_ids=ids).logits, before, atol=1e-12, rtol=0)
    model.save_pretrained(tmp_path)
    assert FLEX not in (tmp_path / "config.json").read_text()
