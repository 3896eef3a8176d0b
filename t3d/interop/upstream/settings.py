"""The public code's YAML, as OmegaConf reads it, without OmegaConf: references within the file are followed, and
nothing else is: no resolver runs, no variable of the environment is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t3d.config.recipe import load_fields
from t3d.errors import RequestError, one_line

_MISSING = "???"  # OmegaConf's value that must be set before it is read
_REFERENCE = re.compile(r"\$\{([A-Za-z_][\w.]*)\}")
MAX_HOPS = 20
_LONGEST_VALUE = 80
"""Characters of a value that are shown."""
_LONGEST_MADE_UP = 1000
"""Characters of a text that is put together of others."""


@dataclass(frozen=True, slots=True)
class Remark:
    """What became of a key that is not simply kept.

    Attributes:
        key: its path, such as training.post_num.
        value: as it stands in the file, for people.
        why: what is not kept of it, or how it is.
    """

    key: str
    value: str
    why: str

    def __str__(self) -> str:
        return one_line(f"{self.key} = {self.value}: {self.why}")


@dataclass(slots=True)
class Settings:
    """The keys of a file, taken one by one, so that none is forgotten.

    Attributes:
        name: what messages call the file.
        remarks: on keys that are not simply kept.
    """

    name: str
    _values: dict[str, Any]
    remarks: list[Remark] = field(default_factory=list)

    @classmethod
    def load(cls, file: Path, overrides: Sequence[str] = ()) -> Settings:
        """Read a file; `overrides` are `training.alpha=0.7`, as the public code takes them.

        Raises:
            RequestError: it cannot be read, or is no mapping of names.
        """
        name = f"config {file}"
        values = dict(_flat(load_fields(file, overrides, name, "model, training and optimizer"), ""))
        settings = cls(name, values)
        for key in list(values):
            settings._resolve(key)
        return settings

    def holds(self, group: str) -> bool:
        """Whether there is a key of this group left."""
        return any(key == group or key.startswith(f"{group}.") for key in self._values)

    def number(self, key: str, default: float | None = None) -> float | None:
        """Take a number; text such as "1e-5" is one, which YAML 1.1 takes for text."""
        value = self._values.pop(key, None)
        if value is None:
            return default
        try:
            return _as_number(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise self._wrong(key, value, "a number") from error

    def whole(self, key: str, default: int | None = None) -> int | None:
        """Take a whole number."""
        number = self.number(key)
        if number is None:
            return default
        if not number.is_integer() or abs(number) >= 2**53:
            raise self._wrong(key, number, "a whole number")
        return int(number)

    def flag(self, key: str, default: bool) -> bool:
        """Take true or false."""
        value = self._values.pop(key, None)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str | None:
        """Take a text."""
        value = self._values.pop(key, None)
        if value is None:
            return default
        if not isinstance(value, str) or not value:
            raise self._wrong(key, value, "text")
        return value

    def choose(self, key: str, default: str, known: Sequence[str]) -> str:
        """Take one of a few words."""
        value = self.text(key, default)
        if value not in known:
            raise self._wrong(key, value, " or ".join(known))
        assert value is not None
        return value

    def numbers(self, key: str, default: Sequence[float]) -> list[float]:
        """Take a list of numbers; one alone is a list of one."""
        value = self._values.pop(key, None)
        if value is None:
            return list(default)
        values = value if isinstance(value, list) else [value]
        try:
            return [_as_number(each) for each in values]
        except (TypeError, ValueError, OverflowError) as error:
            raise self._wrong(key, value, "a list of numbers") from error

    def drop(self, key: str, why: str) -> None:
        """Take a key, if it is there, and remark why it is not kept."""
        if key in self._values:
            self.remark(key, self._values.pop(key), why)

    def remark(self, key: str, value: Any, why: str) -> None:
        """Note what became of a key."""
        self.remarks.append(Remark(key, _shown(value), why))

    def drop_rest(self) -> None:
        """Take whatever is left: keys that the public code does not have."""
        for key in sorted(self._values):
            self.drop(key, "not kept: no key of the public code that we know")

    def _resolve(self, key: str) -> None:
        """Put what a value refers to in its place; drop it where that needs more than the file, or is missing."""
        value = self._values[key]
        for _ in range(MAX_HOPS):
            if not isinstance(value, str) or "${" not in value:
                break
            whole = _REFERENCE.fullmatch(value)
            names = [whole[1]] if whole else _REFERENCE.findall(value)
            if not names or not all(name in self._values for name in names):
                break
            if not whole and sum(len(str(self._values[name])) for name in names) > _LONGEST_MADE_UP:
                break
            value = self._values[names[0]] if whole else _REFERENCE.sub(lambda m: str(self._values[m[1]]), value)
        if any("${" in each for each in _texts(value)):
            self.drop(key, "not kept: refers to what is not in the file, and nothing is run to find it")
        elif value == _MISSING:
            self.drop(key, "not kept: has no value yet")
        else:
            self._values[key] = value

    def _wrong(self, key: str, value: Any, expected: str) -> RequestError:
        return RequestError(f"{self.name}: {key}: must be {expected}, not {_shown(value)}")


def _flat(fields: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """(path, value) of everything that is no group."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _as_number(value: Any) -> float:
    if isinstance(value, bool):  # which Python takes for 0 or 1
        raise TypeError
    return float(value)


def _texts(value: Any) -> Iterator[str]:
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, str):
            yield each


def _shown(value: Any) -> str:
    """A value on one line, for people."""
    text = one_line(value if isinstance(value, str) else repr(value))
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."
