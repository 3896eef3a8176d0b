"""A model that several processes hold together decodes what one process alone does, and nobody waits for ever."""

import pytest
import torch
import torch.distributed as dist
from sharded_runs import BACKENDS, LONG, PAGES, decoded, start_together
from tiny import tiny_model
from transformers import Qwen3Config

from t3d.engine import Engine
from t3d.engine.continuous.graphs import Eager
from t3d.engine.continuous.runner import Runner
from t3d.engine.sharded.backend import losses_told, shared_engine
from t3d.errors import RequestError, WorkError
from t3d.models import FAMILIES, SDARForCausalLM, load_model, model_fingerprint
from t3d.models.sharding import check_shares
from t3d.trajectories import Part
from t3d.trajectories.parts import rank_of

torch.set_num_threads(1)

KINDS = {family: {"family": family} for family, (config, _) in FAMILIES.items() if config.base_model_tp_plan}
KINDS |= {"tied": {"tie_word_embeddings": True}, "a vocabulary that 2 does not divide": {"vocab_size": 31}}
CASES = [(kind, backend) for kind in KINDS for backend in BACKENDS]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of tiny models by kind."""
    folder = tmp_path_factory.mktemp("models")
    for kind, fields in KINDS.items():
        tiny_model(dtype=torch.float32, **{"vocab_size": 32, **fields}).save_pretrained(folder / kind)
    return folder


@pytest.fixture(scope="module")
def together(models, model_folder, tmp_path_factory):
    """What each of two processes found, by job."""
    jobs = {str(case): ("decode", str(models / case[0]), case[1]) for case in CASES}
    jobs |= {f"grouped {each}": ("decode_by_grouped_experts", str(models / "sdar_moe"), each) for each in BACKENDS}
    jobs |= {"little memory": ("decode_in_little_memory", str(model_folder), PAGES), "agree": ("agree",)}
    (found,) = start_together(tmp_path_factory.mktemp("together"), (2, jobs, None))
    return found


def assert_same_responses(found, expected):
    for (tokens, steps, confidences), other in zip(found, expected, strict=True):
        assert (tokens, steps) == other[:2]
        assert confidences == pytest.approx(other[2], abs=1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_processes_decode_what_one_does(case, together, models):
    kind, backend = case
    first, second = together[str(case)]
    assert second["responses"] is None
    assert_same_responses(
        first["responses"], decoded(Engine.from_pretrained(models / kind, device="cpu", backend=backend))
    )
    whole = load_model(models / kind, device="cpu")
    assert first["fingerprint"] == second["fingerprint"] == model_fingerprint(whole)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_process_holds_half_of_what_is_dealt_out(case, together, models):
    kind, backend = case
    whole = load_model(models / kind, device="cpu")
    has_own_head = kind not in ("tied", "a vocabulary that 2 does not divide")
    dealt_out = ("_proj", *(("lm_head",) if has_own_head else ()))
    shares = {weight: 2 if any(part in name for part in dealt_out) else 1 for name, weight in whole.named_parameters()}
    expected = sum(4 * weight.numel() // share for weight, share in shares.items())
    assert max(shares.values()) == 2
    for found in together[str(case)]:
        assert found["bytes"] == expected
        assert found["are_contiguous"]  # as the kernels for GPUs read them
        assert found["kv_heads"] == whole.config.num_key_value_heads // 2
        assert found["cached_heads"] == (found["kv_heads"] if backend == "continuous" else None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_experts_that_are_shared_out_are_computed_as_on_a_gpu(backend, together, models):
    """GPUs take grouped products; every process has some rows of every expert for them."""
    alone = decoded(Engine.from_pretrained(models / "sdar_moe", device="cpu", backend=backend))
    assert_same_responses(together[f"grouped {backend}"][0]["responses"], alone)


def test_processes_with_unlike_memory_admit_and_preempt_alike(together, model_folder):
    first, second = together["little memory"]
    assert first["counters"] == second["counters"]
    assert first["counters"]["num_preemptions"] > 0
    alone = decoded(Engine(load_model(model_folder, device="cpu"), stop_token_ids=(), backend="continuous"), LONG)
    assert [each[:2] for each in first["responses"]] == [list(each[:2]) for each in alone]


def test_steps_in_the_shapes_of_graphs_are_the_same(models, monkeypatch):
    """As GPUs that hold a model together launch them: padded as for CUDA graphs, which are not made."""
    build = Runner.__init__

    def build_without_graphs(runner, *given):
        build(runner, *given)
        runner._graphs = runner._prefill._graphs = Eager()

    alone = decoded(Engine.from_pretrained(models / "sdar", device="cpu", backend="continuous"))
    monkeypatch.setattr(Runner, "__init__", build_without_graphs)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    assert_same_responses(decoded(Engine.from_pretrained(models / "sdar", device="cpu", backend="continuous")), alone)


def test_the_first_process_decides(together):
    first, second = together["agree"]
    wanted = [[3, 4], [torch.tensor(0.1).item(), float("nan")], [2.0, 1.0]]
    assert first["columns"] == second["columns"] == repr(wanted)
    assert first["limit"] == second["limit"] == 9
    assert first["said"] == second["said"]
    assert "different tokens" in first["said"]


def test_replicas_are_consecutive_ranks():
    ranks = [rank_of({"RANK": str(rank), "WORLD_SIZE": "4"}, each=2) for rank in range(4)]
    assert ranks == [Part(0, 2), Part(0, 2), Part(1, 2), Part(1, 2)]
    for wrong in ({}, {"RANK": "0", "WORLD_SIZE": "3"}):
        with pytest.raises(RequestError, match="--nproc-per-node 2, or a multiple"):
            rank_of(wrong, each=2)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_key_value_heads": 6, "num_attention_heads": 6}, "num_key_value_heads is 6"),
        ({"num_key_value_heads": 4, "num_attention_heads": 6}, "num_attention_heads is 6"),
        ({"intermediate_size": 26}, "intermediate_size is 26"),
        ({"quantization_config": {"bits": 4}}, "quantized weights"),
        ({"base_model_tp_plan": None}, "no plan"),
    ],
)
def test_models_that_cannot_be_dealt_out_are_refused(fields, said):
    config = Qwen3Config(num_key_value_heads=4, num_attention_heads=8, intermediate_size=64)
    check_shares(config, 4, "m")
    for name, value in fields.items():
        setattr(config, name, value)
    with pytest.raises(RequestError, match=said) as refusal:
        check_shares(config, 4, "m")
    assert "\n" not in str(refusal.value)


def test_a_gpu_by_number_is_refused():
    with pytest.raises(RequestError, match="say cuda"), shared_engine({}, 2, "cuda:1", lambda mesh: None):
        pass


def test_processes_that_were_not_told_how_to_meet_are_refused():
    environment = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}  # as job scripts that do without torchrun set
    with pytest.raises(RequestError, match="MASTER_ADDR is not set"), shared_engine(environment, 2, "cpu", None):
        pass


@pytest.mark.parametrize(
    "error", [dist.DistBackendError("Duplicate GPU detected"), RuntimeError("gloo/transport: reset")]
)
def test_a_broken_connection_is_told_with_its_cause(error):
    with pytest.raises(WorkError, match=r"^process 3 .* --resume$") as said, losses_told({"RANK": "3"}):
        raise error
    assert str(error) in str(said.value)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), ValueError("gloo/transport")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)), losses_told({"RANK": "3"}):
        raise error


def test_a_model_that_does_not_fit_says_what_to_do(models, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SDARForCausalLM, "to", full)
    with pytest.raises(WorkError, match=r"does not fit the device.*--tensor-parallel") as said:
        load_model(models / "sdar", device="cpu")
    assert "\n" not in str(said.value)
