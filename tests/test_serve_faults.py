"""What clients and operators do to a server, on a small scale; `bench/serving` does it on a large one."""

import asyncio

import pytest
from faults import be_slow, leave, send_malformed, terminate_under_load
from load import make_requests, measure
from malformed import malformed
from served import Served

MODEL = "story-mini"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Servers that share few cores with other tests would else spend their time waiting for their own threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def server():
    with Served("--model", MODEL, "--read-timeout", "2") as served:
        yield served


def test_the_catalogue_is_as_long_as_it_says():
    names = [each.name for each in malformed(MODEL)]
    assert len(names) == len(set(names)) >= 200


def test_malformed_requests_are_refused_and_nothing_else_happens(server):
    found = send_malformed(server, MODEL)
    assert found["failures"] == []
    assert found["requests"] == len(malformed(MODEL))


def test_slow_clients_are_dropped(server, monkeypatch):
    monkeypatch.setattr("faults.READ_TIMEOUT", 2)
    assert asyncio.run(be_slow(server, MODEL, clients=6))["failures"] == []


def test_clients_that_leave_free_their_slots(server):
    found = asyncio.run(leave(server, MODEL, clients=12))
    assert found["failures"] == []
    assert found["left_before_the_end"] == 12


def test_requests_together_are_answered_as_alone(server):
    bodies = make_requests(MODEL, 24, seed=1, longest=40)
    result = asyncio.run(measure(server, bodies, waves=1))
    assert result["alone"]["lost"] == 0, result["alone"]["errors"]
    (wave,) = result["waves"]
    assert (wave["lost"], wave["different"]) == (0, 0), wave


def test_sigterm_lets_requests_finish():
    with Served("--model", MODEL) as served:
        found = asyncio.run(terminate_under_load(served, MODEL, requests=6))
    assert found["failures"] == []
    assert found["exit_code"] == 0
    assert found["outcomes"] == {"whole": 6}
