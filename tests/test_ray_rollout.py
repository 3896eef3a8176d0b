"""Rolling out by real Ray workers on two nodes: killed workers and lost nodes change no row, and leave no process."""

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
from processes import children_of, is_alive

from t3d.cli import run
from t3d.config import PromptConfig
from t3d.errors import RequestError
from t3d.models import load_tokenizer
from t3d.tasks import get_task
from t3d.tasks.prompts import put_questions
from t3d.trajectories import state_of, workers
from t3d.types import Decoding, Prompt

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow

NUM_ROWS, ROWS_PER_SHARD = 60, 6
DECODING = Decoding(temperature=1.0, max_new_tokens=48, seed=3)
HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 3}


def words(model, out, *more, limit=NUM_ROWS):
    """The same rollout as a command."""
    size = f"--task story --limit {limit} --rows-per-shard {ROWS_PER_SHARD} --max-new-tokens 48"
    return ["rollout", *size.split(), "--model", str(model), "--out", str(out), *DRAWN, *more]


DRAWN = ["--temperature", "1.0", "--seed", "3", "--device", "cpu"]


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def descendants(pid):
    return set(children_of(pid, recursive=True))


def assert_all_end(pids):
    """A while is given to them."""
    deadline = time.monotonic() + 60
    while (left := [pid for pid in pids if is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each; this process is connected. In the end no process of theirs is left."""
    from ray.cluster_utils import Cluster

    before = descendants(os.getpid())
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": HEALTH}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False, logging_level=logging.ERROR)
    yield nodes
    begun = descendants(os.getpid()) - before
    ray.shutdown()
    nodes.shutdown()
    assert_all_end(begun)


@pytest.fixture(scope="module")
def whole(model_folder, tmp_path_factory):
    """What one process writes: ten shards."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert run(words(model_folder, folder)) == 0
    return folder


def roll_out(model, out, prompts=None, **more):
    """The same rollout by the workers of the cluster that this process is connected to."""
    tokenizer = load_tokenizer(model)
    task = get_task("story")
    questions = put_questions(task, task.problems("train", NUM_ROWS, DECODING.seed), PromptConfig(), tokenizer)
    return workers.rollout_by_ray(
        workers.EngineSpec(str(model), device="cpu"),
        tokenizer,
        prompts or questions.prompts,
        DECODING,
        out,
        cluster=workers.Cluster(),
        model_name=str(model),
        form=questions.form,
        rows_per_shard=ROWS_PER_SHARD,
        **more,
    )


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_written(cluster, model_folder, tmp_path):
    prompts = [Prompt("good", "1 + 1?"), Prompt("long", "1" * 250)]
    with pytest.raises(RequestError, match=r"prompt 1 .* exceeds the model's 256 positions"):
        roll_out(model_folder, tmp_path / "out", prompts)
    assert not (tmp_path / "out").exists()


class Saboteur:
    """Kills the first node's worker in the middle of a shard, and then the second node while its worker has one.

    Whoever is ready first is stopped with its first shard in hand until the other one is ready too.
    """

    def __init__(self, nodes):
        self.nodes, (self.second,) = nodes, nodes.worker_nodes
        self.notes, self.pids, self.stopped = [], set(), None
        self.killed = self.on_lost_node = None

    def __call__(self, note, welcomes):
        self.notes.append((note.what, note.worker, note.shard))
        self.pids |= {welcome.pid for welcome in welcomes.values()}
        if note.what == "ready" and self.stopped:
            os.kill(self.stopped, signal.SIGCONT)
            self.stopped = None
        if note.what != "given" or self.on_lost_node:
            return
        pid = welcomes[note.worker].pid
        if len(welcomes) < 2:
            os.kill(pid, signal.SIGSTOP)
            self.stopped = pid
        elif self.killed is None and not is_child(pid, self.second):
            time.sleep(0.05)
            os.kill(pid, signal.SIGKILL)
            self.killed = note
        elif self.killed and is_child(pid, self.second):
            time.sleep(0.05)
            self.nodes.remove_node(self.second, allow_graceful=False)
            self.on_lost_node = note


def is_child(pid, node):
    """Whether a process was started by a node."""
    (raylet,) = node.all_processes["raylet"]
    return is_alive(pid) and psutil.Process(pid).ppid() == raylet.process.pid


def test_a_killed_worker_and_a_lost_node_cost_nothing(cluster, model_folder, whole, tmp_path, caplog):
    saboteur = Saboteur(cluster)
    summary = roll_out(model_folder, tmp_path / "out", watch=saboteur)
    lost = [note for note in saboteur.notes if note[0] == "lost"]
    assert [worker for _, worker, _ in lost] == [saboteur.killed.worker, saboteur.on_lost_node.worker]
    assert None not in [shard for *_, shard in lost]  # the one it had, or the next if it was quick
    for _, worker, shard in lost:
        assert re.search(rf"worker {worker} was lost: process \d+ on \S+, it", caplog.text)
        assert f"shard {shard} will be redone; another worker is started" in caplog.text
    done = [shard for what, _, shard in saboteur.notes if what == "done"]
    assert sorted(done) == list(range(NUM_ROWS // ROWS_PER_SHARD))
    assert summary.num_rows == NUM_ROWS
    assert contents(tmp_path / "out") == contents(whole)
    assert len(saboteur.pids) >= 3
    assert_all_end(saboteur.pids)


def listening(pids):
    """The addresses that processes take connections at."""
    found = set()
    for pid in pids:
        with contextlib.suppress(psutil.Error):  # it has just ended, or is another user's
            connections = psutil.Process(pid).net_connections()
            found |= {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}
    return found


def interrupted(command, environment, folder):
    """Run a command until a shard is in its folder, and press Ctrl-C.

    Returns the process, what it printed, all that it had started, and the addresses that these listened at.
    """
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    begun, deadline = set(), time.monotonic() + 200
    try:
        while not list(folder.glob("shard-*.parquet")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            begun |= descendants(process.pid)
            time.sleep(0.1)
        addresses = listening([process.pid, *begun])
        process.send_signal(signal.SIGINT)
        return process, *process.communicate(timeout=100), begun, addresses
    finally:
        process.kill()
        process.wait()


def test_ctrl_c_leaves_what_is_finished_and_no_process(model_folder, whole, tmp_path):
    """In the middle of a long rollout, whose first rows are those of the short one."""
    out, limit = tmp_path / "out", 20 * NUM_ROWS
    long = words(model_folder, out, limit=limit)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("RAY_ADDRESS", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "t3d.cli", *long, "--workers", "ray", "--num-workers", "1"]
    process, said, complaint, begun, addresses = interrupted(command, environment, out)
    assert process.returncode == 130
    assert "answers" not in said
    assert "t3d: interrupted; what is finished is on disk" in complaint
    assert "Traceback" not in complaint
    assert len(begun) >= 3
    assert_all_end(begun)
    assert addresses
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1"}  # nobody else can reach a Ray that was started here
    finished = state_of(out)
    assert 0 < finished.num_finished < finished.num_shards == limit // ROWS_PER_SHARD
    last = f"{finished.num_shards - 1}/{finished.num_shards}"
    assert run([*long, "--resume", "--shard", last]) == 0  # by one process: the workers' number does not matter
    assert state_of(out).num_finished == finished.num_finished + 1
    short = contents(whole)
    shards = [file for file in out.glob("shard-*.parquet") if file.name in short]
    assert shards
    assert all(file.read_bytes() == short[file.name] for file in shards)
