"""GGUF files: their metadata, and their weights as plain numbers.

A thin layer over the `gguf` package of llama.cpp's authors, which is optional (`pip install 't3d[gguf]'`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3d.errors import RequestError
from t3d.models.conversion.gguf_lengths import check_lengths

LARGEST_COUNT = 2**31 - 1
"""Of anything that a model has several of."""


class GGUFFile:
    """An open GGUF file.

    Args:
        path: of the file.

    Raises:
        RequestError: no such file, not GGUF, or the package that reads it is not installed.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise RequestError(f"GGUF file {path}: there is no such file")
        try:
            import gguf
        except ImportError:
            raise RequestError(
                f"GGUF file {path}: reading it needs the gguf package: pip install 't3d[gguf]'"
            ) from None
        self.path = path
        self._dequantize = gguf.dequantize
        try:
            check_lengths(path)
            self._reader = gguf.GGUFReader(path)
        except Exception as error:  # whatever broken bytes make of numpy's views
            raise RequestError(f"GGUF file {path}: is not GGUF, or broken; download it again") from error

    def get(self, name: str, default: Any = None) -> Any:
        """A metadata field's value (text, number, flag or list of these), or `default` where there is none.

        Numbers stored in float32 come back as the shortest decimal that is the same float32: 1e-05.

        Raises:
            RequestError: it cannot be read.
        """
        field = self._reader.fields.get(name)
        if field is None:
            return default
        try:
            value = field.contents()
        except Exception as error:  # text that is no UTF-8, lists of several kinds
            raise RequestError(f"GGUF file {self.path}: its {name} cannot be read; download it again") from error
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def require(self, name: str) -> Any:
        """A metadata field's value.

        Raises:
            RequestError: the file does not have it.
        """
        value = self.get(name)
        if value is None:
            raise RequestError(f"GGUF file {self.path}: its metadata have no {name}")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        """A metadata field that is a number of something, from 1 to `LARGEST_COUNT`; `default` as in `get`.

        Raises:
            RequestError: the file does not have it, or as something else.
        """
        value = self.require(name) if default is None else self.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_COUNT:
            raise RequestError(f"GGUF file {self.path}: its {name} must be a number from 1 on, not {value!r}")
        return value

    def texts(self, name: str) -> list[str]:
        """A metadata field that is a list of texts.

        Raises:
            RequestError: the file does not have it, or as something else.
        """
        value = self.require(name)
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise RequestError(f"GGUF file {self.path}: its {name} must be a list of texts")
        return value

    @property
    def tensor_names(self) -> list[str]:
        """Of all weights, in llama.cpp's names."""
        return [tensor.name for tensor in self._reader.tensors]

    def tensors(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Name and weights of each tensor, one at a time, whatever type they are stored in.

        Raises:
            RequestError: a type that the gguf package cannot turn into numbers.
        """
        for tensor in self._reader.tensors:
            try:
                values = self._dequantize(tensor.data, tensor.tensor_type)
            except NotImplementedError as error:
                raise RequestError(f"GGUF file {self.path}: {error}; convert from another quantisation") from error
            except Exception as error:  # whatever sizes make of numpy's views
                raise RequestError(f"GGUF file {self.path}: tensor {tensor.name} is broken") from error
            yield tensor.name, np.asarray(values, dtype=np.float32)
