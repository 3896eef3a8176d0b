"""Runs a program, and the tests that follow it, in this process; reports what happened over a socket of its own.

Part of the script confine.py. It resists the tricks that programs are known for (`t3d.sandbox` says which), not a
program that knows this file and walks the interpreter's frames. To that end it has builtins of its own, and holds on to
what it needs of modules before the program runs.
"""

from __future__ import annotations

import ast
import builtins
import errno
import importlib
import os
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from t3d.sandbox.inside.comparisons import LIBRARY_FOLDERS, ComparisonRewriter, Tampered, compare, subtract

PROGRAM, TESTS = "<program>", "<tests>"
LONGEST_DETAIL = 300
"""Characters of the line that says what went wrong."""

Report = Callable[[str, str], None]
Failure = tuple[str, str]
"""Outcome and detail, as in `t3d.sandbox.ProgramOutcome`."""


def main(job: dict[str, Any], verdict_fd: int) -> None:
    """Do one job; with `tests` the process ends in here.

    Args:
        job: `nonce`, `packages` (folders of installed packages), `preamble`, `program`, and `tests` or, if that is
            None, `stdin`.
        verdict_fd: socket for the lines "nonce outcome detail".
    """
    report = make_report(verdict_fd, job.pop("nonce"))
    sys.path += job["packages"]
    LIBRARY_FOLDERS.extend(job["packages"])
    report("started", "")
    if job["tests"] is None:
        set_stdin(job["stdin"])
        run_script([job["preamble"], job["program"]], report)
    else:
        set_stdin("")
        run_with_tests([job["preamble"], job["program"]], job["tests"], report)


def make_report(verdict_fd: int, nonce: str) -> Report:
    """The function that sends outcome and detail; silent in a process that the program forked."""
    write, getpid, own_pid = os.write, os.getpid, os.getpid()

    def report(outcome: str, detail: str) -> None:
        if getpid() == own_pid:
            write(verdict_fd, f"{nonce} {outcome} {detail}\n".encode("utf-8", "backslashreplace"))

    return report


def run_script(parts: list[str], report: Report) -> None:
    """Run a program that reads and prints; says nothing if it ends well, for what it printed is judged outside."""
    sys.argv = ["program.py"]
    leave = os._exit
    failure = failure_of(lambda: run_parts(parts, new_module("__main__")), "")
    if failure is not None and failure != ("exit", "SystemExit: 0") and failure != ("exit", "SystemExit"):
        report(*failure)
        leave(1)


def run_with_tests(parts: list[str], tests: str, report: Report) -> None:
    """Run a program, then its tests, report and leave: threads and exit functions of the program have no say."""
    leave = os._exit
    module = new_module("program")
    guard = TestGuard(tests)
    failure = failure_of(lambda: run_parts(parts, module), tests)
    if failure is None:
        guard.restore()
        names = guard.namespace(vars(module))
        failure = failure_of(lambda: exec(guard.code, names), tests)
    if failure is None and guard.is_disturbed():
        failure = ("tampered", "changed builtins or modules while the tests ran")
    report(*(failure or ("passed", "")))
    leave(0)


def run_parts(parts: list[str], module: ModuleType) -> None:
    """Run the preamble, then the program, in one namespace."""
    for part in parts:
        exec(compile(part, PROGRAM, "exec", dont_inherit=True), vars(module))


class TestGuard:
    """Keeps what tests rely on out of the program's reach. Made before the program runs.

    Args:
        tests: Python.

    Attributes:
        code: of the tests, comparing by `compare`.
    """

    def __init__(self, tests: str) -> None:
        tree = ast.parse(tests, TESTS)
        self._loaded = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        self._modules = import_all(imported_by(tree))
        self._builtins = dict(vars(builtins))
        guarded = [builtins, *self._modules.values()]
        self._saved = [(vars(module), callables_of(module)) for module in guarded]
        tree = ast.fix_missing_locations(ComparisonRewriter().visit(tree))
        self.code = compile(tree, TESTS, "exec", dont_inherit=True)

    def restore(self) -> None:
        """Undo what the program did to builtins, to the modules that the tests import, and to tracing."""
        for names, saved in self._saved:
            names.update(saved)
        sys.modules.update(self._modules)
        sys.settrace(None)
        sys.setprofile(None)

    def namespace(self, program: dict[str, Any]) -> dict[str, Any]:
        """A copy of the program's names for the tests to run in, with true builtins.

        A name of the program that hides a builtin is left out if the tests use another name of the program: they test
        that one. (`sum` of MBPP/126 is tested itself.)
        """
        used = self._loaded & program.keys()
        hiding = used & self._builtins.keys()
        hidden = hiding if used - hiding else set()
        names = {name: value for name, value in program.items() if name not in hidden}
        return {**names, "__builtins__": dict(self._builtins), "__compare__": compare, "__subtract__": subtract}

    def is_disturbed(self) -> bool:
        """Whether something that was restored has been changed again."""
        changed = any(names.get(name) is not value for names, saved in self._saved for name, value in saved.items())
        return changed or any(sys.modules.get(name) is not module for name, module in self._modules.items())


def failure_of(run: Callable[[], None], tests: str) -> Failure | None:
    """Run code of the program or the tests; None if it ends by itself."""
    try:
        run()
    except BaseException as error:
        return outcome_of(error), describe(error, tests)
    return None


def outcome_of(error: BaseException) -> str:
    """The word for an exception that the program did not catch."""
    if isinstance(error, BlockingIOError) and error.errno == errno.EAGAIN:  # fork, at the limit
        return "processes"
    words = ((Tampered, "tampered"), (AssertionError, "failed"), (MemoryError, "memory"), (SystemExit, "exit"))
    return next((word for kind, word in words if isinstance(error, kind)), "error")


def describe(error: BaseException, tests: str) -> str:
    """One line, such as "AssertionError: assert f(2) == 3"; the exception's own text may be any code's."""
    try:
        text = failed_assertion(error, tests) if isinstance(error, AssertionError) else str(error)
        line = re.sub(r"\s+", " ", f"{type(error).__name__}: {text}"[: 4 * LONGEST_DETAIL])
    except BaseException:
        return type(error).__name__
    return line[:LONGEST_DETAIL].strip().removesuffix(":")


def failed_assertion(error: AssertionError, tests: str) -> str:
    """The statement of the tests that failed; the error's own text if it is not one of theirs."""
    lines, trace = [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == TESTS:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    for node in ast.walk(ast.parse(tests)) if lines else ():
        if isinstance(node, ast.Assert) and node.lineno <= lines[-1] <= (node.end_lineno or node.lineno):
            return ast.get_source_segment(tests, node) or str(error)
    return str(error)


def imported_by(tree: ast.AST) -> list[str]:
    """Names of the modules that code imports."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return names


def import_all(names: list[str]) -> dict[str, ModuleType]:
    """Modules by name; one that is not there is left for the tests to fail on."""
    modules = {}
    for name in names:
        try:
            modules[name] = importlib.import_module(name)
        except Exception:
            continue
    return modules


def callables_of(module: ModuleType) -> dict[str, Any]:
    """Functions and classes of a module; not its data, which may change as it works."""
    return {name: value for name, value in vars(module).items() if callable(value)}


def new_module(name: str) -> ModuleType:
    """An empty module that is known to the interpreter, as dataclasses and pickle need."""
    module = ModuleType(name)
    sys.modules[name] = module
    return module


def set_stdin(text: str) -> None:
    """Make standard input hold `text`, by way of a file that nobody else sees."""
    fd = os.open(".stdin", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(".stdin")
    with open(fd, "w", encoding="utf-8", closefd=False) as file:
        file.write(text)
    os.lseek(fd, 0, os.SEEK_SET)
    os.dup2(fd, 0)
    os.close(fd)
