"""The sandbox: hostile programs in every isolation that works here, and what becomes of the host; and good ones."""

import functools
import json
import os
import site
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hostile_programs import HOSTILE, MARK, RIGHT, TESTS, TOKEN, WRONG
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import t3d
from t3d.errors import RequestError, WorkError
from t3d.sandbox import Limits, find_isolation, finding, run_tests
from t3d.sandbox.isolation import LimitsOnly
from t3d.sandbox.processes import children
from t3d.types import ProgramTests

ISOLATIONS = ("bubblewrap", "unshare", "limits")
NOBODY = {"user": 65534, "group": 65534, "extra_groups": []}
STRANGER = {"PYTHONPATH": str(Path(t3d.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
"""Environment in which an interpreter of another user finds this package."""


@functools.cache
def working(name):
    try:
        return find_isolation(name)
    except RequestError as error:
        return str(error)


@pytest.fixture(params=ISOLATIONS)
def isolation(request):
    found = working(request.param)
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture
def host(tmp_path):
    """A host with a secret and two listeners, that has to be as it was when the test is over."""
    (tmp_path / "secret").write_text("hush")
    with socket.create_server(("127.0.0.1", 0)) as internet, socket.socket(socket.AF_UNIX) as abstract:
        name = f"t3d-test-{MARK}"
        abstract.bind(f"\0{name}")
        abstract.listen()
        yield Host(tmp_path, internet, abstract, name)


@dataclass
class Host:
    folder: Path
    internet: socket.socket
    abstract: socket.socket
    name: str

    def program(self, text):
        environ = Path("/proc/self/environ").read_bytes()
        values = {"HOST": self.folder, "SITE": site.getsitepackages()[0], "PORT": self.internet.getsockname()[1]}
        values |= {"NAME": self.name, "ENVIRON": repr(environ)}
        for name, value in values.items():
            text = text.replace(name, str(value))
        return text

    def is_unharmed(self):
        written = [Path("/usr/t3d-was-here"), Path(site.getsitepackages()[0]) / "t3d_was_here.py"]
        return sorted(os.listdir(self.folder)) == ["secret"] and not any(file.exists() for file in written)

    def has_visitors(self):
        for listener in (self.internet, self.abstract):
            listener.setblocking(False)
            try:
                listener.accept()[0].close()
                return True
            except BlockingIOError:
                pass
        return False


def command_lines():
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            yield (folder / "cmdline").read_bytes()
        except OSError:
            continue


def left_behind(before):
    """What a run may have left: child processes, daemons, open files and mounts."""
    daemons = [line for line in command_lines() if MARK.encode() in line]
    return children(os.getpid()), daemons, sorted(set(files_and_mounts()) - set(before))


def files_and_mounts():
    return [*os.listdir("/proc/self/fd"), *Path("/proc/self/mounts").read_text().split("\n")]


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda each: each.name)
def test_hostile_programs(hostile, isolation, host, monkeypatch, tmp_path_factory):
    allowed = hostile.allowed(isolation.name)
    if allowed is None:
        pytest.skip("would do harm without isolation")
    scratch = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setenv(TOKEN, "hush")
    before = files_and_mounts()
    outcome = run_tests(host.program(hostile.program), hostile.tests, isolation, hostile.limits)
    assert outcome.outcome in allowed, outcome
    assert len(outcome.detail) < 400
    assert "\n" not in outcome.detail
    assert left_behind(before) == ([], [], [])
    assert os.listdir(scratch) == []
    assert host.is_unharmed()
    assert isolation.name == "limits" or not host.has_visitors()


@given(
    numbers=st.tuples(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6)),
    error=st.integers(-1, 1),
)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_right_programs_pass_and_wrong_ones_fail(isolation, numbers, error):
    x, y = numbers
    outcome = run_tests(f"def f(x): return x + {y + error}", ProgramTests(f"assert f({x}) == {x + y}"), isolation)
    assert outcome.outcome == ("failed" if error else "passed")
    assert outcome.detail == (f"AssertionError: assert f({x}) == {x + y}" if error else "")


def test_many_at_once_are_not_mixed_up(isolation):
    def verdict(n):
        return run_tests(f"def f(): return {n}", ProgramTests(f"assert f() == {n - n % 2}"), isolation)

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(verdict, range(32)))
    assert [each.passed for each in outcomes] == [n % 2 == 0 for n in range(32)]
    assert [each.detail for each in outcomes if not each.passed] == [
        f"AssertionError: assert f() == {n - 1}" for n in range(1, 32, 2)
    ]


CASES = [
    ("print(sum(map(int, input().split())))", "passed", ""),
    ("import sys\nprint(sum(int(n) for n in sys.stdin.read().split()), '  ')\nprint()\nsys.exit(0)", "passed", ""),
    ("if __name__ == '__main__': print(3 if input() == '1 2' else 7)", "passed", ""),
    ("import atexit\natexit.register(print, 3 if input() == '1 2' else 7)", "passed", ""),
    ("input()\nprint(3)", "failed", "case 2: line 1 of the output is '3', not '7'"),
    ("print(sum(map(int, input().split())))\nprint(1)", "failed", "case 1: line 2 of the output is '1', not nothing"),
    ("import os\nprint(3)\nos._exit(0)", "failed", "case 1: line 1 of the output is nothing, not '3'"),
    ("print(sum(map(int, input().split())))\nraise SystemExit('no')", "exit", "case 1: SystemExit: no"),
    ("input(), input()", "error", "case 1: EOFError: EOF when reading a line"),
    ("import sys\nsys.stdout.buffer.write(b'\\xff')", "failed", "case 1: line 1 of the output is '\ufffd', not '3'"),
    ("import os\nos.kill(os.getpid(), 11)", "exit", "case 1: killed by signal 11"),
]


@pytest.mark.parametrize("program, outcome, detail", CASES)
def test_programs_that_read_and_print(program, outcome, detail):
    tests = ProgramTests(cases=(("1 2\n", "3\n"), ("3 4\n", "7")))
    found = run_tests(program, tests, LimitsOnly())
    assert (found.outcome, found.detail) == (outcome, detail)


def test_preamble_comes_first_and_tests_see_what_program_and_preamble_define():
    tests = ProgramTests(
        "assert f([1]) == g(1)", (("", "[1]"),), preamble="from typing import List\ndef g(x): return [x]\n"
    )
    assert run_tests("def f(x: List[int]): return x\nprint(g(1))", tests, LimitsOnly()).passed
    assert run_tests("def f(x: Set[int]): return x", tests, LimitsOnly()).outcome == "error"


def test_values_of_the_programs_classes_may_be_compared_with_each_other():
    program = "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef f(x): return [P(x)]\n"
    library = (
        "from collections import Counter\nfrom fractions import Fraction\ndef f(x): return Counter(x), Fraction(x)"
    )
    assert run_tests(program, ProgramTests("assert f(1) == [P(1)]\nassert f(1) != [P(2)]"), LimitsOnly()).passed
    tests = ProgramTests(
        "from fractions import Fraction\nassert f('11')[0] == {'1': 2}\nassert f('1')[1] <= Fraction(1) < 2"
    )
    assert run_tests(library, tests, LimitsOnly()).passed


def test_a_tested_function_may_have_the_name_of_a_builtin():
    assert run_tests("def sum(a, b): return a + b", ProgramTests("assert sum(1, 2) == 3"), LimitsOnly()).passed


def test_order_of_sets_is_the_same_in_every_run():
    program = "print(set(map(str, range(20))))"
    details = {run_tests(program, ProgramTests(cases=(("", "?"),)), LimitsOnly()).detail for _ in range(3)}
    assert len(details) == 1


def test_installed_packages_can_be_imported(isolation):
    program = "import numpy\ndef f(x): return numpy.full(3, x + 1)"
    assert run_tests(program, ProgramTests("assert (f(1) == 2).all()"), isolation).passed


AS_ANOTHER_USER = """
import json, sys
from t3d.sandbox import find_isolation, run_tests
from t3d.types import ProgramTests

isolation = find_isolation(sys.argv[1])
for program, tests, allowed in json.load(sys.stdin):
    found = run_tests(program, ProgramTests(tests), isolation)
    assert found.outcome in allowed, (program, found)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as such a user")
@pytest.mark.parametrize("name", ["bubblewrap", "unshare"])
def test_users_other_than_root(name):
    """The same, by an interpreter that any user can run."""
    chosen = ("fork bomb", "10 GB", "os._exit", "writes to /usr", "kills its parent", "daemon", "patches a module late")
    rows = [[each.program, each.tests.code, sorted(each.outcomes)] for each in HOSTILE if each.name in chosen]
    rows += [[RIGHT, TESTS.code, ["passed"]], [WRONG, TESTS.code, ["failed"]]]
    python = readable_interpreter()
    if python is None:
        pytest.skip("no interpreter that other users can run")
    bundled = finding._bundled_bubblewrap()
    path = ":".join([*([os.path.dirname(bundled)] if bundled else []), "/usr/bin", "/bin"])
    ran = run_as_nobody([python, "-c", AS_ANOTHER_USER, name], input=json.dumps(rows), env={"PATH": path, **STRANGER})
    if "no sandbox for programs works here" in ran.stderr:
        pytest.skip(ran.stderr.strip().rpartition("\n")[2])
    assert ran.returncode == 0, ran.stderr
    assert not [line for line in command_lines() if MARK.encode() in line]


def run_as_nobody(command, **options):
    return subprocess.run(command, cwd="/", text=True, capture_output=True, **NOBODY, **options)


def readable_interpreter():
    """A Python 3.11 or later that another user can start, and that finds this package."""
    check = "import sys, t3d.sandbox; sys.exit(sys.version_info < (3, 11))"
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            if run_as_nobody([python, "-c", check], env=STRANGER).returncode == 0:
                return python
        except OSError:
            continue
    return None


def test_auto_never_takes_limits(monkeypatch):
    monkeypatch.setattr(
        finding, "CANDIDATES", {**finding.CANDIDATES, "bubblewrap": lambda: iter([]), "unshare": broken}
    )
    finding._working.cache_clear()
    try:
        with pytest.raises(
            RequestError, match=r"bubblewrap: not installed; unshare: .*no-such-program.*--sandbox limits"
        ):
            find_isolation()
        assert find_isolation("limits").description == "limits only, no isolation"
    finally:
        finding._working.cache_clear()


def broken():
    return iter([Broken("no-such-program")])


class Broken(LimitsOnly):
    """Its program is not there, or is no sandbox."""

    def __init__(self, *command):
        self._command = list(command)

    def command(self, limits):
        return self._command


def test_a_sandbox_that_fails_is_no_verdict():
    with pytest.raises(WorkError, match="no-such-program: No such file"):
        run_tests(RIGHT, TESTS, Broken("no-such-program"))
    with pytest.raises(WorkError, match="could not run a program: out of order"):
        run_tests(RIGHT, TESTS, Broken(sys.executable, "-c", "raise SystemExit('out of order')"))


@pytest.mark.parametrize("make, message", [
    (lambda: find_isolation("jail"), "unknown sandbox 'jail': choose one of auto, bubblewrap, unshare, limits"),
    (lambda: run_tests(RIGHT, ProgramTests(), LimitsOnly()), "a program needs tests"),
    (lambda: Limits(wall_seconds=0), "wall_seconds must be more than 0, not 0"),
    (lambda: replace(Limits(), wall_seconds=float("nan")), "wall_seconds must be more than 0, not nan"),
])  # fmt: skip
def test_wrong_requests(make, message):
    with pytest.raises(RequestError, match=message):
        make()
