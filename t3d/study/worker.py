"""A process that does a study's jobs: `python -m t3d.study.worker`.

It answers each line of JSON on standard input (`Request`) with one: {"error": null, or why the job failed}. It ends
with its standard input, in the middle of a job too: a study that was killed leaves nobody behind who writes into its
folder. What libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from queue import SimpleQueue

from t3d.credentials import print_traceback, without_secrets
from t3d.study.jobs import Request, do


def serve() -> None:
    """Do what standard input asks for."""
    replies, incoming = os.fdopen(os.dup(1), "w", buffering=1), os.dup(0)
    os.dup2(2, 1)  # what libraries print is no reply
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    requests: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(incoming, requests), daemon=True).start()
    try:
        while True:
            error = _error_of(requests.get())
            replies.write(json.dumps({"error": error}) + "\n")
    except KeyboardInterrupt:  # a training was asked to stop, and wrote its checkpoint
        os._exit(130)  # an orderly end would wait for the thread, which waits for requests


def _error_of(line: bytes) -> str | None:
    """Do a job; what is wrong with it in one line."""
    try:
        do(Request.model_validate_json(line).job)
    except Exception as error:
        print_traceback(type(error), error, error.__traceback__)
        return " ".join(without_secrets(f"{error}").split()) or type(error).__name__
    return None


def _listen(incoming: int, requests: SimpleQueue[bytes]) -> None:
    """Take requests in; when nobody can send any more, end this process and those that it started.

    Not through `sys.stdin`: a thread that waits in it holds its lock, and the processes that prepare batches are forked
    with that lock held and close it first thing, which would take for ever.
    """
    unread = b""
    while received := os.read(incoming, 65_536):
        *lines, unread = (unread + received).split(b"\n")
        for line in lines:
            requests.put(line)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    serve()
