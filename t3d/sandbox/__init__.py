"""Programs that models wrote, run where they can do no harm.

Two things are kept apart:

**The machine** is protected from whatever a program does, by namespaces: it sees the system's libraries and the
interpreter, read-only, an empty folder of limited size, no network, no process but its own, no environment; and it
runs as a user that owns nothing. What it starts ends with it. System calls that lead around this (sockets outside of
the network namespace, keyrings, namespaces of its own, memory that belongs to no process) are refused. The isolation
"limits" gives little of this (a program may do whatever the user may, end the user's processes included), and is used
only when asked for by name.

**The verdict** resists the ways in which programs are known to pass without being right: leaving early by any exit,
printing or writing what looks like a verdict, closing its file descriptors, patching builtins, modules or functions
that the tests use, values that claim to equal everything, forking. It does not resist a program that was written
against this package and walks the interpreter's frames: program and tests share a process. Cases of input and output
have no such gap, for the expected output stays outside.
"""

from t3d.sandbox.finding import find_isolation, require_known
from t3d.sandbox.isolation import Isolation
from t3d.sandbox.limits import Limits
from t3d.sandbox.running import ProgramOutcome, run_tests

__all__ = ["Isolation", "Limits", "ProgramOutcome", "find_isolation", "require_known", "run_tests"]
