"""What every config shares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from t3d.credentials import holds_credentials


class Config(BaseModel):
    """Base of all configs: frozen, an unknown field is an error, and so is a number that is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_credentials(cls, fields: Any) -> Any:
        """A run writes its config down in many places."""
        for name in fields if isinstance(fields, dict) else ():
            if any(map(holds_credentials, _texts(fields[name]))):
                raise ValueError(f"{name}: leave user name, password and key out of the URL: a run writes it down")
        return fields


def _texts(value: Any) -> Iterator[str]:
    """All that is text in a field."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for each in value.values() for text in _texts(each))
    elif isinstance(value, list | tuple):
        yield from (text for each in value for text in _texts(each))


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one field.

    Attributes:
        kind: pydantic's word for it, such as "missing" or "extra_forbidden".
        field: its path, such as "rounds.0.rollout.task"; "" if it is the whole that is wrong.
        message: what is wrong.
    """

    kind: str
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


def first_fault(error: ValidationError) -> Fault:
    """The first of what pydantic found wrong, for a message of one line."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    return Fault(first["type"], field, first["msg"].removeprefix("Value error, "))
