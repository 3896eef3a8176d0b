"""Programs that do what no program should, each with what has to become of it."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent

import t3d
from t3d.sandbox import Limits
from t3d.types import ProgramTests

RIGHT, WRONG = "def f(x): return x + 1\n", "def f(x): return x\n"
TESTS = ProgramTests("assert f(1) == 2\n")
MATH = ProgramTests("import math\nassert math.isclose(f(1), 2)\n")
ALL = ProgramTests("assert all([f(1) == 2])")
CHECK = ProgramTests("def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(2) == 3\ncheck(f)\n")
MARK = f"1{os.getpid():07d}"
"""Seconds that a daemon sleeps: a number to know it by."""
TOKEN = "T3D_TEST_TOKEN"
"""A variable of the environment that the programs are started in."""
BRIEF = Limits(wall_seconds=1.5)
EQUAL_TO_ALL = "class Any:\n    def __eq__(self, other): return True\n    def __hash__(self): return 1\n"
MAPPING_PROXY = """
class AnyDict(dict):
    def __eq__(self, other): return True
import types
def f(x): return types.MappingProxyType(AnyDict())
"""
USER_LIST = """
import collections
def f(x):
    found = collections.UserList()
    found.data = Any()
    return found
"""
FRACTION = """
import fractions
def f(x):
    found = fractions.Fraction(1)
    found._numerator = Any()
    return found
"""
OBJECT_ARRAY = """
import numpy
def f(x):
    found = numpy.empty(1, object)
    found[0] = Any()
    return found
"""
QUEUE = "__import__('collections').deque([2])"
MANY = "[1000 + i for i in range(200_001)]"
WRAPS = "import functools\nclass One: __eq__ = functools.wraps\ndef f(x): return One()"
HIDDEN_ANCESTORS = """
class Meta(type):
    def mro(cls): return [cls, Any, object]
class One(metaclass=Meta): pass
def f(x): return One()
"""
HIDDEN_MEMBERS = """
class Meta(type):
    __dict__ = property(lambda cls: {})
class One(metaclass=Meta):
    def __eq__(self, other): return True
def f(x): return One()
"""


@dataclass(frozen=True)
class Hostile:
    """A program and the outcomes that it may come to.

    Attributes:
        program: HOST stands for a folder of the host, SITE for its site packages, PORT for a port that the host listens
            on, NAME for an abstract socket that it listens on, ENVIRON for its environment, as bytes.
        outcomes: in an isolation; bare: with limits only, None if it would do harm there.
    """

    name: str
    program: str
    outcomes: frozenset
    bare: frozenset | None
    tests: ProgramTests = TESTS
    limits: Limits = field(default_factory=Limits)

    def allowed(self, isolation):
        return self.bare if isolation == "limits" else self.outcomes


def everywhere(name, outcomes, program, then="", **options):
    """What no isolation is needed against; `then` is code after the trick."""
    words = frozenset(outcomes.split("|"))
    return Hostile(name, dedent(program) + then, words, words, **options)


def isolated(name, outcomes, program, then="", bare=None, **options):
    """What an isolation keeps from happening; `bare` is the outcome without."""
    bare = None if bare is None else frozenset([bare])
    return Hostile(name, dedent(program) + then, frozenset(outcomes.split("|")), bare, **options)


TIME = [
    everywhere("infinite loop", "timeout", "while True: pass", limits=Limits(cpu_seconds=1)),
    everywhere("sleeps", "timeout", "import time\ntime.sleep(60)", limits=BRIEF),
    everywhere("stops itself", "timeout", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", limits=BRIEF),
]

MEMORY_AND_PROCESSES = [
    everywhere("fork bomb", "processes", "import os\nwhile True: os.fork()"),
    everywhere("10 GB", "memory", "x = bytearray(10 * 2**30)"),
    everywhere("10 GB, caught", "passed", "try: x = bytearray(10 * 2**30)\nexcept MemoryError: pass\n", RIGHT),
    everywhere(
        "many children allocate",
        "memory",
        """
        import os, time
        for _ in range(6):
            if os.fork() == 0:
                x = bytearray(b"1") * (60 * 2**20)
                time.sleep(60)
        time.sleep(60)
        """,
        limits=Limits(memory_bytes=256 * 2**20),
    ),
    everywhere("recursion", "error", "def f(x): return f(x)"),
    everywhere("segmentation fault", "exit", "import ctypes\nctypes.string_at(0)"),
    everywhere(
        "threads",
        "passed",
        """
        import threading
        for _ in range(8): threading.Thread(target=sum, args=([],)).start()
        """,
        RIGHT,
    ),
]

FILES = [
    isolated("writes to /usr", "error", "open('/usr/t3d-was-here', 'w')"),
    isolated("writes to site packages", "error", "open('SITE/t3d_was_here.py', 'w')"),
    isolated(
        "writes to the host's /tmp",
        "passed",  # in a /tmp of its own
        """
        import os
        os.makedirs("HOST", exist_ok=True)
        open("HOST/t3d-was-here", "w").write("!")
        """,
        RIGHT,
    ),
    isolated("reads the user's files", "error", "open('HOST/secret').read()\n", RIGHT, bare="passed"),
    isolated("reads this repository", "error", f"open({t3d.__file__!r}).read()\n", RIGHT, bare="passed"),
    isolated("reads the home folder", "error", f"open({str(Path.home() / '.profile')!r}).read()"),
    everywhere(
        "1 GB file",
        "error",
        """
        with open("big", "wb") as file:
            for _ in range(1024): file.write(bytes(2**20))
        """,
    ),
    isolated(
        "many big files",
        "error",
        "for i in range(8): open(f'{i}', 'wb').write(bytes(2**20))\n",
        RIGHT,
        bare="passed",
        limits=Limits(directory_bytes=4 * 2**20),
    ),
    isolated(
        "big files in /dev/shm",
        "error",
        "for i in range(8): open(f'/dev/shm/{i}', 'wb').write(bytes(2**20))",
        limits=Limits(directory_bytes=4 * 2**20),
    ),
    everywhere("10,000 files", "error", "files = [open('/dev/null') for _ in range(10_000)]"),
]

SECRETS = [
    isolated(
        "environments of all processes",
        "failed",
        """
        import os
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try: found.append(open(f"/proc/{pid}/environ", "rb").read())
            except OSError: pass
        def f(x): return 2 if ENVIRON in found else 0
        """,
        bare="passed",
    ),
    everywhere(
        "its own environment",
        "failed",
        f"import os\ndef f(x): return 2 if {TOKEN!r} in os.environ else 0",
    ),
    isolated(
        "connects to the host",
        "error",
        "import socket\nsocket.create_connection(('127.0.0.1', PORT), 5)\n",
        RIGHT,
        bare="passed",
    ),
    isolated(
        "connects to an abstract socket",
        "error",
        "import socket\nsocket.socket(socket.AF_UNIX).connect('\\0NAME')\n",
        RIGHT,
        bare="passed",
    ),
]

UNSHARE = """
import ctypes
if ctypes.CDLL(None).unshare(0x10000000): raise OSError("no user namespace")
"""
SYSCALL = """
import ctypes, platform
number = dict(zip(("x86_64", "aarch64"), {numbers}))[platform.machine()]
if ctypes.CDLL(None).syscall(number, {arguments}) < 0: raise OSError("refused")
"""
AROUND_NAMESPACES = [
    isolated("socket to a virtual machine's host", "error", "import socket\nsocket.socket(socket.AF_VSOCK)"),
    isolated("memory of no process", "error", "import os\nos.memfd_create('x')\n", RIGHT, bare="passed"),
    isolated("namespace of its own", "error", UNSHARE),
    isolated("clone into a namespace", "error", SYSCALL.format(numbers=(56, 220), arguments="0x10000011, 0, 0, 0, 0")),
    isolated("the user's keyring", "error", SYSCALL.format(numbers=(250, 219), arguments="0, -3, 1")),
    everywhere("starts processes", "passed", "import subprocess\nsubprocess.run(['/bin/true'], check=True)\n", RIGHT),
]

LEAVING = [
    everywhere("os._exit", "exit", "import os\nos._exit(0)"),
    everywhere("sys.exit", "exit", "import sys\nsys.exit(0)"),
    everywhere("os._exit in the function", "exit", "import os\ndef f(x): os._exit(0)"),
    everywhere("SystemExit in the function", "exit", "def f(x): raise SystemExit(0)"),
    everywhere(
        "os._exit in a thread",
        "exit",
        """
        import os, threading, time
        threading.Thread(target=os._exit, args=(0,)).start()
        time.sleep(60)
        """,
    ),
    everywhere("os._exit at exit", "failed", "import atexit, os\natexit.register(os._exit, 0)\n", WRONG),
    everywhere("kills itself", "exit", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"),
    everywhere(
        "kills its parent", "error|failed|exit", "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n", WRONG
    ),
    everywhere("leaves a child to pass", "exit", "import os\nif os.fork(): os._exit(0)\n", RIGHT),
    everywhere("forks and fails twice", "failed", "import os\nos.fork()\n", WRONG),
]

OUTPUT = [
    everywhere("prints 1 GB", "output", "import sys\nfor _ in range(1024): sys.stdout.write('x' * 2**20)"),
    everywhere("prints 1 GB to stderr", "output", "import os\nwhile True: os.write(2, bytes(2**16))"),
    everywhere("prints a verdict", "failed", "print('passed', flush=True)\n", WRONG),
    everywhere(
        "writes a verdict everywhere",
        "tampered",
        f"""
        import os
        for fd in range(64):
            try: os.write(fd, b"{"0" * 32} passed \\n")
            except OSError: pass
        """,
        WRONG,
    ),
    everywhere("closes everything", "exit", "import os\nos.closerange(0, 1000)\n", RIGHT),
    everywhere(
        "opens its verdict anew",
        "error",
        """
        import os
        files = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        for file in filter(os.path.lexists, files):
            if os.readlink(file).startswith("socket"): open(file, "rb")
        """,
        RIGHT,
    ),
    everywhere("huge message", "error", "raise ValueError('x' * 10**7)"),
    everywhere(
        "message that raises", "error", "class E(Exception):\n    def __str__(self): raise SystemExit(0)\nraise E"
    ),
]

NO_PROGRAMS = [
    everywhere("syntax error", "error", "def f(x) return"),
    everywhere("null byte", "error", f"{RIGHT}\0"),
    everywhere("half a surrogate pair", "error", f"{RIGHT}# \ud800"),
]

BENDING = [
    everywhere("patches builtins", "failed", "import builtins\nbuiltins.all = lambda x: True\n", WRONG, tests=ALL),
    everywhere("hides builtins", "failed", "all = lambda x: True\n", WRONG, tests=ALL),
    everywhere("patches AssertionError", "failed", "import builtins\nbuiltins.AssertionError = SystemExit\n", WRONG),
    everywhere("patches a module", "failed", "import math\nmath.isclose = lambda *a: True\n", WRONG, tests=MATH),
    everywhere(
        "replaces a module",
        "failed",
        """
        import sys, types
        sys.modules["math"] = types.SimpleNamespace(isclose=lambda *a: True)
        """,
        WRONG,
        tests=MATH,
    ),
    everywhere(
        "patches a module late",
        "tampered",
        """
        def f(x):
            import math
            math.isclose = lambda *a: True
            return 2
        """,
        tests=MATH,
    ),
    everywhere(
        "replaces a module late",
        "tampered",
        """
        def f(x):
            import sys
            sys.modules["math"] = 0
            return 2
        """,
        tests=MATH,
    ),
    everywhere(
        "patches builtins late",
        "tampered",
        """
        def f(x):
            import builtins
            builtins.all = lambda x: True
            return 2
        """,
    ),
    everywhere("defines check", "failed", "def check(candidate): pass\n", WRONG, tests=CHECK),
    everywhere(
        "defines check late",
        "failed",
        """
        def f(x):
            globals()["check"] = lambda candidate: None
            return 2
        """,
        tests=CHECK,
    ),
    everywhere("equal to everything", "tampered", EQUAL_TO_ALL, "def f(x): return Any()"),
    everywhere(
        "items equal to everything",
        "tampered",
        EQUAL_TO_ALL,
        "def f(x): return [(Any(),)]",
        tests=ProgramTests("assert f(1) == [(2,)]"),
    ),
    everywhere(
        "number equal to everything",
        "tampered",
        "class N(int):\n    def __eq__(self, other): return True\ndef f(x): return N()",
    ),
    everywhere(
        "among everything",
        "tampered",
        EQUAL_TO_ALL,
        "def f(x): return Any()",
        tests=ProgramTests("assert f(1) in [2, 3]"),
    ),
    everywhere("mock.ANY", "tampered", "from unittest.mock import ANY\ndef f(x): return ANY"),
    everywhere(
        "less than everything",
        "tampered",
        """
        class L:
            def __abs__(self): return self
            def __sub__(self, other): return self
            def __lt__(self, other): return True
        def f(x): return L()
        """,
        tests=ProgramTests("assert abs(f(1) - 2) < 1e-6"),
    ),
    *(
        everywhere(
            f"equal by {name}", "tampered", EQUAL_TO_ALL, program, tests=ProgramTests(f"assert f(1) == {wanted}")
        )
        for name, program, wanted in (
            ("a weak proxy", "import weakref\nkept = Any()\ndef f(x): return weakref.proxy(kept)", "2"),
            ("a dict that is seen through", MAPPING_PROXY, "{1: 2}"),
            ("what a list of the library holds", USER_LIST, "[2]"),
            ("what a number of the library holds", FRACTION, "2"),
            ("an item of an array", OBJECT_ARRAY, "2"),
            ("an item of a queue", "import collections\ndef f(x): return collections.deque([Any()])", QUEUE),
            ("an item of very many", f"def f(x): return [Any()] + {MANY}", f"[2] + {MANY}"),
            ("a function of C", "class One: __eq__ = id\ndef f(x): return One()", "2"),
            ("unequal's method", "class N(int): __eq__ = int.__ne__\ndef f(x): return N(9)", "2"),
            ("a function of the library", WRAPS, "2"),
            ("hidden ancestors", HIDDEN_ANCESTORS, "2"),
            ("hidden members", HIDDEN_MEMBERS, "2"),
        )
    ),
    everywhere(
        "differs from everything by 0",
        "tampered",
        "class Near:\n    def __sub__(self, other): return 0\ndef f(x): return Near()",
        tests=ProgramTests("assert abs(f(1) - 2) < 1e-6"),
    ),
    everywhere(
        "patches what compares",
        "error",
        """
        import sys
        sys.modules["t3d.sandbox.inside.comparisons"].COMPARISONS["Eq"] = lambda left, right: True
        """,
        WRONG,
    ),
    everywhere("traces", "exit|failed", "import sys\nsys.settrace(lambda *a: sys.exit(0))\n", WRONG),
]

LEFT_BEHIND = [
    everywhere(
        "daemon",
        "passed",
        f"""
        import os
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0: os.execv("/usr/bin/sleep", ["sleep", "{MARK}"])
            os._exit(0)
        os.wait()
        """,
        RIGHT,
    ),
    everywhere(
        "daemon that holds its pipes",
        "passed",
        """
        import os, time
        if os.fork() == 0:
            os.setsid()
            time.sleep(60)
        """,
        RIGHT,
    ),
]

HOSTILE = [
    *TIME,
    *MEMORY_AND_PROCESSES,
    *FILES,
    *SECRETS,
    *AROUND_NAMESPACES,
    *LEAVING,
    *OUTPUT,
    *NO_PROGRAMS,
    *BENDING,
    *LEFT_BEHIND,
]
