"""Ctrl-C, and the signal by which clusters take a machine back, let the running step finish first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTICE = b"\ntrain: stopping after this step (Ctrl-C once more stops at once)\n"


class Stopped(Exception):
    """Somebody asked the run to stop while it did something that may be left half done."""


class Interrupts:
    """Whether somebody asked the run to stop.

    Attributes:
        asked: set by the first signal. A second Ctrl-C raises `KeyboardInterrupt` at once; a second SIGTERM does
            nothing, since clusters send it to every process, and launchers then pass on their own.
    """

    def __init__(self) -> None:
        self.asked = False
        self._process = os.getpid()

    def raise_if_asked(self) -> None:
        """Raises `Stopped` if somebody asked."""
        if self.asked:
            raise Stopped

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if os.getpid() != self._process:
            return  # a worker that prepares batches: it inherits the handler, and the run still needs it
        if self.asked and number == signal.SIGTERM:
            return
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        with suppress(OSError):  # a log on a full disk
            os.write(2, NOTICE)  # print may be in the middle of a line


@contextmanager
def deferred_interrupts() -> Iterator[Interrupts]:
    """Inside, SIGINT and SIGTERM only set `asked`. Outside the main thread Python cannot, and nothing changes."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = {number: signal.signal(number, interrupts) for number in SIGNALS}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
