"""What every config shares."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError


class Config(BaseModel):
    """Base of all configs: frozen, and an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


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
