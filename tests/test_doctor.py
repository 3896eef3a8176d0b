"""`t3d doctor`: its arithmetic by hand, and its predictions beside what was measured."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_runs import recipe_of

from t3d.bench.roofline import model_facts
from t3d.bench.shapes import shape_config
from t3d.doctor import GPUS, Cluster, gpu_called
from t3d.doctor.holding import copy_bytes, gradient_bytes, largest_layer, moment_bytes, outside_layers, weight_bytes
from t3d.doctor.measured import (
    COPY_SHARE,
    MOST_MEMORY_ABOVE,
    PRODUCT_SHARE,
    ROLLOUTS,
    TRAINING,
    RolloutPoint,
    TrainingPoint,
    efficiency,
    efficiency_on,
    seconds_per_answer_token,
    why_no_speed,
)
from t3d.doctor.memory import ACTIVATIONS, kept_by_layer, memory_of_step
from t3d.doctor.printing import duration
from t3d.doctor.seconds import (
    adapter_traffic,
    exchanged_bytes,
    recomputed_flops,
    step_flops,
    time_of_step,
    update_bytes,
)
from t3d.doctor.subject import Weight
from t3d.doctor.workload import StepWork
from t3d.training.throughput import Work

ROOT = Path(__file__).parent.parent
GIB = 2**30
H200 = GPUS["h200"]
WEIGHTS = [Weight((10, 4), 4), Weight((6, 4), 4, layer=0), Weight((4,), 4, layer=0), Weight((8, 4), 4, layer=1)]
"""40 elements outside of layers; 28 and 32 in two layers: 100, of which a vector of 4."""
WORK = StepWork(Work(700, 0, 40, 8), Work(700, 0, 40, 8), 3, 100, 20)


def recipe(**changes):
    fields = {"precision": "bf16", "distributed": {"strategy": "fsdp", "gradients": "sharded"}, **changes}
    return recipe_of(Path("nowhere"), "run", **fields)


# --- what is held ---


def test_bytes_by_hand():
    assert weight_bytes(WEIGHTS) == gradient_bytes(WEIGHTS) == 400
    assert moment_bytes(WEIGHTS, "adamw") == 800
    assert copy_bytes(WEIGHTS, 2) == 96 * 2 + 4 * 4  # the vector stays in float32
    assert copy_bytes(WEIGHTS, None) == 400
    assert (largest_layer(WEIGHTS), outside_layers(WEIGHTS)) == (32, 40)


def test_the_largest_of_four_parts_by_hand():
    """Rows are dealt out: three of ten, two of six, one of four, two of eight."""
    assert [each.part(4) for each in WEIGHTS] == [12, 8, 1, 8]
    assert weight_bytes(WEIGHTS, 4) == 4 * 29


@given(st.lists(st.integers(1, 50), min_size=1, max_size=3), st.integers(1, 9))
def test_parts_cover_a_weight(shape, shards):
    weight = Weight(tuple(shape), 2)
    chunks = torch.zeros(shape).chunk(shards)
    assert weight.part(shards) == chunks[0].numel()
    assert sum(chunk.numel() for chunk in chunks) == weight.numel


def test_four_bit_weights_by_hand():
    """128 x 128: 8,192 bytes, 256 scales of a byte, one of four for these."""
    assert weight_bytes([Weight((128, 128), 2, is_trained=False, is_packed=True)]) == 8192 + 256 + 4


# --- a step's memory ---


def test_what_a_layer_keeps_by_hand():
    """Hidden 16, four heads and two key heads of 4, intermediate 24; bfloat16, and the layer's 32 weights rounded."""
    config = tiny_config()
    each = 2 * (4 * 16 + 3 * (16 + 8) + 3 * 24) + 4 * 4
    assert kept_by_layer(recipe(), config, WEIGHTS, 100) == 100 * each + 2 * 32
    assert kept_by_layer(recipe(), config, WEIGHTS, 100, sharded=True) == 100 * each
    whole = 4 * (4 * 16 + 3 * (16 + 8) + 3 * 24) + 4 * 4
    assert kept_by_layer(recipe(precision="fp32"), config, WEIGHTS, 100) == 100 * whole


def tiny_config():
    config = shape_config("tiny")
    config.update({"hidden_size": 16, "head_dim": 4, "intermediate_size": 24, "vocab_size": 32})
    return config


def memory(capacity=GIB, processes=1, **changes):
    return memory_of_step(recipe(**changes), tiny_config(), WEIGHTS, WORK, capacity, processes, context=0)


def test_a_steps_memory_by_hand():
    """Two layers and the one whose backward runs; 20 tokens with loss over 32 logits; a head of 16 x 32."""
    items = memory(compute={"checkpoint_layers": 0}).items
    layer = 100 * 432 + 64
    assert items == {
        "weights": 400,
        "reference": 208,
        "gradients": 400,
        "optimizer's moments": 800,
        ACTIVATIONS: 3 * layer,
        "LM head's chunk": 8 * 20 * 32 + 12 * 16 * 32,
    }
    one = memory(compute={"checkpoint_layers": 1})
    assert one.items[ACTIVATIONS] == 2 * layer + 100 * 16 * 2
    assert one.peak == one.total == sum(one.items.values())


def test_a_full_gpu_recomputes_layers_and_a_small_one_does_not_fit():
    """Two layers and one more keep 43,264 bytes each, or 3,200 of input; the head's whole chunk is counted on."""
    assert [memory(capacity=capacity_with(free)).checkpointed for free in (130_000, 129_000, 89_000)] == [0, 1, 2]
    assert memory(capacity=capacity_with(130_000)).fits
    assert not memory(capacity=60_000).fits
    assert memory(capacity=60_000).reserve < 0


def capacity_with(free):
    """Of a GPU on which so much of 92% is left for activations."""
    coming = 400 + 800 + 4 * GIB + 12 * 16 * 32
    return int((free + coming) / 0.92) + 400 + 208


def test_ddp_has_buckets_and_fsdp_parts_and_gathered_layers():
    ddp = memory(processes=2, distributed={"strategy": "ddp"}).items
    assert (ddp["weights"], ddp["DDP's buckets"]) == (400, 400)
    fsdp = memory(processes=4).items
    assert (fsdp["weights"], fsdp["reference"], fsdp["gradients"]) == (116, 2 * 28 + 4, 116)
    # three layers in bfloat16, two layers' gradients, and what is outside of layers for student and reference
    assert fsdp["gathered by FSDP"] == 3 * 32 * 2 + 2 * 32 * 4 + 40 * (4 + 2)
    whole = memory(processes=4, distributed={"strategy": "fsdp", "gradients": "whole"}).items
    assert whole["gathered by FSDP"] == fsdp["gathered by FSDP"] + 400
    grouped = memory(processes=8, distributed={"strategy": "fsdp", "gradients": "sharded", "shards": 4}).items
    assert grouped["weights"] == 116


@pytest.mark.parametrize(
    "changes, reference",
    [
        ({"objective": {"name": "sft"}}, 0),
        ({"objective": {"name": "tad"}}, 208),
        ({"reference": {"form": "offload"}}, 0),
        ({"precision": "fp32"}, 400),
    ],
)
def test_references(changes, reference):
    assert memory(**changes).items.get("reference", 0) == reference


def test_a_teachers_hidden_states_wait_for_the_step():
    plain, taught = (memory(objective={"name": name}).items["LM head's chunk"] for name in ("sft", "tad"))
    assert taught - plain == 40 * 16 * 2 + 20 * 32 * (2 + 4)


# --- seconds ---


def test_update_by_hand():
    assert update_bytes(recipe(), WEIGHTS) == 10 * 4 * 100
    assert update_bytes(recipe(optim__optimizer="adamw_8bit"), WEIGHTS) == (6 * 4 + 4) * 100


def test_exchange_by_hand():
    """Four processes pass on three quarters: of gradients twice (DDP), of layers thrice a batch in bfloat16 (FSDP)."""
    ddp = recipe(distributed={"strategy": "ddp"})
    assert exchanged_bytes(ddp, WEIGHTS, 3, 4) == (0, 2 * 0.75 * 400)
    assert exchanged_bytes(ddp, WEIGHTS, 3, 1) == (0, 0)
    batch = 3 * 2 * 60 + 4 * 40
    assert exchanged_bytes(recipe(), WEIGHTS, 3, 4) == (0.75 * 3 * (batch + 400), 0)
    whole = recipe(distributed={"strategy": "fsdp", "gradients": "whole"})
    assert exchanged_bytes(whole, WEIGHTS, 3, 4) == (0.75 * (3 * batch + 400), 0)
    grouped = recipe(distributed={"strategy": "fsdp", "gradients": "whole", "shards": 4})
    assert exchanged_bytes(grouped, WEIGHTS, 3, 8) == (0.75 * (3 * batch + 400), 2 * 0.5 * 400 / 4)
    plain = recipe(objective={"name": "sft"}, distributed={"strategy": "fsdp", "gradients": "whole"})
    assert exchanged_bytes(plain, WEIGHTS, 1, 4)[0] == 0.75 * (2 * 2 * 60 + 160 + 400)


def test_adapters_traffic_by_hand():
    """One pair of rank 2 from 3 to 5, 700 tokens: in + 4 out + 2 r elements; student, twice that back, reference."""
    pair = [Weight((2, 3), 4), Weight((5, 2), 4), Weight((5, 3), 2, is_trained=False)]
    adapted = recipe(model__adapter={"rank": 2}, distributed={})
    assert adapter_traffic(adapted, tiny_config(), pair, WORK.own, 0) == 2 * (3 + 4 * 5 + 2 * 2) * 700 * 4
    assert adapter_traffic(adapted, tiny_config(), pair, WORK.own, 1) == 2 * (3 + 4 * 5 + 2 * 2) * 700 * 4.5
    assert adapter_traffic(recipe(), tiny_config(), pair, WORK.own, 1) == 0


def test_recomputed_layers_cost_their_forward_without_the_head():
    config = tiny_config()
    layer = 2 * 700 * (16 * (2 * 16 + 2 * 8) + 3 * 16 * 24)
    assert recomputed_flops(config, WORK.own, 1) == layer
    assert recomputed_flops(config, WORK.own, 2) == 2 * layer


def test_a_step_is_the_sum_of_its_parts():
    config, points = tiny_config(), [TrainingPoint("", 16, False, 0.5)]
    time = time_of_step(recipe(), config, WEIGHTS, WORK, 0, Cluster(H200, 2), points)
    forward = 2 * 2 * 700 * (16 * (2 * 16 + 2 * 8) + 3 * 16 * 24) + 2 * 16 * 32 * 40
    assert time.flops == 4 * forward
    assert time.parts["forwards and backward"] == pytest.approx(4 * forward / (0.5 * 989e12))
    assert time.parts["exchange"] == pytest.approx(0.5 * 3 * (520 + 400) / 450e9)
    assert time.parts["clipping and update"] == pytest.approx(10 * 4 * 50 / (COPY_SHARE * 4.8e12))
    assert time.seconds == pytest.approx(sum(time.parts.values()))
    assert time.mfu == pytest.approx(4 * forward / time.seconds / (2 * 989e12))


def test_groups_of_a_machine_gather_over_its_own_link():
    """Eight GPUs on two machines, groups of four: only a part's gradients go over the network."""
    asked = recipe(distributed={"strategy": "fsdp", "gradients": "whole", "shards": 4})
    points = [TrainingPoint("", 16, False, 0.5)]
    cluster = Cluster(H200, 4, 2, network_bytes_per_second=1e9)
    time = time_of_step(asked, tiny_config(), WEIGHTS, WORK, 0, cluster, points)
    assert time.parts["exchange"] == pytest.approx(0.75 * (3 * 520 + 400) / 450e9 + 100 / 1e9)
    across = time_of_step(recipe(), tiny_config(), WEIGHTS, WORK, 0, cluster, points)
    assert across.parts["exchange"] == pytest.approx(7 / 8 * 3 * 920 / 4e9)  # four adapters carry a machine's rings


# --- what was measured ---


def test_efficiency_lies_between_its_neighbours():
    points = [TrainingPoint("a", 1000, False, 0.4), TrainingPoint("b", 1000, False, 0.5)]
    points += [TrainingPoint("c", 3000, False, 0.55), TrainingPoint("d", 2000, True, 0.3)]
    assert efficiency(1000, False, points) == pytest.approx(0.45)
    assert efficiency(2000, False, points) == pytest.approx(0.5)
    assert efficiency(9000, False, points) == efficiency(3000, False, points) == 0.55
    assert efficiency(2000, True, points) == 0.3
    assert efficiency(2000, True, points[:3]) == pytest.approx(0.5)  # nobody else speaks for adapters


def test_another_gpu_by_hand():
    """Half the time at products' best, half moving bytes: with half the bandwidth the latter doubles."""
    on_measured = PRODUCT_SHARE / 2
    assert efficiency_on(H200, on_measured) == pytest.approx(on_measured)
    slower = replace(H200, bytes_per_second=H200.bytes_per_second / 2)
    assert efficiency_on(slower, on_measured) == pytest.approx(PRODUCT_SHARE / 3)
    # with half the peak too, the same share as before
    both = replace(slower, peak_flops=H200.peak_flops / 2)
    assert efficiency_on(both, on_measured) == pytest.approx(on_measured)


def test_rollouts_go_through_what_was_measured_and_on():
    points = [RolloutPoint("a", 100, (1, 2), (10.0, 5.0)), RolloutPoint("b", 300, (1, 2), (5.0, 2.5))]
    assert seconds_per_answer_token(100, 1, points) == pytest.approx(0.1)
    assert seconds_per_answer_token(200, 2, points) == pytest.approx(0.3)
    assert seconds_per_answer_token(300, 4, points) == pytest.approx(0.8)
    assert seconds_per_answer_token(50, 1, points[:1]) == pytest.approx(0.05)


@pytest.fixture(scope="module")
def check():
    """The script that compares predictions with measurements."""
    spec = importlib.util.spec_from_file_location("doctor_check", ROOT / "bench" / "scaling" / "doctor_check.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def measured(check):
    return check.cases()


def test_predictions_are_near_what_was_measured(check, measured):
    """Memory to 10%, seconds of training to 15%; rollouts of one model from another's to 25%. The file says so too."""
    rows = check.compared(measured)
    limits = {"peak GiB": 0.10, "seconds a step": 0.15, "layers computed again": 0.0}
    for row in rows:
        assert abs(row["error"]) <= limits.get(row["what"], 0.25), row
    assert {row["what"] for row in rows} >= set(limits)
    recorded = json.loads((ROOT / "bench" / "results" / "scaling" / "doctor.json").read_text())["rows"]
    assert [(row["file"], row["what"]) for row in recorded] == [(row["file"], row["what"]) for row in rows]
    assert [row["predicted"] for row in recorded] == pytest.approx([row["predicted"] for row in rows], rel=1e-3)


def test_no_run_predicts_itself(check, measured):
    """A wrong figure in a run's own row changes nothing of what is predicted for it."""
    rows = check.compared(measured)
    first = measured[0]
    lied = [replace(first, measured={**first.measured, "seconds_per_step": 99.0}), *measured[1:]]
    before, after = (next(r for r in each if r["what"] == "seconds a step") for each in (rows, check.compared(lied)))
    assert before["file"] == after["file"] == first.file
    assert before["predicted"] == after["predicted"]


def test_steps_hold_what_the_measured_ones_held(measured):
    """Work is counted on rows of the same lengths: arithmetic, batches and tokens are those that were written down."""
    for case in measured:
        row = case.measured
        flops = step_flops(case.recipe, case.config, case.work.whole)
        assert flops == pytest.approx(1e12 * row["tflop_per_example"] * row["examples_per_step"], rel=1e-9)
        assert case.work.num_batches == row["num_batches"]
        assert case.work.whole.num_tokens == pytest.approx(row["tokens_per_second"] * row["seconds_per_step"], rel=1e-9)


def test_the_figures_that_ship_are_those_of_the_files(measured):
    points = {case.file: case.point() for case in measured if case.cluster.num_gpus == 1}
    assert {point.file for point in TRAINING} == set(points)
    for point in TRAINING:
        found = points[point.file]
        assert (point.hidden_size, point.has_adapter) == (found.hidden_size, found.has_adapter)
        assert point.efficiency == pytest.approx(found.efficiency, abs=1e-4)
    for point in ROLLOUTS:
        rows = json.loads((ROOT / "bench" / "results" / point.file).read_text())["rows"]
        rates = {row["steps_per_block"]: row["tokens_per_second"] for row in rows if row["concurrency"] == 256}
        assert tuple(rates) == point.steps
        assert tuple(rates.values()) == pytest.approx(point.tokens_per_second, rel=1e-4)
        assert model_facts(shape_config(rows[0]["shape"]), torch.bfloat16).layer_parameters == point.layer_weights


def test_the_room_that_the_doctor_advises_is_what_was_missing(check, measured):
    recipes = json.loads((ROOT / "bench" / "results" / "recipes-h200.json").read_text())["recipes"].values()
    peaks = [(each["peak_gib"], each["predicted"]["peak_gib"]) for each in recipes]
    peaks += [(row["measured"], row["predicted"]) for row in check.compared(measured) if row["what"] == "peak GiB"]
    above = max(found / predicted - 1 for found, predicted in peaks)
    assert above <= MOST_MEMORY_ABOVE < above + 0.01


def test_ceilings_that_ship_are_those_of_the_files():
    ceilings = json.loads((ROOT / "bench" / "results" / "rollout-sdar-1.7b.json").read_text())["ceilings"]
    assert ceilings["bytes_per_second"] / H200.bytes_per_second == pytest.approx(COPY_SHARE, abs=0.005)
    assert ceilings["operations_per_second"] / H200.peak_flops == pytest.approx(PRODUCT_SHARE, abs=0.005)


# --- GPUs ---


@pytest.mark.parametrize(
    "name, gpu",
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100 80GB PCIe", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA T4", None),
    ],
)
def test_drivers_names(name, gpu):
    found = gpu_called(name)
    assert (found and found.name) == gpu


def test_links():
    """A machine's network adapters carry its rings together; a GPU alone with its replicas has one adapter."""
    assert Cluster(H200, 8).link_of(8) == 450e9
    assert Cluster(GPUS["l40s"], 8).link_of(8) == GPUS["l40s"].bus_bytes_per_second
    two = Cluster(H200, 8, 2, 25e9)
    assert two.link_of(16) == 8 * 25e9
    assert two.link_of(8) == 450e9
    assert two.link_of(2, neighbours=8) == 25e9
    assert two.link_of(4, neighbours=4) == 2 * 25e9
    assert Cluster(H200, 8, 2, 100e9).link_of(16) == 450e9  # NVLink is the narrow place then


# --- what is said ---


@pytest.mark.parametrize(
    "seconds, said",
    [
        (0.0123, "0.0123 s"),
        (12.75, "12.8 s"),
        (360, "6 min"),
        (2556, "42.6 min"),
        (14_400, "4 h"),
        (604_800, "7.0 days"),
    ],
)
def test_durations_are_said_as_a_person_would(seconds, said):
    assert duration(seconds) == said


def test_no_speed_is_claimed_for_what_is_unlike_all_measured():
    assert why_no_speed(shape_config("sdar-4b")) == ""
    assert "mixture" in why_no_speed(shape_config("sdar-30b-a3b"))
    assert "576" in why_no_speed(shape_config("smollm2-135m"))
