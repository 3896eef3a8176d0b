"""A process that compares answers: `python -m t3d.tasks.mathematics.worker CPU_SECONDS MEMORY_BYTES`.

It writes the line READY, then answers each line of JSON with one: {"answer", "reference"} with the fields of a
`Comparison`. It ends with its standard input. A comparison that exceeds the processor time ends it by SIGPROF: the
kernel sends it and nothing handles it, so that it also stops what never returns to Python.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import resource
import signal
import sys

from t3d.tasks.mathematics.compare import compare
from t3d.tasks.mathematics.protocol import READY


def serve(cpu_seconds: float, memory_bytes: int) -> None:
    """Compare what standard input asks for, until it ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no reply
    logging.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    replies.write(READY)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        comparison = compare(**json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(json.dumps(dataclasses.asdict(comparison)) + "\n")


if __name__ == "__main__":
    serve(float(sys.argv[1]), int(sys.argv[2]))
