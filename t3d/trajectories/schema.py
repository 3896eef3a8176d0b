"""What a trajectory file holds: columns and metadata; the conversion from and to `Trajectory` rows."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError

from t3d.config import PromptConfig
from t3d.config.base import first_fault
from t3d.errors import RequestError
from t3d.types import FinishReason, Trajectory

SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("reveal_step", pa.list_(pa.int32())),
        ("confidence", pa.list_(pa.float32())),
        ("num_forwards", pa.int32()),
        ("finish_reason", pa.string()),
        ("prompt_text", pa.string()),
        ("response_text", pa.string()),
        ("answer", pa.string()),
        ("seed", pa.int64()),
    ]
)
METADATA_KEY = b"t3d"
_NULLABLE = "answer"
_PER_TOKEN = ("reveal_step", "confidence")  # lists as long as response_ids
_IDS = ("prompt_ids", "response_ids")
_COUNTS = ("sample", "num_forwards", "seed")
_FINISH_REASONS = get_args(FinishReason)
_TokenId = Annotated[int, Field(ge=0, lt=2**31)]
_Count = Annotated[int, Field(ge=1, le=2**31)]


@dataclass(frozen=True, slots=True)
class TrajectoryMeta:
    """Where the rows of a trajectory folder come from; the same for all of them.

    Attributes:
        model: hub name or folder of the model that was rolled out.
        revision: the hub's commit; for a local folder a fingerprint of its weights; None if unknown.
        tokenizer_fingerprint: identifies the tokenizer that the ids belong to.
        mask_token_id, eos_token_ids: the model's special ids that decoding depended on.
        block_size, steps_per_block, rule, temperature, top_k, top_p, threshold, entropy_bound,
            max_new_tokens, seed: the decoding settings, as in `t3d.types.Decoding`, resolved.
        software_version: version of this package.
        prompt: the resolved form that questions were put in; None if prompts were not rendered by this package, or by
            one that did not write it down.
    """

    model: str
    revision: str | None
    tokenizer_fingerprint: str
    mask_token_id: _TokenId
    eos_token_ids: tuple[_TokenId, ...]
    block_size: _Count
    steps_per_block: _Count
    rule: str
    temperature: FiniteFloat
    top_k: int
    top_p: FiniteFloat
    threshold: FiniteFloat
    entropy_bound: FiniteFloat
    max_new_tokens: _Count
    seed: int
    software_version: str
    prompt: PromptConfig | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "eos_token_ids", tuple(self.eos_token_ids))

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return {**asdict(self), "prompt": self.prompt and self.prompt.model_dump()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrajectoryMeta:
        """The inverse of `to_dict`; raises `RequestError` naming a field that is missing, unknown or wrong."""
        names = {field.name for field in fields(cls)}
        values = {"prompt": None, **values}
        if missing := sorted(names - values.keys()):
            raise RequestError(f"trajectory metadata lacks the field {missing[0]!r}")
        if unknown := sorted(values.keys() - names):
            raise RequestError(f"trajectory metadata has the unknown field {unknown[0]!r}")
        try:
            return _META.validate_python(values)
        except ValidationError as error:
            raise RequestError(f"trajectory metadata: {first_fault(error)}") from error


_META = TypeAdapter(TrajectoryMeta)


def schema_with_meta(meta: TrajectoryMeta) -> pa.Schema:
    """`SCHEMA` carrying `meta` as one JSON text under the key `t3d`."""
    return SCHEMA.with_metadata({METADATA_KEY: json.dumps(meta.to_dict())})


def meta_from_schema(schema: pa.Schema, source: str) -> TrajectoryMeta:
    """The metadata of a file's schema; `source` names the file.

    Raises:
        RequestError: the file carries no (or no readable) trajectory metadata.
    """
    text = (schema.metadata or {}).get(METADATA_KEY)
    if text is None:
        raise RequestError(f"{source} carries no t3d metadata; give a file that `t3d rollout` wrote")
    try:
        return TrajectoryMeta.from_dict(json.loads(text))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RequestError(f"{source}: {error}; give a file that this version of t3d wrote") from error


def rows_to_table(rows: Sequence[Trajectory], meta: TrajectoryMeta, source: str) -> pa.Table:
    """The rows as a checked table that carries `meta`; confidences are rounded to float32.

    Args:
        rows: any number of rows, none included.
        meta: where they come from.
        source: names the destination in error messages.

    Raises:
        RequestError: a value does not fit its column, or a row means nothing (see `check_table`).
    """
    columns = []
    for name, arrow_type in zip(SCHEMA.names, SCHEMA.types, strict=True):
        try:
            columns.append(pa.array([getattr(row, name) for row in rows], type=arrow_type))
        except (ValueError, TypeError, OverflowError) as error:  # pyarrow's errors derive from these
            raise RequestError(f"{source}: a value of {name} is not {arrow_type}: {error}") from error
    table = pa.Table.from_arrays(columns, schema=schema_with_meta(meta))
    check_table(table, source)
    return table


def table_to_rows(table: pa.Table, source: str, first_row: int = 0) -> list[Trajectory]:
    """The checked rows of a table, whose columns may be wider (int64, large_list) or more than `SCHEMA` has.

    Args:
        table: some rows of a file.
        source: names the file in error messages.
        first_row: the 0-based number of the table's first row in the file.

    Raises:
        RequestError: a column is missing or of another type, or a row means nothing (see `check_table`).
    """
    if missing := [name for name in SCHEMA.names if name not in table.column_names]:
        raise RequestError(f"{source} has no column {missing[0]!r}; give a trajectory file")
    try:
        table = table.select(SCHEMA.names).cast(SCHEMA)
    except pa.ArrowException as error:
        raise RequestError(f"{source}, rows from {first_row}: a column has a wrong type: {error}") from error
    check_table(table, source, first_row)
    columns = [_to_python(column.combine_chunks()) for column in table.columns]
    return [Trajectory(*values) for values in zip(*columns, strict=True)]


def check_table(table: pa.Table, source: str, first_row: int = 0) -> None:
    """Refuse rows that mean nothing: see `table_to_rows` for the arguments.

    Raises:
        RequestError: names the file, the row (counted from 0) and what is wrong with it: a missing value,
            lists of different length, a reveal step below 1, an id or count below 0, an unknown finish reason.
    """
    for bad_rows, message in _faults(table):
        if len(bad_rows):
            raise RequestError(f"{source}, row {first_row + int(bad_rows[0])}: {message}")


def _faults(table: pa.Table) -> Iterator[tuple[np.ndarray, str]]:
    """Each check in turn: the rows (int [num_bad]) that fail it, and what to say of them."""
    columns = {name: table[name].combine_chunks() for name in SCHEMA.names}
    for name, column in columns.items():
        if name != _NULLABLE:
            yield _where(column.is_null()), f"{name} is missing"
        if pa.types.is_list(column.type):
            yield _rows_where(column, column.flatten().is_null()), f"{name} has a missing value"
    length = pc.list_value_length(columns["response_ids"])
    for name in _PER_TOKEN:
        other = pc.list_value_length(columns[name])
        yield _where(pc.not_equal(other, length)), f"{name} and response_ids differ in length"
    steps = columns["reveal_step"]
    yield _rows_where(steps, pc.less(steps.flatten(), 1)), "reveal_step must be at least 1 everywhere"
    for name in _IDS:
        yield _rows_where(columns[name], pc.less(columns[name].flatten(), 0)), f"{name} must be 0 or more everywhere"
    for name in _COUNTS:
        yield _where(pc.less(columns[name], 0)), f"{name} must be 0 or more"
    known = pc.is_in(columns["finish_reason"], value_set=pa.array(_FINISH_REASONS))
    yield _where(pc.invert(known)), f"finish_reason must be one of {', '.join(_FINISH_REASONS)}"


def _where(mask: pa.BooleanArray) -> np.ndarray:
    """The positions (int [num_true]) at which a mask without nulls is true."""
    return np.flatnonzero(mask.to_numpy(zero_copy_only=False))


def _rows_where(lists: pa.ListArray, mask: pa.BooleanArray) -> np.ndarray:
    """The rows (int [num_true]) of those flattened elements of `lists` at which `mask` is true."""
    return pc.list_parent_indices(lists).to_numpy()[_where(mask)]


def _to_python(column: pa.Array) -> list[Any]:
    """A column as Python values; for lists much faster than pyarrow's own `to_pylist`."""
    if not pa.types.is_list(column.type):
        return column.to_pylist()
    values = column.values.to_numpy().tolist()
    bounds = column.offsets.to_numpy().tolist()
    return [values[start:end] for start, end in itertools.pairwise(bounds)]
