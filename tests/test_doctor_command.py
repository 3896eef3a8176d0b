"""`t3d doctor`: what it says is held is held by real trainings, and it refuses what they refuse, in their words."""

import io
import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import yaml
from rich.console import Console
from torch.testing._internal.distributed.fake_pg import FakeStore
from training_runs import TOKENIZER, inputs, recipe_of  # noqa: F401

from t3d.cli import run
from t3d.doctor import GPUS, Cluster, advice, examine, machine
from t3d.doctor.holding import gradient_bytes, moment_bytes, trained_weights, weight_bytes
from t3d.doctor.host import checkpoint_bytes
from t3d.doctor.memory import held_on_device, reference_copy_bytes
from t3d.doctor.subject import find_subject, student_on_paper, weights_of
from t3d.errors import RequestError
from t3d.models import load_config
from t3d.training import Trainer
from t3d.training.optimizers import build_optimizer
from t3d.training.parallel.processes import Shards
from t3d.training.parallel.tensors import local_part
from t3d.training.scorer import Scorer

NEEDS_LOWMEM = pytest.mark.skipif(
    find_spec("bitsandbytes") is None or find_spec("torchao") is None, reason="needs t3d[gpu]"
)
ONE = Cluster(GPUS["h200"])
ADAPTER = {"type": "lora", "rank": 4}


def one_step(recipe):
    """A trainer after its first step, and the bytes of the gradients that the step made."""
    trainer = Trainer(recipe)
    learner, seen = trainer.learner, []
    forget = learner.optimizer.zero_grad

    def count(**options):
        grads = [weight.grad for weight in learner.student.trainable().values()]
        seen.append(sum(grad.nbytes for grad in grads if grad is not None))
        forget(**options)

    learner.optimizer.zero_grad = count
    learner.step(trainer._dataset[0], 1)
    return trainer, seen[0]


def nbytes(tensors):
    return sum(tensor.nbytes for tensor in tensors)


# --- what is held ---


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bf16"},
        {"precision": "bf16_pure"},
        {"objective": {"name": "sft"}},
        {"objective": {"name": "tad"}, "precision": "bf16"},
        {"model__adapter": ADAPTER, "precision": "bf16"},
        {"model__adapter": {**ADAPTER, "type": "dora", "targets": ["q_proj", "up_proj"]}, "precision": "bf16"},
        {"model__adapter": ADAPTER, "precision": "bf16", "reference": {"form": "copy"}},
        {"reference": {"form": "offload"}, "precision": "bf16"},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_bytes_are_those_of_a_real_training(changes, inputs, tmp_path):  # noqa: F811
    asked = {"precision": "fp32", **changes}
    trainer, gradients = one_step(recipe_of(inputs, tmp_path / "run", **asked))
    (paper,) = examine(recipe_of(inputs, tmp_path / "paper", **asked), ONE).trainings
    items, weights = held_on_device(paper.recipe, paper.weights), paper.weights
    learner = trainer.learner
    assert weight_bytes(weights) == nbytes(trainer.model.parameters())
    assert gradient_bytes(weights) == gradients
    moments = [state[name] for state in learner.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert moment_bytes(weights, "adamw") == nbytes(moments)
    reference = learner.reference
    if reference is None:
        assert items["reference"] == 0
    elif hasattr(reference, "model"):
        copied = nbytes(reference.model.parameters())
        assert reference_copy_bytes(paper.recipe, weights) == copied
        assert items["reference"] == (copied if paper.recipe.reference.form != "offload" else 0)
    else:
        assert items["reference"] == nbytes(reference.tensors().values())
    state = learner.state()
    counted = nbytes(state.weights.values()) + nbytes(state.reference.values()) + nbytes(moments)
    assert checkpoint_bytes(paper) == counted


@NEEDS_LOWMEM
def test_moments_of_a_byte_are_torchaos():
    """Large weights of whole blocks are quantized, all others are not."""
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((64, 64), (128, 96), (63, 65), (10, 10), (4096,))]
    model = torch.nn.ParameterList(params)
    optim = recipe_of_nothing(optim__optimizer="adamw_8bit").optim
    optimizer = build_optimizer(params, optim)
    moments = [optimizer._new_buffer(weight, signed) for weight in params for signed in (True, False)]
    counted = 0
    for moment in moments:
        inner = moment.__tensor_flatten__()[0] if hasattr(moment, "codes") else None
        counted += nbytes([moment] if inner is None else [getattr(moment, name) for name in inner])
    assert moment_bytes(weights_of(model), "adamw_8bit") == counted


def recipe_of_nothing(**changes):
    return recipe_of(Path("nowhere"), "run", **changes)


@NEEDS_LOWMEM
def test_four_bit_weights_are_bitsandbytes(inputs, tmp_path):  # noqa: F811
    asked = {"model__adapter": ADAPTER, "model__quantize": "nf4", "precision": "bf16"}
    trainer = Trainer(recipe_of(inputs, tmp_path / "run", **asked))
    (paper,) = examine(recipe_of(inputs, tmp_path / "paper", **asked), ONE).trainings
    counted = 0
    for weight in trainer.model.parameters():
        packing = getattr(weight, "quant_state", None)
        counted += weight.nbytes + (packing.absmax.nbytes + packing.state2.absmax.nbytes if packing else 0)
    assert weight_bytes(paper.weights) == counted
    assert len(trained_weights(paper.weights)) == len(trainer.learner.student.trainable())


@pytest.fixture
def three_processes():
    """This process is the first of three; what the others would send stays unwritten."""
    dist.init_process_group("fake", rank=0, world_size=3, store=FakeStore())
    try:
        yield SimpleNamespace(device=torch.device("cpu"), num_processes=3)
    finally:
        dist.destroy_process_group()


def test_parts_are_those_that_fsdp_deals_out(inputs, tmp_path, three_processes):  # noqa: F811
    """The main process has the largest part where rows cannot be shared evenly."""
    asked = {"precision": "bf16", "distributed": {"strategy": "fsdp"}}
    (paper,) = examine(recipe_of(inputs, tmp_path / "paper", **asked), Cluster(GPUS["h200"], 3)).trainings
    student = student_on_paper(paper.recipe, load_config(inputs / "model"))
    shards = Shards(three_processes, paper.recipe)
    shards.hold(Scorer(student.model))
    assert weight_bytes(paper.weights, 3) == nbytes(map(local_part, student.model.parameters()))
    assert any(weight.shape[0] % 3 for weight in student.model.parameters())


# --- the command ---


@pytest.fixture
def written(inputs, tmp_path):  # noqa: F811
    """Writes a recipe file."""

    def write(**changes):
        fields = recipe_of(inputs, tmp_path / "run").model_dump(mode="json", exclude_none=True)
        fields = {key: value for key, value in fields.items() if key not in ("rounds", "tracking")}
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump({**fields, **changes}))
        return str(file)

    return write


WRONG = {
    "an unknown key": {"optimizer": {}},
    "no such folder": {"data": {"trajectories": "nowhere"}},
    "keys that exclude each other": {"reference": {"form": "adapter"}},
    "an unknown objective": {"objective": {"name": "magic"}},
    "a target that is none": {"model": {"adapter": {"targets": ["nothing"]}}},
    "a benchmark that is none": {"evaluation": {"every_steps": 1, "benchmark": "nothing"}},
    "odd examples": {"objective": {"name": "dparallel"}, "optim": {"steps": 1, "examples_per_step": 3}},
    "a folder of something else": {"out": "."},
}


@pytest.mark.parametrize("name", WRONG)
def test_it_refuses_what_training_refuses_in_its_words(name, written, inputs, capsys):  # noqa: F811
    changes = {key: dict(value) if isinstance(value, dict) else value for key, value in WRONG[name].items()}
    if "adapter" in changes.get("model", {}):
        changes["model"]["source"] = str(inputs / "model")
    file, said = written(**changes), []
    for command in (["train", file], ["doctor", file]):
        assert run(command) == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert said[0].count("\n") == 1


@pytest.mark.parametrize(
    "source", ["runs/teacher", "runs/teacher/best", "somebody/SDAR-4B-Chat", "JetLM/SDAR-4B-Chat-b16"]
)
def test_a_model_that_is_not_here_is_not_fetched(source, written, capsys):
    """Only names of released models stand for their shapes; a folder that is yet to be made needs one given."""
    assert run(["doctor", written(model={"source": source})]) == 2
    said = capsys.readouterr().err
    assert f"model {source}: is not on this machine" in said
    assert "--set model.source=NAME, one of sdar-1.7b" in said


def test_a_released_model_has_known_shapes(written, tmp_path, capsys):
    out = tmp_path / "found.json"
    options = ["--gpu", "h200", "--set", "precision=bf16", "--lengths", "real", "--json", str(out)]
    assert run(["doctor", written(model={"source": "JetLM/SDAR-1.7B-Chat"}), *options]) == 0
    assert "is not on this machine: taken to have the shapes of sdar-1.7b" in capsys.readouterr().out
    model = json.loads(out.read_text())["model"]
    assert model == {
        "name": "JetLM/SDAR-1.7B-Chat",
        "shape": "sdar-1.7b",
        "weights": 1_720_574_976 + 151_936 * 2048,  # as the hub's 4.06 GB of bfloat16: the head is not tied
        "active": 1_720_574_976 + 151_936 * 2048,
    }


@pytest.mark.parametrize(
    "options, said",
    [
        (["--gpu", "h100"], "give a recipe"),
        (["--set", "precision=bf16"], "give a recipe"),
        (["RECIPE", "--gpu", "t4"], "use one of h200"),
        (["RECIPE", "--price", "nan"], "'--price'"),
        (["RECIPE", "--network", "0"], "--network 0"),
        (["RECIPE", "--lengths", "some"], "real or full"),
    ],
)
def test_options_that_say_nothing_are_refused(options, said, written, capsys):
    file = written(model={"source": "tiny"})
    assert run(["doctor", *(file if each == "RECIPE" else each for each in options)]) == 2
    assert said in capsys.readouterr().err


def test_a_shape_is_examined_without_data(written, tmp_path, capsys):
    """Hours, GPU-hours and cost follow from the seconds of a step."""
    file, out = written(model={"source": "sdar-1.7b"}), tmp_path / "found.json"
    options = ["--set", "optim.steps=100", "--gpu", "h200", "--gpus", "2", "--price", "3", "--lengths", "real"]
    assert run(["doctor", file, *options, "--set", "precision=bf16", "--json", str(out)]) == 0
    said, found = capsys.readouterr().out, json.loads(out.read_text())
    assert "not checked here: weights and checkpoints, data" in said
    (training,) = found["trainings"]
    assert found["model"]["weights"] == 1_720_574_976
    assert found["seconds"] == pytest.approx(100 * training["step"]["seconds"])
    assert found["gpu_hours"] == pytest.approx(2 * found["seconds"] / 3600)
    assert found["cost"] == pytest.approx(3 * found["gpu_hours"])
    assert training["strategy"] == "ddp"  # 22 bytes each of 1.7 billion weights are 35 GiB
    assert training["memory"]["total"] == sum(training["memory"]["items"].values())


def test_small_models_and_single_precision_were_not_measured(written, tmp_path):
    for source, precision in (("tiny", "bf16"), ("sdar-1.7b", "fp32")):
        out = tmp_path / f"{source}.json"
        options = ["--set", f"model.source={source}", "--set", f"precision={precision}", "--lengths", "real"]
        assert run(["doctor", written(), *options, "--json", str(out)]) == 0
        found = json.loads(out.read_text())
        step = found["trainings"][0]["step"]
        assert (step["seconds"], step["mfu"], found["seconds"], found["cost"]) == (None, None, None, None)
        assert step["flops"] > 0
        assert any(precision in each or "hidden size" in each for each in found["not_measured"])


def advised(file, options, out):
    """The changes that are advised for a recipe that does not fit."""
    assert run(["doctor", file, *options, "--json", str(out)]) == 1
    return [each.split() for each in json.loads(out.read_text())["changes"]]


def test_what_is_advised_fits(written, tmp_path, capsys, monkeypatch):
    """Its words are options: what is said can be pasted behind the command."""
    monkeypatch.setitem(GPUS, "of-37-gib", replace(GPUS["a100-40gb"], name="of-37-gib", memory_bytes=37 * 2**30))
    file = written(model={"source": "sdar-1.7b"}, batch={"tokens_per_batch": 16_384})
    options = ["--gpu", "of-37-gib", "--lengths", "real", "--set", "precision=bf16"]
    options += ["--set", "optim.examples_per_step=64"]
    changes = advised(file, options, tmp_path / "found.json")
    assert "does not fit" in capsys.readouterr().err
    assert [each[0] if each[0] == "--gpus" else each[1].split("=")[0] for each in changes] == [
        "batch.tokens_per_batch",
        "--gpus",
        "reference.form",
        "precision",
    ]
    for change in changes[:2]:  # of a recipe, and of a recipe and a cluster
        assert run(["doctor", file, *options, *change]) == 0, change


def test_several_changes_together_where_none_is_enough(written, tmp_path):
    options = ["--gpu", "a100-40gb", "--lengths", "real", "--set", "precision=bf16"]
    options += ["--set", "optim.examples_per_step=1"]  # which leaves no more than one GPU
    file = written(model={"source": "sdar-4b"})
    (change,) = advised(file, options, tmp_path / "found.json")
    assert [each.split("=")[0] for each in change[-3::2]] == ["reference.form", "precision"]
    assert run(["doctor", file, *options, *change]) == 0


def test_no_more_is_advised_than_it_takes_and_nothing_that_training_refuses(monkeypatch):
    """Smaller batches are not enough, and sharding is refused: the mildest of what comes next is added to them."""
    asked, cluster, tried = recipe_of_nothing(optim__examples_per_step=64, batch__tokens_per_batch=8192), ONE, []

    def plan(recipe, subject, rows, cluster, name, weights):
        tried.append((recipe, cluster))
        if recipe.distributed.strategy == "fsdp" and cluster.num_gpus < 4:
            raise RequestError("refused")
        small = recipe.batch.tokens_per_batch <= 2048
        return SimpleNamespace(memory=SimpleNamespace(fits=small and cluster.num_gpus >= 4))

    monkeypatch.setattr(advice, "plan_training", plan)
    planned = SimpleNamespace(weights=(), cluster=cluster, name="training")
    (change,) = advice.changes_that_fit(planned, asked, None, ())
    assert change == (
        "--set batch.tokens_per_batch=2048 --gpus 4 --nodes 1 "
        "--set distributed.strategy=fsdp --set distributed.gradients=sharded"
    )
    assert max(cluster.num_gpus for recipe, cluster in tried if recipe.batch.tokens_per_batch <= 2048) == 4


def test_fewer_bits_are_those_of_what_is_frozen_or_trained():
    """Adapters keep their precision, and what they stand beside takes four bits; nothing goes lower twice."""
    for asked, said in (
        ({"precision": "bf16"}, ["--set precision=bf16_pure"]),
        ({"precision": "bf16_pure"}, []),
        ({"model__adapter": ADAPTER}, ["--set model.quantize=nf4"]),
        ({"model": {"source": "tiny", "adapter": ADAPTER, "quantize": "nf4"}}, []),
    ):
        assert [change[0] for change in advice.STEPS[-1](recipe_of_nothing(**asked), ONE)] == said


def test_rounds_are_rolled_out_and_trained(tmp_path):
    """Four prompts twice; later rounds decode the few-step answers and the full-step ones beside them."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"question": f"How many are {n} stamps?"}) + "\n" for n in range(4)))
    file, out = tmp_path / "rounds.yaml", tmp_path / "found.json"
    rollout = {"prompts": str(prompts), "samples": 2, "max_new_tokens": 64}
    recipe = {
        "model": {"source": "story-mini"},
        "objective": {"name": "t3d"},
        "optim": {"steps": 5, "examples_per_step": 4},
        "every_round": {"rollout": rollout},
        "rounds": [{"rollout": {}}, {"rollout": {"steps_per_block": 1}, "keep": "agreeing", "optim": {"steps": 7}}],
        "out": str(tmp_path / "run"),
    }
    file.write_text(yaml.safe_dump(recipe))
    assert run(["doctor", str(file), "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [each["steps"] for each in found["trainings"]] == [5, 7]
    assert [(each["answers"], each["tokens"]) for each in found["rollouts"]] == [(8, 8 * 32), (16, 16 * 32)]
    file.write_text(yaml.safe_dump({**recipe, "model": {"source": "sdar-1.7b"}}))
    assert run(["doctor", str(file), "--gpu", "h200", "--lengths", "real", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [each["answers"] for each in found["rollouts"]] == [None, None]
    assert found["seconds"] is None


def test_a_hub_model_in_the_cache_is_found(inputs, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("t3d.doctor.subject.try_to_load_from_cache", lambda *_: str(inputs / "model" / "config.json"))
    recipe, subject = find_subject(recipe_of(inputs, tmp_path / "run", model={"source": "owner/model"}))
    assert recipe.model.source == str(inputs / "model")
    assert (subject.name, subject.config.vocab_size) == ("owner/model", len(TOKENIZER))
    assert subject.num_active == subject.num_weights


# --- this machine ---


def test_without_a_recipe_it_looks_around(tmp_path, capsys):
    out = tmp_path / "found.json"
    assert run(["doctor", "--json", str(out)]) == 0
    findings = {each["name"]: each for each in json.loads(out.read_text())["findings"]}
    assert {"python", "torch", "transformers", "triton", "sandbox", "disk", "hub", "extra ray"} <= set(findings)
    assert ("CUDA" in findings) or not torch.cuda.is_available()
    assert "this machine" in capsys.readouterr().out


def test_a_gpu_that_does_not_answer_is_a_line_and_no_crash(monkeypatch):
    def busy(index):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nFor debugging consider ...")

    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(machine.torch.cuda, "get_device_name", lambda index: "NVIDIA H200")
    monkeypatch.setattr(machine.torch.cuda, "mem_get_info", busy)
    found = {each.name: each for each in machine._devices()}["GPU 0"]
    assert (found.ok, bool(found.cure)) == (False, True)
    assert "busy" in found.said


def test_what_is_missing_comes_with_a_cure(tmp_path, monkeypatch):
    def nowhere(wanted="auto"):
        raise RequestError("no sandbox for programs works here (unshare: not installed): pip install it")

    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    monkeypatch.setattr(machine, "find_isolation", nowhere)
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: False)
    findings = {each.name: each for each in machine.look_around(tmp_path / "not" / "there")}
    for name in ("CUDA", "sandbox", *(f"extra {extra}" for extra in machine.EXTRAS)):
        assert not findings[name].ok
        assert findings[name].cure
    assert findings["sandbox"].cure == "pip install it"


def test_the_table_shows_a_cure_with_its_brackets():
    console = Console(width=200, file=io.StringIO())
    console.print(
        machine.findings_table([machine.Finding("extra ray", False, "without ray", "pip install 't3d[ray]'")])
    )
    assert "pip install 't3d[ray]'" in console.file.getvalue()
