"""`t3d convert upstream-rollouts`: the public code's rollout file -> a trajectory folder and a tally beside it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from transformers import GenerationConfig

import t3d
from t3d.errors import RequestError, WorkError
from t3d.files import write_whole
from t3d.interop.upstream.answers import Vocabulary
from t3d.interop.upstream.json_rows import BrokenFileError, read_entries
from t3d.interop.upstream.rows import RowConverter
from t3d.interop.upstream.tally import DamageMode, RefusedError, Tally
from t3d.models import (
    BlockDiffusionConfig,
    load_config,
    load_tokenizer,
    resolve_model,
    stop_token_ids,
    tokenizer_fingerprint,
)
from t3d.models.plausible import check_generation_config
from t3d.progress import progress
from t3d.trajectories import TrajectoryMeta, TrajectoryWriter
from t3d.trajectories.schema import rows_to_table
from t3d.types import Decoding, Trajectory

ROWS_PER_SHARD = 1024
UPSTREAM_BLOCK_SIZE = 4
"""Of the public code's configs/sdar_sample.yaml."""


def convert_rollouts(
    file: Path, out: Path, model: str, decoding: Decoding, on_damage: DamageMode = "repair", shown: bool = True
) -> Tally:
    """Write the trajectories of a file that `sample/sdar_sample.py` wrote, renamed by `data/rename_key.py` or not.

    Each row of the file is a prompt, whose number becomes `prompt_id`; each of its answers a sample. Texts are
    tokenised again, which is the only way to their tokens, and an answer is kept only if its step map fits these
    tokens, and the prompt's, in every respect that can be checked. What the file does not hold is unknown: confidences
    are NaN, seeds 0.

    Args:
        file: a JSON list; it is read entry by entry.
        out: new trajectory folder; nothing is written before the whole file is judged.
        model: that was rolled out, for its tokenizer and special ids; its weights are not read.
        decoding: that the rollout asked for.
        on_damage: see `RowConverter`.
        shown: show progress.

    Returns:
        what became of the answers; `tally_file` holds it too.

    Raises:
        RequestError: no such file, or none of the public code's; damage, where `on_damage` is stop.
        WorkError: no answer could be kept, or the disk refuses.
    """
    decoding = decoding.resolve(UPSTREAM_BLOCK_SIZE)
    vocabulary = load_vocabulary(model)
    converter = RowConverter(vocabulary, decoding, on_damage)
    shards, tally = convert_to_tables(file, converter, model, shown), converter.tally
    if not shards:
        told = "; ".join(tally.lines()[:3]) or "it holds no row"
        raise WorkError(f"{file}: no answer can be kept: {told}")
    writer = TrajectoryWriter(out, _meta(model, vocabulary, decoding), request_fingerprint="", num_shards=len(shards))
    for index in writer.missing:
        writer.write_table(index, shards[index])
    report = {"file": file.name, "model": model, "on_damage": on_damage, **tally.to_dict()}
    try:
        write_whole(tally_file(out), json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise WorkError(f"cannot write {tally_file(out)}: {error.strerror or error}") from error
    return tally


def tally_file(out: Path) -> Path:
    """Beside a trajectory folder, DIR.conversion.json: in it, readers of parquet folders would take it for data."""
    named = out if out.name not in ("", "..") else out.resolve()
    return named.with_name(f"{named.name}.conversion.json")


def convert_to_tables(file: Path, converter: RowConverter, model: str, shown: bool = True) -> list[pa.Table]:
    """What is kept of a file, as the tables of the shards, which take a few bytes a token; raises as
    `convert_rollouts`.
    """
    rows, tables = _trajectories(file, converter, shown), []
    meta = _meta(model, converter.vocabulary, converter.decoding)
    while shard := list(itertools.islice(rows, ROWS_PER_SHARD)):
        tables.append(rows_to_table(shard, meta, str(file)))
    return tables


def load_vocabulary(model: str) -> Vocabulary:
    """Tokenizer and special ids of a model folder, hub id or built-in model.

    Raises:
        RequestError: they cannot be read.
    """
    config = load_config(model)
    check_generation_config(Path(resolve_model(model)), model)
    tokenizer = load_tokenizer(model)
    try:
        generation_config = GenerationConfig.from_pretrained(resolve_model(model))
    except OSError:  # it has none, as `load_model` would find
        generation_config = None
    assert config.mask_token_id is not None
    stops = stop_token_ids(_WithoutWeights(config, generation_config), tokenizer)
    return Vocabulary(tokenizer, config.mask_token_id, frozenset(stops))


class _WithoutWeights(NamedTuple):
    """What a model's folder says of a model before its weights are read."""

    config: BlockDiffusionConfig
    generation_config: GenerationConfig | None


def _trajectories(file: Path, converter: RowConverter, shown: bool) -> Iterator[Trajectory]:
    """What is kept of a file; whatever is wrong with it is counted, or raised as `RequestError` naming the file."""
    try:
        with progress("convert", file.stat().st_size, "bytes", shown=shown) as bar:
            for number, value in enumerate(read_entries(file, bar.advance)):
                if number == 0 and not isinstance(value, dict):
                    raise BrokenFileError("begins with what is no row")
                yield from converter.convert(value, number)
    except BrokenFileError as error:
        number = converter.tally.num_rows
        if number == 0:
            raise RequestError(f"{file}: {error}; give the JSON list that sample/sdar_sample.py wrote") from error
        try:
            converter.refuse(RefusedError("cut_off"), str(number))
        except RequestError as refused:
            raise RequestError(f"{file}: {refused}") from refused
    except RequestError as error:
        raise RequestError(f"{file}: {error}") from error
    except OSError as error:
        raise RequestError(f"{file}: cannot be read: {error.strerror or error}") from error


def _meta(model: str, vocabulary: Vocabulary, decoding: Decoding) -> TrajectoryMeta:
    """Where the rows come from, as far as it is known: the weights are not, nor did we render the prompts."""
    assert decoding.block_size is not None
    assert decoding.steps_per_block is not None
    return TrajectoryMeta(
        model=model,
        revision=None,
        tokenizer_fingerprint=tokenizer_fingerprint(vocabulary.tokenizer),
        mask_token_id=vocabulary.mask_token_id,
        eos_token_ids=tuple(sorted(vocabulary.stop_token_ids)),
        block_size=decoding.block_size,
        steps_per_block=decoding.steps_per_block,
        rule=decoding.rule,
        temperature=decoding.temperature,
        top_k=decoding.top_k,
        top_p=decoding.top_p,
        threshold=decoding.threshold,
        entropy_bound=decoding.entropy_bound,
        max_new_tokens=decoding.max_new_tokens,
        seed=decoding.seed,
        software_version=t3d.__version__,
        prompt=None,
    )
