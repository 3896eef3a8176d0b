"""What processes that hold one model together do in the tests, and how they are started; see test_sharded.py.

python sharded_runs.py GROUPS.json
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from forking import fork, free_ports

import t3d.evaluation
import t3d.trajectories  # noqa: F401  like all above: imported here, once for all processes
from t3d.cli import run
from t3d.engine import Engine
from t3d.engine.sampling import Candidates
from t3d.engine.sharded.agreeing import agreed_candidates, agreed_limit
from t3d.engine.sharded.backend import shared_engine
from t3d.engine.sharded.replica import Replica
from t3d.errors import WorkError
from t3d.models import experts, model_fingerprint, own_config
from t3d.models.sharding import Sharding
from t3d.types import Decoding

LONGEST = 400
"""Seconds of all groups together."""
PROMPTS = [[2 + (7 * place + offset) % 27 for offset in range(length)] for place, length in enumerate((3, 8, 1, 13, 6))]
SETTINGS = (
    Decoding(max_new_tokens=13, temperature=0.0, steps_per_block=2),
    Decoding(max_new_tokens=12, temperature=1.0, top_k=9, seed=5),
    Decoding(max_new_tokens=12, temperature=0.7, rule="low_confidence_dynamic", threshold=0.5),
    Decoding(max_new_tokens=12, temperature=0.3, rule="entropy_bounded", entropy_bound=0.9),
    Decoding(max_new_tokens=12, temperature=1.0, top_p=0.8, rule="sequential", seed=6),
)
LONG = (Decoding(max_new_tokens=150, temperature=1.0, steps_per_block=1),) * 5
BACKENDS = ("plain", "continuous")
PAGES = (9, 7)
"""That each of two processes has memory for."""


def decoded(engine, settings=SETTINGS):
    """Tokens, steps and confidences of the responses to two copies of the prompts."""
    generations = engine.generate([*PROMPTS, *PROMPTS], [*settings, *reversed(settings)])
    return [(each.token_ids, each.reveal_steps, each.confidences) for each in generations]


def start_together(folder, *groups):
    """Have groups of processes do jobs: {job: what each process found} of each group, nothing of one that was killed.

    A group is (number of processes, jobs, rank of the one that a job kills or None); the jobs, which its processes do
    one after another, are {job: (name of a function here, its arguments)}.
    """
    (folder / "groups.json").write_text(json.dumps(groups))
    done = subprocess.run(
        [sys.executable, __file__, str(folder / "groups.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LONGEST,
    )
    assert done.returncode == 0, done.stdout
    found = []
    for number, (count, jobs, _) in enumerate(groups):
        files = [folder / f"found-{number}-{rank}.json" for rank in range(count)]
        of_processes = [json.loads(file.read_text()) for file in files if file.exists()]
        found.append({job: [each[job] for each in of_processes] for job in jobs})
    return found


def main():
    file = Path(sys.argv[1])
    torch.set_num_threads(1)
    for number, (count, jobs, mortal) in enumerate(json.loads(file.read_text())):
        ports = free_ports(len(jobs))
        fork(count, partial(work_through, jobs, ports, f"{file.parent}/found-{number}"), mortal)


def work_through(jobs, ports, found_file):
    """Do jobs as one of several processes, which meet at a port of its own for each; write down what they give."""
    found = {}
    for (job, (name, *arguments)), port in zip(jobs.items(), ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        found[job] = JOBS[name](*arguments)
    Path(f"{found_file}-{os.environ['RANK']}.json").write_text(json.dumps(found))


def decode(model, backend):
    """What an engine of all processes decodes, in the first; what this one holds of the model."""
    own = []

    def build(mesh):
        own.append(Engine.from_pretrained(model, device="cpu", backend=backend, mesh=mesh))
        return own[0]

    with shared_engine(os.environ, 2, "cpu", build) as engine:
        responses = None if engine is None else decoded(engine)
        backend_of_part = own[0].backend._backend
        own_model = own[0].model
    weights = [local(weight) for weight in own_model.parameters()]
    return {
        "responses": responses,
        "fingerprint": model_fingerprint(own_model),
        "kv_heads": own_config(own_model).num_key_value_heads,
        "cached_heads": backend_of_part._core._cache.keys.shape[2] if backend == "continuous" else None,
        "bytes": sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in weights}.values()),
        "are_contiguous": all(weight.is_contiguous() for weight in weights),
    }


def decode_by_grouped_experts(model, backend):
    """`decode`, the experts computed as on a GPU."""
    with mock.patch.object(experts, "hit_experts", experts.grouped_experts):
        return decode(model, backend)


def decode_in_little_memory(model, pages):
    """Long responses, where each process has memory for another number of pages."""
    built = []

    def build(mesh):
        engine = Engine.from_pretrained(model, device="cpu", backend="continuous", mesh=mesh)
        config = engine.model.config
        page = 2 * config.num_hidden_layers * (config.num_key_value_heads // 2) * config.head_dim * 64 * 4
        memory = pages[int(os.environ["RANK"])] * page / 2**30
        built.append(Engine(engine.model, stop_token_ids=(), backend="continuous", memory_gib=memory))
        return built[0]

    with shared_engine(os.environ, 2, "cpu", build) as engine:
        responses = None if engine is None else decoded(engine, LONG)
    return {"responses": responses, "counters": built[0].backend._backend.counters}


def agree():
    """What two processes make of differing candidates, limits and fingerprints."""
    rank = int(os.environ["RANK"])
    replica = Replica(os.environ, 2, torch.device("cpu"))
    sharding = Sharding(replica.mesh, "")
    own = Candidates(
        torch.tensor([3 + rank, 4]), torch.tensor([0.1 + rank, float("nan")]), torch.tensor([2.0, 1.0 + rank])
    )
    taken = agreed_candidates(own, sharding)
    replica.require_same(7)
    said = None
    try:
        replica.require_same(7 + rank)
    except WorkError as error:
        said = str(error)
    limit = agreed_limit(10 - rank, sharding)
    if not replica.leads:
        assert replica.hear() is None
    replica.leave()
    columns = [column.tolist() for column in (taken.token_ids, taken.confidence, taken.entropy)]
    return {"columns": repr(columns), "said": said, "limit": limit}


def command(*arguments):
    """Run a command line; its exit code and what it said."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(list(arguments))
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def command_with_a_loss(num_responses, *arguments):
    """Run a command line of which the last process is killed once it has so many responses."""
    compare, compared = Replica.require_same, []

    def compare_or_die(replica, fingerprint):
        compare(replica, fingerprint)
        compared.append(fingerprint)
        if not replica.leads and len(compared) == num_responses:
            os.kill(os.getpid(), signal.SIGKILL)

    with mock.patch.object(Replica, "require_same", compare_or_die):
        return command(*arguments)


def local(weight):
    """What this process holds of a weight."""
    return weight.to_local() if hasattr(weight, "to_local") else weight


JOBS = {
    each.__name__: each
    for each in (decode, decode_by_grouped_experts, decode_in_little_memory, agree, command, command_with_a_loss)
}

if __name__ == "__main__":
    main()
