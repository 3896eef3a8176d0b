"""Scalars as TensorBoard reads them: an event file, to which records are appended one after another."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VERSION = "brain.Event:2"


class EventFile:
    """The records of one part of a run, in a file of their own beside those of earlier parts.

    What `log` was given is in the file when it returns. torch's `SummaryWriter` leaves the writing to a thread, of
    which a full disk is heard at some later call, as a traceback on stderr, or never.

    Args:
        folder: that TensorBoard is pointed to.
        hides_from: events of earlier parts are hidden from this step on.
    """

    def __init__(self, folder: Path, hides_from: int) -> None:
        second, nanosecond = divmod(time.time_ns(), 10**9)  # files are read in the order of their names
        name = f"events.out.tfevents.{second:010d}.{nanosecond:09d}.{socket.gethostname()}.{os.getpid()}"
        self._file, self._hides_from = folder / name, hides_from

    def start(self) -> None:
        """Begin the file; its folder is made.

        Raises:
            OSError: the disk refuses.
        """
        from tensorboard.compat.proto.event_pb2 import SessionLog  # type: ignore[import-untyped]

        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._append(file_version=VERSION)
        self._append(step=self._hides_from, session_log=SessionLog(status=SessionLog.START))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Append scalars of a step, by name.

        Raises:
            OSError: the disk refuses.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._append(step=step, summary=Summary(value=scalars))

    def finish(self) -> None:
        """Nothing is held back."""

    def _append(self, **fields: Any) -> None:
        """One record: an event that happens now."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **fields).SerializeToString())
        with self._file.open("ab") as file:  # not held open: closing it would fail a second time
            file.write(record.getvalue())
