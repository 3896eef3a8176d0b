"""How tests compare: a value of the program's own making does not get to say what it is equal to."""

from __future__ import annotations

import ast
import operator
import os
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, NoneType, WrapperDescriptorType
from typing import Any

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "Eq": operator.eq,
    "NotEq": operator.ne,
    "Lt": operator.lt,
    "LtE": operator.le,
    "Gt": operator.gt,
    "GtE": operator.ge,
    "Is": operator.is_,
    "IsNot": operator.is_not,
    "In": lambda left, right: left in right,
    "NotIn": lambda left, right: left not in right,
}
LARGEST_VALUE = 100_000
"""Items of a value that are looked at."""
COMPARING_METHODS = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__contains__")
OF_C = (WrapperDescriptorType, MethodDescriptorType, BuiltinFunctionType, NoneType)
LIBRARY_FOLDERS = [os.path.dirname(os.__file__) + os.sep, "<frozen "]


class Tampered(BaseException):
    """The program bends its tests."""


class ComparisonRewriter(ast.NodeTransformer):
    """Rewrites `a < b == c` into `compare(("Lt", "Eq"), a, b, c)`."""

    FUNCTION = "__compare__"

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        """One comparison, those within it included."""
        self.generic_visit(node)
        kinds = ast.Tuple([ast.Constant(type(kind).__name__) for kind in node.ops], ast.Load())
        function = ast.Name(self.FUNCTION, ast.Load())
        return ast.copy_location(ast.Call(function, [kinds, node.left, *node.comparators], []), node)


def compare(kinds: tuple[str, ...], *operands: Any) -> Any:
    """A chain of comparisons; the program does not get to say what its values are equal to.

    Raises:
        Tampered: a value that compares by code of the program meets one that does not.
    """
    result: Any = True
    for kind, left, right in zip(kinds, operands, operands[1:], strict=False):
        if kind not in ("Is", "IsNot") and holds_foreign(left) != holds_foreign(right):
            raise Tampered("a value with comparisons of its own is compared with a plain one")
        result = COMPARISONS[kind](left, right)
        if len(kinds) > 1 and not result:
            return result
    return result


def holds_foreign(value: Any) -> bool:
    """Whether a value, or an item of it, compares by code that is not of Python's or an installed package's."""
    kinds: set[type] = set()
    values: list[Any] = [value]
    seen: set[int] = set()
    while values and len(seen) < LARGEST_VALUE:
        each = values.pop()
        if id(each) not in seen:
            seen.add(id(each))
            kinds.add(type(each))
            values.extend(items_of(each))
    return any(is_foreign(kind) for kind in kinds)


def items_of(value: Any) -> Iterator[Any]:
    """Of a container, without asking the program's code."""
    for kind in (list, tuple, set, frozenset, dict):
        if issubclass(type(value), kind):
            yield from kind.__iter__(value)
            if kind is dict:
                yield from dict.values(value)


def is_foreign(kind: type) -> bool:
    """Whether values of a type compare by code that is not of Python's or an installed package's."""
    for name in COMPARING_METHODS:
        methods = [vars(each)[name] for each in type.mro(kind) if name in vars(each)]
        if not methods or isinstance(methods[0], OF_C):
            continue
        if not (isinstance(methods[0], FunctionType) and is_library(methods[0].__code__.co_filename)):
            return True
    return False


def is_library(file: str) -> bool:
    """Whether code is Python's own or an installed package's; `unittest.mock`, whose ANY equals all, is not."""
    return any(file.startswith(folder) for folder in LIBRARY_FOLDERS) and not file.endswith("mock.py")
