"""Processes that know of each other as torchrun's do, forked from one that has imported everything."""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback


def fork(count, work, mortal=None):
    """Have `count` processes call `work`; if one of them fails, no other is waited for, and this process exits too.

    `mortal` is the rank of a process that `work` kills.
    """
    known = {
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_ports(1)[0],
    }
    os.environ.update({name: str(value) for name, value in known.items()}, ACCELERATE_USE_CPU="true")
    ranks = {}
    for rank in range(count):
        child = os.fork()
        if child == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            _work_and_exit(work)
        ranks[child] = rank
    while ranks:
        child, status = os.wait()
        if ranks.pop(child) != mortal and status != 0:
            for other in ranks:
                os.kill(other, signal.SIGKILL)
            sys.exit(1)


def free_ports(count):
    """Ports of this machine that nobody listens at."""
    listeners = [socket.socket() for _ in range(count)]
    for listener in listeners:
        listener.bind(("127.0.0.1", 0))
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def _work_and_exit(work):
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
