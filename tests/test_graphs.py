"""CUDA graphs are captured one at a time in a process, and not kept for ever; with torch's part played on the CPU."""

import threading
import time
from contextlib import contextmanager

import pytest
import torch

from t3d.engine.continuous import graphs
from t3d.engine.continuous.graphs import Graphs


@pytest.fixture
def device(monkeypatch):
    """What a device would have seen: how many captures were under way together at most, and each that was made."""
    seen = {"together": 0, "most": 0, "modes": set()}

    @contextmanager
    def graph(_, pool, capture_error_mode):
        seen["together"] += 1
        seen["most"] = max(seen["most"], seen["together"])
        seen["modes"].add(capture_error_mode)
        time.sleep(0.005)
        yield
        seen["together"] -= 1

    class CUDAGraph:
        def replay(self):
            pass

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", CUDAGraph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    return seen


def test_threads_capture_one_after_the_other(device):
    def work(number):
        for key in range(5):
            assert owners[number].replay(key, lambda key=key: torch.tensor(key)) == key

    owners = [Graphs(), Graphs()]
    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert device["most"] == 1
    assert device["modes"] == {"thread_local"}  # the other thread may launch work meanwhile


def test_the_graph_used_longest_ago_is_dropped(device, monkeypatch):
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    runs = []
    one = Graphs()
    for key in "abacab":
        one.replay(key, lambda key=key: runs.append(key))
    times = {key: runs.count(key) // 2 for key in "abc"}  # a run before each capture, and the capture
    assert times == {"a": 1, "b": 2, "c": 1}
