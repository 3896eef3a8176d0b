"""`t3d bench train`: figures that follow from what was timed, rows of the lengths they claim, files that survive."""

import json
import shlex
import sys
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_runs import start_program

from t3d.bench import LENGTHS, TrainPlan, TrainRow, bench_train, training_report
from t3d.bench.lengths import random_rows
from t3d.bench.shapes import shape_config
from t3d.bench.training import memory_limit, share_of_memory
from t3d.bench.training_report import PUBLIC_SECONDS, REST, Setting, TimedStep, make_row, public_seconds
from t3d.cli import run
from t3d.errors import RequestError, WorkError
from t3d.objectives import OBJECTIVES
from t3d.training.learner import Learner
from t3d.training.phases import PHASES, Phases, TimedPhases

NEEDS_BITSANDBYTES = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
CPU = torch.device("cpu")
TINY = "bench train --shape tiny --lengths real --device cpu"
FEW = TrainPlan(shape="tiny", lengths="real", examples=2, steps=1, warm_up=0, device="cpu")


def result(file):
    return json.loads(file.read_text())


# --- the command ---


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """One run of the command: four examples a step, a batch each."""
    file = tmp_path_factory.mktemp("bench") / "new" / "result.json"
    assert run([*shlex.split(TINY), "--examples", "4", "--tokens-per-batch", "1", "--out", str(file)]) == 0
    return result(file)


def test_the_file_says_what_ran_where(table):
    assert table["device"].startswith("cpu (")
    assert table["dtype"] == "float32"
    assert {"t3d", "python", "torch"} <= set(table["versions"])
    assert table["command"] == shlex.join(["t3d", *sys.argv[1:]])
    assert "100 + 300 on average" in table["note"]
    (row,) = table["rows"]
    assert list(row) == [field.name for field in fields(TrainRow)]


def test_the_row_says_what_was_chosen(table):
    (row,) = table["rows"]
    chosen = {name: row[name] for name in ("shape", "lengths", "objective", "precision", "optimizer", "reference")}
    assert list(chosen.values()) == ["tiny", "real", "t3d", "fp32", "adamw", "copy"]
    assert (row["attention"], row["compile"], row["checkpoint_layers"]) == ("sdpa", False, 0)
    assert (row["adapter"], row["rank"], row["quantize"], row["memory_limit_gib"]) == (None, None, None, None)
    assert (row["block_size"], row["tokens_per_batch"], row["examples_per_step"]) == (4, 1, 4)
    assert (row["mfu"], row["peak_gib"], row["public_seconds_per_example"], row["speedup"]) == (None,) * 4


def test_figures_follow_from_each_other(table):
    (row,) = table["rows"]
    assert len(row["seconds_per_step_runs"]) == 3
    assert row["seconds_per_step"] == sorted(row["seconds_per_step_runs"])[1]
    assert row["seconds_per_example"] == pytest.approx(row["seconds_per_step"] / 4)
    assert list(row["phases"]) == [*PHASES, REST]
    assert min(row["phases"].values()) > 0
    assert sum(row["phases"].values()) == pytest.approx(row["seconds_per_example"])
    assert (row["prompt_tokens"], row["response_tokens"]) == (100, 300)
    assert row["useful_tokens_per_second"] == pytest.approx(300 / row["seconds_per_example"])
    assert row["tokens_per_second"] / row["useful_tokens_per_second"] == pytest.approx(700 / 300, rel=0.02)
    assert 0.98 < row["share_of_real_positions"] <= 1  # rows alone, padded to a multiple of 8
    assert row["num_batches"] == 4
    assert row["preparing_seconds_per_example"] > 0


def test_the_table_and_the_progress_are_shown(tmp_path, capfd):
    out = tmp_path / "result.json"
    assert run([*shlex.split(TINY), "--examples", "2", "--steps", "1", "--warm-up", "1", "--out", str(out)]) == 0
    said, progress = capfd.readouterr()
    (row,) = result(out)["rows"]
    assert f"{row['useful_tokens_per_second']:,.0f}" in said
    assert str(out) in said
    assert "bench tiny: 2/2 steps" in progress


def test_without_out_the_name_says_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = f"{TINY} --examples 1 --steps 1 --warm-up 0 --objective trajectory_ce --precision bf16"
    assert run(shlex.split(command)) == 0
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert str(file.relative_to(tmp_path)) == "bench/results/train-tiny-real-trajectory_ce-bf16.json"
    assert result(file)["dtype"] == "bfloat16"
    plan = TrainPlan("sdar-4b", "full", adapter="lora", quantize="nf4", optimizer="adamw_8bit", memory_gib=23.5)
    assert plan.name == "train-sdar-4b-full-adamw_8bit-lora-nf4-23.5gib"


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_run_without_a_figure_leaves_an_earlier_result(failure, tmp_path, monkeypatch, capfd):
    def fail(*_):
        raise failure

    monkeypatch.setattr(Learner, "step", fail)
    out = tmp_path / "result.json"
    out.write_text("of an earlier run")
    code = run([*shlex.split(TINY), "--examples", "1", "--out", str(out)])
    assert code == (130 if isinstance(failure, KeyboardInterrupt) else 1)
    assert out.read_text() == "of an earlier run"
    assert "a defect" not in capfd.readouterr().err


def test_a_loss_that_is_not_finite_is_no_measurement(tmp_path, monkeypatch):
    monkeypatch.setattr(Learner, "step", lambda *_: {"loss": torch.tensor(float("nan"))})
    with pytest.raises(WorkError, match="not finite"):
        bench_train(FEW, tmp_path / "result.json", "")
    assert not list(tmp_path.iterdir())


WRONG = {
    "no shape": ("bench train --lengths real", "--shape", "--help"),
    "no lengths": ("bench train --shape tiny", "--lengths", "--help"),
    "unknown shape": ("bench train --shape sdar-9b --lengths real", "shape 'sdar-9b'", "sdar-1.7b"),
    "unknown lengths": ("bench train --shape tiny --lengths long", "lengths 'long'", "real or full"),
    "rows longer than the model": ("bench train --shape story-small --lengths full", "1536 tokens", "1024 positions"),
    "unknown objective": (f"{TINY} --objective magic", "objective 'magic'", "trajectory_ce"),
    "no examples": (f"{TINY} --examples 0", "examples", "at least 1"),
    "no steps": (f"{TINY} --steps 0", "steps", "at least 1"),
    "fewer than no steps": (f"{TINY} --warm-up -1", "warm-up", "at least 0"),
    "no tokens": (f"{TINY} --tokens-per-batch 0", "tokens_per_batch", "greater than or equal to 1"),
    "empty blocks": (f"{TINY} --block-size 0", "block_size", "greater than or equal to 1"),
    "unknown precision": (f"{TINY} --precision int8", "precision", "'bf16_pure'"),
    "unknown optimizer": (f"{TINY} --optimizer sgd", "optimizer", "'adamw_8bit'"),
    "unknown adapter": (f"{TINY} --adapter ia3", "adapter", "'dora'"),
    "rank without an adapter": (f"{TINY} --rank 8", "rank", "--adapter lora"),
    "four bits without an adapter": (f"{TINY} --quantize nf4", "quantize needs adapter"),
    "unknown reference": (f"{TINY} --reference disk", "reference.form", "'offload'"),
    "unknown attention": (f"{TINY} --attention fast", "attention", "'sdpa'"),
    "adapter reference without an adapter": (f"{TINY} --reference adapter", "reference.form adapter", "copy"),
    "flex on the CPU": (f"{TINY} --attention flex", "attention flex", "use sdpa"),
    "fewer than no layers": (f"{TINY} --checkpoint-layers -1", "checkpoint_layers", "greater than or equal to 0"),
    "no memory": (f"{TINY} --memory-gib 0", "memory-gib", "more than 0"),
    "memory of the CPU": (f"{TINY} --memory-gib 8", "memory-gib", "leave it out on the CPU"),
    "unknown device": (f"{TINY} --device tpu", "device", "'cuda'"),
    "out is a folder": (f"{TINY} --out .", "--out .", "name a file"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_request(kind, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command, *fragments = WRONG[kind]
    assert run(shlex.split(command)) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    for fragment in fragments:
        assert fragment in err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# --- what is measured ---


@pytest.fixture(scope="module")
def by_objective(tmp_path_factory):
    """A row of each objective, on the same rows."""
    file = tmp_path_factory.mktemp("objectives") / "result.json"
    return {name: bench_train(replace(FEW, objective=name), file, "") for name in OBJECTIVES}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_measured(name, by_objective):
    row, objective = by_objective[name], OBJECTIVES[name]
    expected = ("copy", 10) if objective.needs_reference else ("copy", 0) if objective.needs_teacher else (None, None)
    assert row.objective == name
    assert (row.reference, row.reference_refresh_every) == expected
    assert ("reference" in row.phases) == (row.reference is not None)
    assert row.tflop_per_example > 0


def test_a_reference_costs_one_forward_more(by_objective):
    """Student's forward and twice that backward; the same noise on the same rows."""
    assert by_objective["ddo"].tflop_per_example == by_objective["t3d"].tflop_per_example
    without = by_objective["trajectory_ce"].tflop_per_example
    assert by_objective["t3d"].tflop_per_example == pytest.approx(without * 4 / 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter": "lora", "rank": 4},
        {"adapter": "dora", "rank": 4, "reference": "copy"},
        {"reference": "offload", "precision": "bf16"},
        {"checkpoint_layers": 1, "block_size": 8},
        pytest.param({"adapter": "lora", "rank": 4, "quantize": "nf4"}, marks=NEEDS_BITSANDBYTES),
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_what_is_asked_for_is_what_runs(changes, by_objective, tmp_path):
    row = asdict(bench_train(replace(FEW, **changes), tmp_path / "result.json", ""))
    chosen = {"reference": "adapter" if "adapter" in changes else "copy", **changes}
    assert {name: row[name] for name in chosen} == chosen
    if "adapter" in changes:  # its backward leaves out the gradients of the frozen weights: three forwards of four
        assert row["tflop_per_example"] == pytest.approx(by_objective["t3d"].tflop_per_example * 3 / 4)


def test_full_rows_have_no_padding(tmp_path):
    """1,536 clean and 1,024 noisy tokens; all four batches of one row."""
    row = bench_train(replace(FEW, lengths="full", objective="trajectory_ce", examples=1), tmp_path / "result.json", "")
    assert (row.prompt_tokens, row.response_tokens, row.share_of_real_positions) == (512, 1024, 1)
    assert row.tokens_per_second * row.seconds_per_example == pytest.approx(2560)
    # Products of two layers over 2,560 tokens; each of the 384 clean blocks sees itself and what is before, each of the
    # 256 noisy ones the clean blocks before and itself: the same number. Hidden tokens: all, or 3/4, 1/2, 1/4 of them.
    products = 2 * 2 * (32 * (2 * 32 + 2 * 16) + 3 * 32 * 48) * 2560
    pairs = sum(4 * 4 * (block + 1) for block in range(384)) + sum(4 * 4 * (block + 1) for block in range(128, 384))
    attention = 4 * 2 * 32 * pairs
    forwards = [products + attention + 2 * 64 * 32 * hidden for hidden in (1024, 768, 512, 256)]
    assert min(abs(row.tflop_per_example * 1e12 - 3 * forward) for forward in forwards) < 1


TOGETHER = """
import sys
from t3d.cli import run
line = "bench train --shape tiny --lengths real --device cpu --examples 5 --steps 1 --warm-up 0 --tokens-per-batch 1"
sys.exit(run([*line.split(), "--strategy", "fsdp", "--out", sys.argv[1]]))
"""


def test_processes_share_what_one_would_do(tmp_path):
    """Of five examples one has three batches, the other two and one without an example."""
    alone = bench_train(replace(FEW, examples=5, tokens_per_batch=1), tmp_path / "alone.json", "")
    processes = start_program(TOGETHER, tmp_path / "row.json", 2)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    (row,) = result(tmp_path / "row.json")["rows"]
    assert (row["processes"], row["strategy"], row["gradients"]) == (2, "fsdp", "whole")
    assert (alone.processes, alone.strategy, alone.gradients) == (1, None, None)
    assert (alone.num_batches, row["num_batches"]) == (5, 3)
    assert row["examples_per_second"] == pytest.approx(5 / row["seconds_per_step"])
    assert row["tflop_per_example"] == pytest.approx(alone.tflop_per_example)
    tokens = alone.tokens_per_second * alone.seconds_per_step
    assert row["tokens_per_second"] * row["seconds_per_step"] == pytest.approx(tokens)
    assert sum("seconds a step" in output for output in outputs) == 1  # one of them speaks


def test_the_learner_names_its_parts(tmp_path, monkeypatch):
    """The reference judges the whole step first; each batch goes forward and back; one update."""
    heard = []

    class Recorder(Phases):
        @contextmanager
        def __call__(self, name):
            heard.append(name)
            yield

        def seconds(self):
            return dict.fromkeys(heard, 0.0)

    monkeypatch.setattr("t3d.bench.training.TimedPhases", lambda device: Recorder())
    row = bench_train(replace(FEW, examples=3, tokens_per_batch=1), tmp_path / "result.json", "")
    assert row.num_batches == 3
    assert heard == ["reference", *["forward", "backward"] * 3, "optimizer"]


def test_phases_add_up_by_a_fake_clock():
    moments = iter([0.0, 1.0, 10.0, 12.5, 20.0, 20.25])
    phases = TimedPhases(CPU, clock=lambda: next(moments))
    for name in ("forward", "backward", "forward"):
        with phases(name):
            pass
    assert phases.seconds() == {"forward": 1.25, "backward": 2.5}
    assert phases.seconds() == {}  # each stretch counts once


def test_a_failing_part_is_not_counted_and_not_hidden():
    phases = TimedPhases(CPU)
    with pytest.raises(ValueError, match="torn"), phases("forward"):
        raise ValueError("torn")
    assert phases.seconds() == {}


# --- rows to train on ---


@given(st.integers(1, 300), st.sampled_from(sorted(LENGTHS)))
def test_lengths_are_spread_evenly_about_their_mean(count, name):
    config, lengths = shape_config("tiny"), LENGTHS[name]
    rows = random_rows(lengths, count, config)
    for (low, high), sizes in (
        (lengths.prompt, sorted(len(row.prompt_ids) for row in rows)),
        (lengths.response, sorted(len(row.response_ids) for row in rows)),
    ):
        assert sum(sizes) * 2 == (low + high) * count
        if count > 1:
            assert (sizes[0], sizes[-1]) == (low, high)
            gaps = np.diff(sizes)
            assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("other_key", [(1, 0), (0, 1)], ids=["seed", "step"])
def test_rows_are_valid_and_hang_on_seed_and_step(other_key):
    config = shape_config("tiny")
    first, again, other = (random_rows(LENGTHS["real"], 20, config, *key) for key in ((0, 0), (0, 0), other_key))
    for row, same, different in zip(first, again, other, strict=True):
        assert sorted(row.reveal_step) == list(range(1, len(row.response_ids) + 1))
        assert np.array_equal(row.response_ids, same.response_ids)
        assert not np.array_equal(row.response_ids, different.response_ids)
    shown = {int(token) for row in first for token in (*row.prompt_ids, *row.response_ids)}
    assert shown == set(range(config.vocab_size)) - {config.mask_token_id}
    assert len({row.row_id for row in first}) == 20


# --- from timed steps to a row ---

SETTING = Setting(
    shape="sdar-1.7b",
    lengths="real",
    objective="t3d",
    precision="bf16",
    optimizer="adamw",
    adapter=None,
    rank=None,
    quantize=None,
    reference="copy",
    reference_refresh_every=10,
    attention="flex",
    compile=True,
    checkpoint_layers=0,
    tokens_per_batch=100,
    block_size=4,
    processes=1,
    strategy=None,
    gradients=None,
    examples_per_step=2,
    memory_limit_gib=None,
)


def step(seconds, **changes):
    known = {
        "phases": {"optimizer": 0.5, "forward": 1.0},
        "preparing_seconds": 0.25,
        "num_batches": 3,
        "num_positions": 1600,
        "num_tokens": 1200,
        "num_prompt_tokens": 200,
        "num_response_tokens": 600,
        "num_flops": 6e12,
    }
    return TimedStep(seconds, **{**known, **changes})


def test_a_row_by_hand(monkeypatch):
    """The median step's own figures: two examples of 100 + 300 tokens in 4 s."""
    monkeypatch.setattr(training_report, "peak_flops", lambda device: 3e12)
    monkeypatch.setattr(training_report, "device_name", lambda device: "NVIDIA H200")
    steps = [step(9.0, num_tokens=7, num_flops=7), step(4.0), step(1.0, phases={"forward": 1.0}, num_positions=7)]
    assert asdict(make_row(SETTING, steps, CPU, [70.5])) == {
        **asdict(SETTING),
        "prompt_tokens": 100,
        "response_tokens": 300,
        "num_batches": 3,
        "seconds_per_step": 4.0,
        "seconds_per_step_runs": [9.0, 4.0, 1.0],
        "seconds_per_example": 2.0,
        "examples_per_second": 0.5,
        "phases": {"forward": 0.5, "optimizer": 0.25, "rest": 1.25},
        "preparing_seconds_per_example": 0.125,
        "useful_tokens_per_second": 150,
        "tokens_per_second": 300,
        "share_of_real_positions": 0.75,
        "tflop_per_example": 3.0,
        "mfu": 0.5,
        "peak_gib": 70.5,
        "peak_gib_by_process": [70.5],
        "public_seconds_per_example": 0.371,
        "speedup": 0.371 / 2,
    }


def test_of_two_steps_the_slower_counts():
    assert make_row(SETTING, [step(1.0), step(2.0)], CPU).seconds_per_step == 2.0


def test_the_public_code_stands_beside_the_same_task_on_the_same_device_only():
    for (shape, lengths), seconds in PUBLIC_SECONDS.items():
        assert public_seconds(replace(SETTING, shape=shape, lengths=lengths), "NVIDIA H200") == seconds
    assert public_seconds(replace(SETTING, shape="sdar-4b", lengths="full"), "NVIDIA H200") is None
    assert public_seconds(replace(SETTING, objective="sft"), "NVIDIA H200") is None
    assert public_seconds(replace(SETTING, adapter="lora"), "NVIDIA H200") is None
    assert public_seconds(SETTING, "NVIDIA A100") is None


def test_a_memory_limit_is_a_share_of_the_device(monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=96 * 2**30), raising=True
    )
    cuda = torch.device("cuda")
    assert share_of_memory(24, cuda) == 0.25
    with pytest.raises(RequestError, match=r"memory-gib 97: the device has 96\.0 GiB"):
        share_of_memory(97, cuda)


def test_running_out_of_memory_names_the_cures():
    with pytest.raises(WorkError, match="the device's memory") as refusal, memory_limit(None, CPU):
        raise torch.OutOfMemoryError("CUDA out of memory")
    for option in ("--tokens-per-batch", "--checkpoint-layers", "--reference", "--optimizer", "--adapter"):
        assert option in str(refusal.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_row_on_a_gpu(tmp_path):
    plan = TrainPlan("story-small", "real", examples=16, steps=2, memory_gib=16, device="cuda")
    row = bench_train(plan, tmp_path / "result.json", "")
    assert row.precision == "bf16"
    assert 0 < row.peak_gib <= 16
    assert row.mfu is None or 0 < row.mfu < 1
    assert sum(row.phases.values()) == pytest.approx(row.seconds_per_example)
    assert min(row.phases[name] for name in PHASES) > 0
    with pytest.raises(WorkError, match=r"--memory-gib 0\.01"):
        bench_train(replace(plan, memory_gib=0.01), tmp_path / "small.json", "")
    assert not (tmp_path / "small.json").exists()
