"""Paged attention and rope_and_store, the kernels (interpreted where there is no GPU) and their plain twins."""

from dataclasses import dataclass

import pytest
import torch

pytest.importorskip("triton")

from t3d.kernels.attention import paged_attention_reference
from t3d.kernels.attention_launch import AttentionWorkspace, LaunchConfig, choose_splits
from t3d.kernels.attention_triton import paged_attention
from t3d.kernels.rope import rope_and_store_reference
from t3d.kernels.rope_triton import rope_and_store

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCES = {torch.float32: 1e-5, torch.float16: 5e-3}  # the interpreter lacks bfloat16
if DEVICE == "cuda":
    TOLERANCES[torch.bfloat16] = 2e-2
NAN = float("nan")


@pytest.fixture(autouse=True)
def _new_memory_is_poison(monkeypatch):
    """What a kernel forgets to write must not look right because an earlier result lay there."""

    def poisoned(*shape, **options):
        return torch.full(shape[0] if isinstance(shape[0], tuple) else shape, NAN, **options)

    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(torch, "empty_like", lambda like: torch.full_like(like, NAN))


def relative_error(output, expected):
    return float((output.double() - expected).norm() / expected.norm())


@dataclass
class Scene:
    """Tiles over a cache in which all that no query may read is NaN, and which row is whose."""

    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    tiles: torch.Tensor
    page_table: torch.Tensor
    covered: list  # (row of the query, slot, position)

    def expected(self, block_size, scale):
        """float64 [covered, G * H, D], one query at a time."""
        page_size, group = self.keys.shape[2], self.query.shape[1] // self.keys.shape[1]
        outputs = []
        for row, slot, position in self.covered:
            seen = range((position // block_size + 1) * block_size)
            cells = [(self.page_table[slot, p // page_size], p % page_size) for p in seen]
            keys, values = (
                torch.stack([cache[page, :, offset] for page, offset in cells], dim=1).double()
                for cache in (self.keys, self.values)
            )
            heads = self.query[row].double()[:, None]
            scores = heads @ keys.repeat_interleave(group, dim=0).mT * scale
            outputs.append((scores.softmax(dim=-1) @ values.repeat_interleave(group, dim=0))[:, 0])
        return torch.stack(outputs)

    def error(self, output, block_size, scale):
        """Relative error of the covered rows of an attention function's output."""
        rows = [row for row, _, _ in self.covered]
        return relative_error(output[rows], self.expected(block_size, scale))


def make_scene(specs, half, block_size, group, head_dim, page_size, dtype, seed=0):
    """A tile for each (position, has_first, has_second, end); the first half's position 0 may be negative if absent."""
    generator = torch.Generator().manual_seed(seed)
    num_kv_heads, max_pages, num_slots = 2, 4, len(specs)
    num_pages = 1 + num_slots * max_pages
    pages = 1 + torch.randperm(num_pages - 1, generator=generator).view(num_slots, max_pages).int()
    cache = torch.full((2, num_pages, num_kv_heads, page_size, head_dim), NAN)
    tiles, covered, num_tokens = [], [], 3  # rows 0 .. 2 and those between halves are nobody's
    for slot, (position, has_first, has_second, end) in enumerate(specs):
        starts = []
        for has_half, start in ((has_second, half), (has_first, 0)):  # the second half's tokens come first
            starts.append(num_tokens if has_half else -1)
            places = range(start, max(start, min(start + half, end))) if has_half else ()
            covered += [(num_tokens + place - start, slot, position + place) for place in places]
            num_tokens += half * has_half
        tiles.append([slot, position, starts[1], starts[0], end])
        last = max((p for _, s, p in covered if s == slot), default=-block_size)
        for p in range((last // block_size + 1) * block_size):
            entry = torch.randn(2, num_kv_heads, head_dim, generator=generator)
            cache[:, pages[slot, p // page_size], :, p % page_size] = entry
    query = torch.randn(num_tokens, group * num_kv_heads, head_dim, generator=generator)
    keys, values = cache.to(DEVICE, dtype)
    tiles = torch.tensor(tiles, dtype=torch.int32, device=DEVICE)
    return Scene(query.to(DEVICE, dtype), keys, values, tiles, pages.to(DEVICE), covered)


DECODING = [(40, True, True, 8), (-4, False, True, 8), (8, True, False, 8), (0, True, True, 8), (0, False, False, 8)]
"""Both blocks; a first active block; only a commit; the start of a text; an empty tile."""
ENDS = [(12, True, True, 6), (28, True, True, 0), (24, True, False, 2), (28, False, True, 3)]
"""Tiles cut short: in the second half, wholly, in the first half, and before anything is present."""
PREFILL = [(0, True, True, 32), (32, True, True, 22), (16, True, False, 12)]
ODD_BLOCKS = [(9, True, True, 6), (30, True, True, 4), (-3, False, True, 6)]

SHAPES = [
    # tiles, half, block_size, group, head_dim, page_size
    pytest.param(DECODING, 4, 4, 2, 16, 16, id="decoding"),
    pytest.param(DECODING, 4, 4, 3, 32, 16, id="three-heads-a-group"),
    pytest.param(DECODING, 4, 4, 7, 16, 16, id="seven-heads-a-group"),
    pytest.param(DECODING, 4, 8, 1, 16, 32, id="blocks-wider-than-halves"),
    pytest.param(ENDS, 4, 4, 4, 16, 16, id="cut-short"),
    pytest.param(ODD_BLOCKS, 3, 3, 2, 16, 16, id="blocks-of-three"),
    pytest.param(PREFILL, 16, 4, 2, 16, 32, id="prefill"),
]


ARGUMENTS = ("specs", "half", "block_size", "group", "head_dim", "page_size")


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(ARGUMENTS, SHAPES)
def test_reference_is_block_causal_attention(specs, half, block_size, group, head_dim, page_size, dtype):
    scene = make_scene(specs, half, block_size, group, head_dim, page_size, dtype)
    output = paged_attention_reference(
        scene.query, scene.keys, scene.values, scene.tiles, scene.page_table, block_size, 0.3, half
    )
    assert scene.error(output, block_size, 0.3) < TOLERANCES[dtype]


@pytest.mark.parametrize("num_splits", [1, 3])
@pytest.mark.parametrize("skips_masks", [False, True], ids=["masked", "skips-masks"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(ARGUMENTS, SHAPES)
def test_kernel_is_block_causal_attention(
    specs, half, block_size, group, head_dim, page_size, dtype, skips_masks, num_splits
):
    scene = make_scene(specs, half, block_size, group, head_dim, page_size, dtype)
    workspace = AttentionWorkspace(half, group, head_dim, DEVICE)
    config = LaunchConfig(16, 4, 2, skips_masks)
    for _ in range(2):  # a graph's replay finds the counters as the first launch did
        output = paged_attention(
            scene.query,
            scene.keys,
            scene.values,
            scene.tiles,
            scene.page_table,
            block_size,
            0.3,
            half,
            num_splits,
            workspace,
            config,
        )
        assert scene.error(output, block_size, 0.3) < TOLERANCES[dtype]
        assert not workspace.counters.any()
    rows = [row for row, _, _ in scene.covered]
    assert output.isnan().any(dim=-1).any(dim=-1).sum() == len(output) - len(rows)  # no other row was touched


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("specs, half", [(DECODING, 4), (PREFILL, 16)], ids=["decoding", "prefill"])
def test_regimes_own_configs(specs, half, dtype):
    scene = make_scene(specs, half, 4, group=4, head_dim=32, page_size=64, dtype=dtype, seed=1)
    workspace = AttentionWorkspace(half, 4, 32, DEVICE)
    num_splits = choose_splits(len(scene.tiles), 2)
    assert num_splits > 1
    output = paged_attention(
        scene.query, scene.keys, scene.values, scene.tiles, scene.page_table, 4, 0.2, half, num_splits, workspace
    )
    assert scene.error(output, 4, 0.2) < TOLERANCES[dtype]


@pytest.mark.parametrize("num_kv_heads", [1, 2, 3, 8])
def test_chosen_splits_fit_the_workspace(num_kv_heads):
    workspace = AttentionWorkspace(half=1, group=1, head_dim=16, device="cpu", num_sms=100)
    chosen = [choose_splits(num_tiles, num_kv_heads, num_sms=100) for num_tiles in range(1, 600)]
    assert set(chosen) <= {1, 2, 4, 8, 16, 32}
    assert chosen == sorted(chosen, reverse=True)
    assert chosen[0] >= 8
    assert chosen[-1] == 1
    programs = [(tiles + 1) * num_kv_heads * splits for tiles, splits in enumerate(chosen) if splits > 1]
    assert max(programs) <= workspace.max_programs


def test_too_many_splits_are_refused():
    scene = make_scene(DECODING, 4, 4, 2, 16, 16, torch.float32)
    workspace = AttentionWorkspace(half=4, group=2, head_dim=16, device=DEVICE, num_sms=1)
    with pytest.raises(ValueError, match="choose_splits"):
        paged_attention(scene.query, scene.keys, scene.values, scene.tiles, scene.page_table, 4, 0.3, 4, 2, workspace)


@dataclass
class Projection:
    """Arguments of rope_and_store for some tokens, and a cache of distinct numbers."""

    qkv: torch.Tensor
    weights: tuple  # of the norms of queries and keys; (None, None) without
    rotation: tuple
    positions: torch.Tensor
    places: torch.Tensor
    cache: torch.Tensor
    eps: float = 1e-3

    def store(self, function):
        """(query, keys, values) after the call; the cache is a copy each time."""
        keys, values = self.cache.clone()
        query = function(self.qkv, *self.weights, self.eps, *self.rotation, self.positions, self.places, keys, values)
        return query, keys, values

    def expected(self):
        """The same in float64, one token and head at a time, the rotation as multiplication of complex numbers."""
        keys, values = self.cache.double()
        num_kv_heads, page_size, head_dim = keys.shape[1:]
        cos, sin = (table.double() for table in self.rotation)
        queries = []
        for heads, position, place in zip(self.qkv.double(), self.positions, self.places, strict=True):
            heads = heads.view(-1, head_dim)
            turn = torch.complex(cos[position], sin[position])
            turned = []
            for index, head in enumerate(heads[:-num_kv_heads]):
                weight = self.weights[0 if index < len(heads) - 2 * num_kv_heads else 1]
                if weight is not None:
                    head = head / (head.square().mean() + self.eps).sqrt() * weight.double()
                rotated = torch.complex(head[: head_dim // 2], head[head_dim // 2 :]) * turn
                turned.append(torch.cat([rotated.real, rotated.imag]))
            queries.append(torch.stack(turned[:-num_kv_heads]))
            keys[place // page_size, :, place % page_size] = torch.stack(turned[-num_kv_heads:])
            values[place // page_size, :, place % page_size] = heads[-num_kv_heads:]
        return torch.stack(queries), keys, values


def make_projection(num_tokens, query_heads, num_kv_heads, head_dim, has_norms, dtype):
    generator = torch.Generator().manual_seed(num_tokens)
    num_pages, page_size = 3, 16
    angles = torch.rand(50, head_dim // 2, generator=generator) * 7
    qkv = torch.randn(num_tokens, (query_heads + 2 * num_kv_heads) * head_dim, generator=generator)
    weights = torch.rand(2, head_dim, generator=generator) + 0.5
    places = torch.randperm(num_pages * page_size, generator=generator)[:num_tokens]
    cache = torch.randn(2, num_pages, num_kv_heads, page_size, head_dim, generator=generator)
    return Projection(
        qkv.to(DEVICE, dtype),
        tuple(weights.to(DEVICE, dtype)) if has_norms else (None, None),
        (angles.cos().to(DEVICE), angles.sin().to(DEVICE)),
        torch.randint(50, (num_tokens,), generator=generator, dtype=torch.int32).to(DEVICE),
        places.int().to(DEVICE),
        cache.to(DEVICE, dtype),
    )


@pytest.mark.parametrize("function", [rope_and_store_reference, rope_and_store])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("many_tokens", [1, 1000], ids=["many-heads-a-program", "few-heads-a-program"])
@pytest.mark.parametrize("has_norms", [True, False], ids=["normed", "not-normed"])
@pytest.mark.parametrize(
    "num_tokens, query_heads, num_kv_heads, head_dim", [(1, 4, 2, 16), (5, 3, 1, 32), (7, 12, 4, 16), (2, 9, 3, 64)]
)
def test_rope_and_store(
    monkeypatch, num_tokens, query_heads, num_kv_heads, head_dim, has_norms, many_tokens, dtype, function
):
    monkeypatch.setattr("t3d.kernels.rope_triton._MANY_TOKENS", many_tokens)
    projection = make_projection(num_tokens, query_heads, num_kv_heads, head_dim, has_norms, dtype)
    query, keys, values = projection.store(function)
    expected_query, expected_keys, expected_values = projection.expected()
    tolerance = TOLERANCES[dtype]
    assert relative_error(query, expected_query) < tolerance
    assert relative_error(keys, expected_keys) < tolerance
    assert torch.equal(values.double(), expected_values)  # not one bit of a value changes
    is_kept = torch.ones(keys.shape[0] * keys.shape[2], dtype=torch.bool, device=DEVICE)
    is_kept[projection.places.long()] = False
    kept = is_kept.view(keys.shape[0], keys.shape[2])
    assert torch.equal(keys.transpose(1, 2)[kept], projection.cache[0].transpose(1, 2)[kept])
