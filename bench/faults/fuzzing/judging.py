"""One case after another: whether each returns or is refused in one line, in time, in memory, and runs nothing."""

from __future__ import annotations

import faulthandler
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from t3d.errors import RequestError, WorkError

SECONDS_A_CASE = 2.0
"""Of computing: other processes on the machine do not count."""
SECONDS_TO_DEATH = 60.0
"""What hangs outside of Python hears no alarm: then the process ends, and with it this target."""
LONGEST_MESSAGE = 500
MOST_GROWTH_MIB = 1024
ADDRESS_SPACE = 24 * 2**30
RUNS_CODE = frozenset(
    [
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.fork",
        "subprocess.Popen",
        "pickle.find_class",
        "socket.connect",
        "urllib.Request",
    ]
)
"""Events of the interpreter that no reader of data may cause."""


class TooSlow(BaseException):
    """A case took too long; no `except Exception` may swallow this."""


class Judge:
    """Runs cases and keeps what was wrong with them, once for each place in the code.

    Args:
        folder: for the first case of each finding.
        mentions: every refusal holds one of these; empty asks for nothing.
    """

    def __init__(self, folder: Path, mentions: tuple[str, ...] = ()) -> None:
        self.outcomes: Counter[str] = Counter()
        self.findings: dict[str, dict[str, Any]] = {}
        self.slowest = 0.0
        self._folder, self._mentions = folder, mentions
        self._is_running, self._events = False, []
        sys.addaudithook(self._on_event)
        signal.signal(signal.SIGPROF, self._on_alarm)

    def case(self, run: Callable[[], None], shown: Callable[[], str]) -> None:
        """Judge one case.

        Args:
            run: the readers under test.
            shown: the case for people, asked for where it is at fault.
        """
        before, started = _peak_mib(), time.process_time()
        faulthandler.dump_traceback_later(SECONDS_TO_DEATH, exit=True)
        signal.setitimer(signal.ITIMER_PROF, SECONDS_A_CASE)
        self._events, self._is_running = [], True
        try:
            run()
            outcome, fault = "returned", None
        except (RequestError, WorkError) as error:
            outcome, fault = "refused", self._fault_of(str(error))
        except TooSlow as error:
            outcome, fault = "hung", f"hung at {_place(error)}"
        except BaseException as error:
            outcome, fault = "crashed", f"{type(error).__name__} at {_place(error)}: {str(error)[:100]}"
        finally:
            self._is_running = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()
        self.slowest = max(self.slowest, time.process_time() - started)
        self.outcomes[outcome] += 1
        growth = _peak_mib() - before
        for found in (
            fault,
            self._events and f"ran {self._events[0]}",
            growth > MOST_GROWTH_MIB and f"{growth:.0f} MiB",
        ):
            if found:
                self._keep(str(found), shown())

    def report(self) -> dict[str, Any]:
        """Counts and findings."""
        return {
            "cases": self.outcomes.total(),
            "outcomes": dict(self.outcomes),
            "slowest_seconds": round(self.slowest, 3),
            "findings": [{"what": what, **each} for what, each in self.findings.items()],
        }

    def _fault_of(self, message: str) -> str | None:
        if "\n" in message or not message.isprintable():
            return f"message of several lines or of unprintable characters: {message[:80]!r}"
        if len(message) > LONGEST_MESSAGE:
            return f"message of {len(message)} characters: {message[:80]}"
        if self._mentions and not any(each in message for each in self._mentions):
            return f"message that names nothing: {message[:80]}"
        return None

    def _keep(self, what: str, shown: str) -> None:
        key = what.split(": ")[0] if what.startswith("message") else what.split(": ")[0][:160]
        if key in self.findings:
            self.findings[key]["times"] += 1
            return
        self.findings[key] = {"times": 1, "first": what[:300]}
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"finding-{len(self.findings)}.txt").write_text(f"{what}\n\n{shown}", errors="backslashreplace")

    def _on_alarm(self, number: int, frame: Any) -> None:
        if self._is_running:
            raise TooSlow

    def _on_event(self, event: str, arguments: tuple) -> None:
        if self._is_running and event in RUNS_CODE:
            self._events.append(f"{event}{arguments!r}"[:200])


def _place(error: BaseException) -> str:
    """The innermost line of ours, else of anybody's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/t3d/" in frame.filename] or frames
    return " < ".join(f"{Path(frame.filename).name}:{frame.name}" for frame in (frames[-1], own[-1]))


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def limit_memory() -> None:
    """An allocation of terabytes shall fail here, and not take the machine with it."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
