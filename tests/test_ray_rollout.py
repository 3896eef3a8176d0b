"""Rolling out by real Ray workers on two nodes: killed workers and lost nodes change no row, and leave no process."""

import logging
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from t3d.cli import run
from t3d.config import PromptConfig
from t3d.errors import RequestError
from t3d.models import load_tokenizer
from t3d.tasks import get_task
from t3d.tasks.prompts import put_questions
from t3d.trajectories import workers
from t3d.types import Decoding, Prompt

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow

NUM_ROWS, ROWS_PER_SHARD = 60, 6
DECODING = Decoding(temperature=1.0, max_new_tokens=48, seed=3)
HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 3}


def words(model, out, *more):
    """The same rollout as a command."""
    size = f"--task story --limit {NUM_ROWS} --rows-per-shard {ROWS_PER_SHARD} --max-new-tokens 48"
    return ["rollout", *size.split(), "--model", str(model), "--out", str(out), *DRAWN, *more]


DRAWN = ["--temperature", "1.0", "--seed", "3", "--device", "cpu"]


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def descendants(pid):
    return {child.pid for child in psutil.Process(pid).children(recursive=True)}


def assert_all_end(pids):
    """A while is given to them."""
    deadline = time.monotonic() + 15
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
    """Kills the first node's worker in the middle of a shard, and then the second node while its worker has one."""

    def __init__(self, nodes):
        self.nodes, (self.second,) = nodes, nodes.worker_nodes
        self.notes, self.pids = [], set()
        self.killed = self.on_lost_node = None

    def __call__(self, note, welcomes):
        self.notes.append((note.what, note.worker, note.shard))
        self.pids |= {welcome.pid for welcome in welcomes.values()}
        if note.what != "given" or self.on_lost_node:
            return
        pid = welcomes[note.worker].pid
        if len(welcomes) < 2:
            time.sleep(2)  # until the other node's worker has started too
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
    assert re.search(r"process \d+ on \S+, its worker process has died; shard", caplog.text)
    for _, worker, shard in lost:
        assert f"worker {worker} was lost: process " in caplog.text
        assert f"shard {shard} will be redone; another worker is started" in caplog.text
    done = [shard for what, _, shard in saboteur.notes if what == "done"]
    assert sorted(done) == list(range(NUM_ROWS // ROWS_PER_SHARD))
    assert summary.num_rows == NUM_ROWS
    assert contents(tmp_path / "out") == contents(whole)
    assert len(saboteur.pids) >= 3
    assert_all_end(saboteur.pids)


def test_ctrl_c_leaves_what_is_finished_and_no_process(model_folder, whole, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "t3d.cli", *words(model_folder, out), "--workers", "ray", "--num-workers", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    begun = set()
    while not list(out.glob("shard-*.parquet")):
        assert process.poll() is None, process.communicate()
        begun |= descendants(process.pid)
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, complaint = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (said, complaint.splitlines()[-1][:16]) == ("", "t3d: interrupted")
    assert "Traceback" not in complaint
    assert len(begun) >= 3
    assert_all_end(begun)
    finished = contents(out)
    assert finished.items() < contents(whole).items()
    assert run([*words(model_folder, out), "--resume"]) == 0  # by one process: the workers' number does not matter
    assert contents(out) == contents(whole)
