"""Ray workers, without Ray: what they run on, and what a crew makes of what Ray says of them."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from test_trajectories import META

from t3d.errors import RequestError
from t3d.trajectories.work import WorkList
from t3d.trajectories.workers import Cluster, EngineSpec, ray_crew
from t3d.trajectories.workers.dealing import Done, Lost, Ready
from t3d.trajectories.workers.ray_crew import RayCrew
from t3d.trajectories.workers.worker import Job, Welcome
from t3d.types import Decoding


class RayError(Exception):
    """Whatever Ray says of a call that did not return."""

    def __init__(self, message="", cause=None):
        super().__init__(message)
        self.cause = cause


class FakeRay:
    """A cluster whose calls end as a test says: `outcomes` are what they return or raise, by worker and method.

    A reference is (worker, method); what has no outcome is not over yet.
    """

    def __init__(self, **offered):
        self.offered, self.num_workers = offered, 0
        self.asked = None
        self.outcomes = {}
        self.killed = []
        self.exceptions = SimpleNamespace(RayError=RayError)

    def is_initialized(self):
        return True

    def cluster_resources(self):
        return self.offered

    def put(self, value):
        return value

    def remote(self, **resources):
        self.asked = {name: resources[name] for name in ("num_gpus", "num_cpus") if name in resources}
        return lambda actor_class: SimpleNamespace(remote=self._hire)

    def _hire(self):
        worker, self.num_workers = self.num_workers, self.num_workers + 1
        methods = {
            name: SimpleNamespace(remote=lambda *_, name=name: (worker, name))
            for name in ("start", "is_there", "decode")
        }
        return SimpleNamespace(worker=worker, **methods)

    def wait(self, references, num_returns=1, timeout=None):
        ready = [each for each in references if each in self.outcomes]
        return ready[:num_returns], []

    def get(self, reference):
        outcome = self.outcomes.pop(reference)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def kill(self, actor):
        self.killed.append(actor.worker)


def a_crew(monkeypatch, ray, device=None, **cluster):
    monkeypatch.setattr(ray_crew, "import_ray", lambda local: ray)
    job = Job(EngineSpec("some/model", device=device), Decoding(), "some/model", None, num_threads=1)
    return RayCrew(job, WorkList([[], []], "f00d"), Cluster(**cluster))


# What they run on


@pytest.mark.parametrize(
    "offered, device, cluster, asked, num_workers",
    [
        ({"GPU": 8, "CPU": 64}, None, {}, {"num_gpus": 1, "num_cpus": 1}, 8),
        ({"GPU": 8, "CPU": 4}, "cuda", {}, {"num_gpus": 1, "num_cpus": 1}, 4),
        ({"GPU": 8, "CPU": 64}, "cpu", {"cpus_per_worker": 10}, {"num_cpus": 10}, 6),
        ({"CPU": 4}, None, {"num_workers": 3}, {"num_cpus": 1}, 3),
        ({"CPU": 4}, "cuda", {"num_workers": 3}, {"num_gpus": 1, "num_cpus": 1}, 3),  # machines with GPUs are to join
    ],
)
def test_a_worker_takes_a_gpu_or_cores(monkeypatch, offered, device, cluster, asked, num_workers):
    ray = FakeRay(**offered)
    assert a_crew(monkeypatch, ray, device, **cluster).num_workers == num_workers
    assert ray.asked == asked


def test_a_cluster_without_what_is_asked_for_is_refused(monkeypatch):
    for device in ("cuda", "cuda:0"):
        with pytest.raises(RequestError, match=rf"--device {device}: the Ray cluster has no GPU; .* --num-workers"):
            a_crew(monkeypatch, FakeRay(CPU=4), device)
    with pytest.raises(RequestError, match="--cpus-per-worker 8: the cluster has 4 cores"):
        a_crew(monkeypatch, FakeRay(CPU=4), "cpu", cpus_per_worker=8)


def test_decoding_on_the_cpu_by_default_is_said(monkeypatch, caplog):
    a_crew(monkeypatch, FakeRay(CPU=4), "cpu")
    a_crew(monkeypatch, FakeRay(GPU=1, CPU=4))
    assert caplog.text == ""
    a_crew(monkeypatch, FakeRay(CPU=4))
    assert "the Ray cluster has no GPU: workers decode on CPU cores" in caplog.text


# What Ray says of them


def started(monkeypatch, count):
    """A crew of so many workers that are ready, and its cluster."""
    ray = FakeRay(CPU=count)
    crew = a_crew(monkeypatch, ray, "cpu")
    for number in range(count):
        assert crew.hire() == number
        ray.outcomes[number, "start"] = Welcome("node", 100 + number, META)
        assert isinstance(crew.wait(1), Ready)
    return crew, ray


def test_a_worker_that_died_before_it_was_given_a_shard_had_not_begun_it(monkeypatch):
    crew, ray = started(monkeypatch, 3)
    dead = RayError("The actor is dead because its worker process has died. Advice.")
    answers = [True, dead]  # the third one's never came
    for worker in range(3):
        crew.give(worker, 0)
        if worker < 2:
            ray.outcomes[worker, "is_there"] = answers[worker]
        ray.outcomes[worker, "decode"] = dead
        reason = f"process {100 + worker} on node, its worker process has died"
        assert crew.wait(1) == Lost(worker, reason, had_begun=worker == 0)
    assert ray.killed == [0, 1, 2]


def test_a_wrong_request_is_raised_at_first_and_later_costs_the_worker_that_says_so(monkeypatch):
    wrong = RayError("long text", cause=RequestError("no such model (on node-7)"))
    crew, ray = started(monkeypatch, 1)
    late = crew.hire()
    ray.outcomes[late, "start"] = wrong
    with pytest.raises(RequestError, match=r"^no such model \(on node-7\)$"):
        crew.wait(1)

    crew, ray = started(monkeypatch, 1)
    crew.give(0, 0)
    ray.outcomes[0, "decode"] = "rows"
    assert crew.wait(1) == Done(0, "rows")
    late = crew.hire()
    ray.outcomes[late, "start"] = wrong
    assert crew.wait(1) == Lost(late, "RequestError: no such model (on node-7)", had_begun=False)


def test_a_worker_with_another_model_is_not_taken(monkeypatch):
    other = Welcome("node-2", 7, replace(META, revision="beef"))
    named = "process 7 on node-2 has revision 'beef', process 100 on node has None"
    crew, ray = started(monkeypatch, 1)
    late = crew.hire()
    ray.outcomes[late, "start"] = other
    with pytest.raises(RequestError, match=named):
        crew.wait(1)

    crew, ray = started(monkeypatch, 1)
    crew.give(0, 0)
    ray.outcomes[0, "decode"] = "rows"
    crew.wait(1)
    late = crew.hire()
    ray.outcomes[late, "start"] = other
    lost = crew.wait(1)
    assert isinstance(lost, Lost)
    assert lost.reason.startswith(named)
    assert list(crew.welcomes) == [0]
    assert ray.killed == [late]
