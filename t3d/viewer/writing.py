"""What the page shows, as plain data, and the page itself as a file. The page computes nothing but colours."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np

from t3d.errors import RequestError, WorkError
from t3d.files import write_whole
from t3d.trajectories import TrajectoryMeta
from t3d.types import Trajectory
from t3d.viewer.agreement import Agreement, agreement, total
from t3d.viewer.order import RevealOrder, reveal_order
from t3d.viewer.sources import Source, open_sources
from t3d.viewer.texts import TokenTexts, token_texts
from t3d.web import page

_CONFIDENCE_DIGITS = 4
MAX_BLOCK_SIZE = 512
"""The page shows a table of so many rows and columns, of every response."""
_SETTINGS_ELSEWHERE = ("model", "prompt", "revision", "tokenizer_fingerprint", "mask_token_id", "eos_token_ids")


@dataclass(frozen=True, slots=True)
class ViewSummary:
    """What was written.

    Attributes:
        num_shown: rows on the page.
        num_rows: rows that the file holds.
        text_source: where the texts of tokens are from.
        num_bytes: of the page.
    """

    num_shown: int
    num_rows: int
    text_source: str
    num_bytes: int


def write_view(
    path: Path, out: Path, *, against: Path | None = None, limit: int = 200, tokenizer: str | None = None
) -> ViewSummary:
    """Write trajectories as one web page, which needs no network.

    Args:
        path: trajectory folder or parquet file.
        out: file to write, replaced if it is there.
        against: another such folder or file, to compare with.
        limit: most rows to take.
        tokenizer: folder or built-in name of the tokenizer, if it is not the model's own.

    Raises:
        RequestError: what is to be read is not there, damaged, or does not go together; nothing is written.
        WorkError: the disk refuses.
    """
    sources = open_sources(path, against, limit)
    shown = [source for source in sources if source is not None]
    rows = [row for source in shown for row in source.rows]
    texts = token_texts(rows, shown[0].meta, tokenizer)
    content = page("viewer", **page_data(*sources, texts)).encode()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, content)
    except OSError as error:
        raise WorkError(f"cannot write {out}: {error.strerror or error}") from error
    return ViewSummary(len(shown[0].rows), shown[0].num_rows, texts.source, len(content))


def page_data(source: Source, other: Source | None, texts: TokenTexts) -> dict[str, Any]:
    """All that the page shows, ready for JSON: `files` (one or two) and `pairs`, what was found between them.

    The rows of a file, and the pairs of two, are lists in one order. Seeds are texts: JavaScript's numbers end at 2^53.
    """
    files = [source] if other is None else [source, other]
    ambiguous = other is not None and source.name == other.name
    return {
        "files": [_file_data(each, str(each.path) if ambiguous else each.name) for each in files],
        "tokens": texts.by_id,
        "token_source": texts.source,
        **({} if other is None else _comparison(source, other)),
    }


def _file_data(source: Source, name: str) -> dict[str, Any]:
    rows, block_size = source.rows, source.meta.block_size
    if block_size > MAX_BLOCK_SIZE:
        raise RequestError(f"{source.path}: blocks of {block_size} tokens cannot be shown; {MAX_BLOCK_SIZE} can")
    orders = [reveal_order(row, block_size) for row in rows]
    num_tokens, num_forwards = sum(len(row.response_ids) for row in rows), sum(row.num_forwards for row in rows)
    return {
        "name": name,
        "block_size": block_size,
        "special_ids": sorted({source.meta.mask_token_id, *source.meta.eos_token_ids}),
        "num_rows": source.num_rows,
        "num_tokens": num_tokens,
        "num_forwards": num_forwards,
        "tpf": tokens_per_forward(num_tokens, num_forwards),
        "finish_reasons": dict(Counter(row.finish_reason for row in rows).most_common()),
        "settings": _settings(source),
        "order": _order_data(reduce(add, orders)),
        "rows": [_row_data(row, order) for row, order in zip(rows, orders, strict=True)],
    }


def _row_data(row: Trajectory, order: RevealOrder) -> dict[str, Any]:
    return {
        "id": row.prompt_id,
        "sample": row.sample,
        "prompt": row.prompt_text,
        "response": row.response_text,
        "answer": row.answer,
        "offset": len(row.prompt_ids),
        "ids": list(row.response_ids),
        "steps": list(row.reveal_step),
        "confidences": [_rounded(each) for each in row.confidence],
        "forwards": row.num_forwards,
        "tpf": tokens_per_forward(len(row.response_ids), row.num_forwards),
        "finish_reason": row.finish_reason,
        "seed": str(row.seed),
        "order": _order_data(order),
    }


def _order_data(order: RevealOrder) -> dict[str, Any]:
    """`counts` as [position, rank less 1, number] where there are any: of one row most are 0."""
    places = np.argwhere(order.counts).tolist()
    return {
        "counts": [[position, rank, int(order.counts[position, rank])] for position, rank in places],
        "confidence": [_rounded(each) for each in order.mean_confidence()],
    }


def _comparison(source: Source, other: Source) -> dict[str, Any]:
    """The pairs one by one, all of them together, and how many have other prompt tokens under the same id."""
    both = list(zip(source.rows, other.rows, strict=True))
    sizes = source.meta.block_size, other.meta.block_size
    pairs = [agreement(*rows, *sizes) for rows in both]
    return {
        "pairs": [_agreement_data(pair) for pair in pairs],
        "agreement": _agreement_data(total(pairs)),
        "num_other_prompts": sum(list(one.prompt_ids) != list(two.prompt_ids) for one, two in both),
    }


def _agreement_data(found: Agreement) -> dict[str, Any]:
    return {
        "num_pairs": found.num_pairs,
        "num_identical": found.num_identical,
        "num_equal_tokens": found.num_equal_tokens,
        "num_tokens": found.num_tokens,
        "equal_share": found.equal_share,
        "first_difference": found.first_difference,
        "order_agreement": found.order_agreement,
        "num_ordered": found.same_order + found.opposite_order,
        "num_together": found.together,
    }


def _settings(source: Source) -> list[tuple[str, str]]:
    """How the file was made, for people: (name, value)."""
    meta = source.meta
    decoding = [(name, value) for name, value in meta.to_dict().items() if name not in _SETTINGS_ELSEWHERE]
    return [
        ("path", str(source.path)),
        ("model", meta.model),
        ("revision", meta.revision or "unknown"),
        *((name, str(value)) for name, value in decoding),
        *_prompt_form(meta),
        ("mask_token_id", str(meta.mask_token_id)),
        ("eos_token_ids", ", ".join(map(str, meta.eos_token_ids))),
        ("tokenizer_fingerprint", meta.tokenizer_fingerprint),
    ]


def _prompt_form(meta: TrajectoryMeta) -> Iterable[tuple[str, str]]:
    form = {} if meta.prompt is None else meta.prompt.model_dump()
    return ((f"prompt.{name}", str(value)) for name, value in form.items() if value not in (None, "", {}))


def tokens_per_forward(num_tokens: int, num_forwards: int) -> float | None:
    """TPF over all forwards, prefill included; None where no forward was counted."""
    return num_tokens / num_forwards if num_forwards else None


def _rounded(confidence: float | None) -> float | None:
    """None for what is unknown or no number, which JSON has no word for."""
    return round(confidence, _CONFIDENCE_DIGITS) if confidence is not None and math.isfinite(confidence) else None
