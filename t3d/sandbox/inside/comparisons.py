"""How tests compare: a value of the program's own making does not get to say what it is equal to."""

from __future__ import annotations

import ast
import gc
import operator
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType, MethodDescriptorType, NoneType, WrapperDescriptorType
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
COMPARING_METHODS = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__contains__")
SUBTRACTING_METHODS = ("__sub__", "__rsub__", "__abs__")
ATOMS = frozenset((NoneType, bool, int, float, complex, str, bytes))
"""Types whose values hold no others."""
OF_C = (WrapperDescriptorType, MethodDescriptorType)
PROXIES = (weakref.ProxyType, weakref.CallableProxyType)
"""They compare as whatever they stand for does, and do not show it."""
LIBRARY_FOLDERS = [os.path.dirname(os.__file__) + os.sep, "<frozen "]


class Tampered(BaseException):
    """The program bends its tests."""


class ComparisonRewriter(ast.NodeTransformer):
    """Rewrites `a < b == c` into `compare(("Lt", "Eq"), a, b, c)`, and `abs(a - b)` into `abs(subtract(a, b))`."""

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        """One comparison, those within it included."""
        self.generic_visit(node)
        kinds = ast.Tuple([ast.Constant(type(kind).__name__) for kind in node.ops], ast.Load())
        return _call("__compare__", node, [kinds, node.left, *node.comparators])

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """`abs` of a difference, by which tests compare floating-point numbers."""
        self.generic_visit(node)
        match node:
            case ast.Call(ast.Name("abs"), [ast.BinOp(left, ast.Sub(), right) as difference], []):
                node.args = [_call("__subtract__", difference, [left, right])]
        return node


def _call(function: str, node: ast.expr, arguments: list[ast.expr]) -> ast.expr:
    return ast.copy_location(ast.Call(ast.Name(function, ast.Load()), arguments, []), node)


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


def subtract(left: Any, right: Any) -> Any:
    """`left - right`; the program does not get to say how near its values are to others.

    Raises:
        Tampered: a value that subtracts by code of the program meets one that does not.
    """
    if is_foreign(type(left), SUBTRACTING_METHODS) != is_foreign(type(right), SUBTRACTING_METHODS):
        raise Tampered("a value with arithmetic of its own is compared with a plain one")
    return left - right


def holds_foreign(value: Any) -> bool:
    """Whether a value, or one that it holds, compares by code that is not of Python's or an installed package's."""
    values: list[Any] = [value]
    seen: dict[int, Any] = {}  # holds on to the values: a new one may get the id of one that is gone
    while values:
        each = values.pop()
        if id(each) in seen:
            continue
        seen[id(each)] = each
        if is_foreign(type(each), COMPARING_METHODS):
            return True
        if compares_by_content(type(each)):
            values.extend(held for held in held_by(each) if type(held) not in ATOMS)
    return False


def held_by(value: Any) -> Iterable[Any]:
    """What a value refers to, without asking the program's code; not the members of classes."""
    if issubclass(type(value), type):
        return ()
    tolist = next((method for _, method in methods_of(type(value), ("tolist",))), None)
    if isinstance(tolist, MethodDescriptorType):  # NumPy's arrays do not tell the garbage collector
        return (tolist(value),)
    return gc.get_referents(value)


def compares_by_content(kind: type) -> bool:
    """Whether values of a type compare by more than which object they are."""
    return any(owner is not object for owner, _ in methods_of(kind, COMPARING_METHODS))


def is_foreign(kind: type, names: tuple[str, ...]) -> bool:
    """Whether one of these methods of a type is code that is not of Python's or an installed package's.

    That includes such code under another name: `__eq__ = int.__ne__` is the program's.
    """
    if issubclass(kind, PROXIES):
        return True
    for name in names:
        for _, method in methods_of(kind, (name,)):
            if method is None:
                continue
            is_theirs = isinstance(method, FunctionType) and is_library(method.__code__.co_filename)
            if not (isinstance(method, OF_C) or is_theirs) or method.__name__ != name:
                return True
    return False


def methods_of(kind: type, names: tuple[str, ...]) -> Iterator[tuple[type, Any]]:
    """(class that defines it, method) of each of these that a type has, without asking its metaclass."""
    for name in names:
        for each in type.__dict__["__mro__"].__get__(kind):
            members = type.__dict__["__dict__"].__get__(each)
            if name in members:
                yield each, members[name]
                break


def is_library(file: str) -> bool:
    """Whether code is Python's own or an installed package's; `unittest.mock`, whose ANY equals all, is not."""
    return any(file.startswith(folder) for folder in LIBRARY_FOLDERS) and not file.endswith("mock.py")
