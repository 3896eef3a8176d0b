"""Processes that a test has started, directly or not."""

import psutil


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def children_of(pid, recursive=False):
    """The ids of those that are there."""
    return [child.pid for child in psutil.Process(pid).children(recursive)]
