"""`t3d bench rollout`: rows that say what was measured, a roofline by hand, files that survive."""

import json
import shlex
import sys

import numpy as np
import pytest
import torch

from t3d.bench import SHAPES, Plan, Queue
from t3d.bench.batches import BatchBench
from t3d.bench.plan import BACKENDS
from t3d.bench.report import Row, make_row
from t3d.bench.roofline import Ceilings, Cost, ModelFacts, decode_cost, floor_seconds, model_facts, prefill_cost
from t3d.bench.shapes import build_model, random_prompts, shape_config
from t3d.bench.sustained import NUM_PARTS, QueueBench, num_new_tokens
from t3d.bench.timing import Stretch, check_length
from t3d.cli import run
from t3d.engine.continuous import ContinuousEngine
from t3d.engine.continuous.counters import Counters
from t3d.engine.continuous.sequence import Sequence
from t3d.engine.request import check_request
from t3d.errors import WorkError
from t3d.types import Decoding, Generation

CPU = torch.device("cpu")
TINY = "bench rollout --shape tiny --device cpu --prompt-tokens 8 --new-tokens 16 --repeats 2"


@pytest.fixture(scope="module")
def model():
    return build_model(shape_config("tiny"), CPU, torch.float32)


def result(file):
    return json.loads(file.read_text())


def make_plan(**fields):
    decodings = (Decoding(block_size=4, steps_per_block=2, max_new_tokens=8),)
    return Plan(**{"shape": "tiny", "concurrencies": (3,), "decodings": decodings, "prompt_tokens": 8, **fields})


# --- the command ---


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """One run of the command: two numbers of requests, three of steps."""
    file = tmp_path_factory.mktemp("bench") / "new" / "result.json"
    assert run([*shlex.split(TINY), "--concurrency", "1,3", "--out", str(file)]) == 0
    return result(file)


def test_the_file_says_what_ran_where(table):
    assert table["device"].startswith("cpu (")
    assert table["dtype"] == "float32"
    assert table["ceilings"] is None
    assert {"t3d", "python", "torch"} <= set(table["versions"])
    assert table["command"] == shlex.join(["t3d", *sys.argv[1:]])
    assert "prefill included" in table["note"]


def test_a_row_for_each_number_of_requests_and_steps(table):
    rows = table["rows"]
    assert [(row["concurrency"], row["steps_per_block"]) for row in rows] == [(n, t) for n in (1, 3) for t in (1, 2, 4)]
    for row in rows:
        assert list(row) == list(Row.__slots__)
        assert row["new_tokens"] == 16
        assert row["num_requests"] == row["concurrency"]
        assert len(row["tokens_per_second_runs"]) == 2
        assert row["tokens_per_second"] == pytest.approx(sum(row["tokens_per_second_runs"]) / 2)
        assert 0 < row["seconds_to_first_block"] <= row["median_seconds_to_first_block"] < row["seconds"]
        assert row["roofline_share"] is None
        assert row["num_preemptions"] == 0


def test_forwards_are_exact_under_a_static_rule(table):
    for row in table["rows"]:
        assert row["forwards_per_token"] == row["steps_per_block"] / row["block_size"]
        assert row["tokens_per_forward"] == 16 / (1 + 4 * row["steps_per_block"])  # prefill, and four blocks
        device_forwards = row["forwards_per_second"] * row["seconds"] / 2
        assert device_forwards == pytest.approx(1 + 4 * row["steps_per_block"])


def test_the_plain_backend_has_the_same_forwards(tmp_path):
    forwards = []
    for backend in BACKENDS:
        out = tmp_path / f"{backend}.json"
        options = f"--backend {backend} --concurrency 2 --requests-per-slot 2 --prompt-tokens 7 --rule sequential"
        assert run([*shlex.split(f"{TINY} {options}"), "--out", str(out)]) == 0
        forwards.append([(row["forwards_per_token"], row["tokens_per_forward"]) for row in result(out)["rows"]])
        assert all(row["num_requests"] == 4 for row in result(out)["rows"])
    assert forwards[0] == forwards[1]
    (plain,) = {(row["forwards_per_second"], row["num_preemptions"]) for row in result(out)["rows"]}
    assert plain == (None, None)


def test_the_table_is_shown(tmp_path, capfd):
    out = tmp_path / "result.json"
    assert run([*shlex.split(TINY), "--concurrency", "2", "--steps-per-block", "4", "--out", str(out)]) == 0
    said, progress = capfd.readouterr()
    (row,) = result(out)["rows"]
    assert f"{row['tokens_per_second']:,.0f}" in said
    assert str(out) in said
    assert "bench tiny: 3/3 runs" in progress  # one to warm up, two timed


def test_a_full_queue(tmp_path):
    out = tmp_path / "queue.json"
    queue = "--queue 5000 --answer-tokens 3-20 --seconds 1 --warm-up 0.2 --concurrency 4 --steps-per-block 2"
    assert run([*shlex.split(f"{TINY} {queue}"), "--out", str(out)]) == 0
    (row,) = result(out)["rows"]
    assert row["mode"] == "queue"
    assert row["new_tokens"] == [3, 20]
    assert 1 <= row["seconds"] < 2
    assert len(row["tokens_per_second_runs"]) == NUM_PARTS
    rates = row["tokens_per_second_runs"]
    assert min(rates) < row["tokens_per_second"] < max(rates)
    assert 0.5 < row["forwards_per_token"] < 0.7  # an answer's last block is denoised whole


def test_an_interrupt_keeps_finished_rows_and_an_earlier_result_until_then(tmp_path, monkeypatch):
    out = tmp_path / "result.json"
    out.write_text("of an earlier run")
    measure, seen = BatchBench.measure, []

    def interrupted(self, decoding, on_run):
        seen.append(out.read_text())
        if len(seen) == 2:
            raise KeyboardInterrupt
        return measure(self, decoding, on_run)

    monkeypatch.setattr(BatchBench, "measure", interrupted)
    assert run([*shlex.split(TINY), "--concurrency", "1", "--out", str(out)]) == 130
    assert seen[0] == "of an earlier run"
    assert [row["steps_per_block"] for row in result(out)["rows"]] == [1]
    assert list(tmp_path.iterdir()) == [out]


WRONG = {
    "no shape": ("bench rollout", "--shape", "--help"),
    "no command": ("bench", "Missing command", "--help"),
    "unknown shape": ("bench rollout --shape sdar-9b", "shape 'sdar-9b'", "sdar-1.7b"),
    "more steps than positions": (f"{TINY} --block-size 2", "steps_per_block must be at most block_size (2)", "not 4"),
    "no steps": (f"{TINY} --steps-per-block 0", "steps_per_block", "at least 1"),
    "steps in words": (f"{TINY} --steps-per-block all", "--steps-per-block 'all'", "whole numbers"),
    "no requests": (f"{TINY} --concurrency 4,0", "concurrency", "at least 1"),
    "empty concurrency": (f"{TINY} --concurrency ,", "--concurrency", "empty"),
    "no repeats": (f"{TINY} --repeats 0", "repeats", "at least 1"),
    "empty slots": (f"{TINY} --requests-per-slot 0", "requests-per-slot", "at least 1"),
    "empty prompts": (f"{TINY} --prompt-tokens 0", "prompt-tokens", "at least 1"),
    "empty answers": (f"{TINY} --new-tokens 0", "max_new_tokens", "at least 1"),
    "answers longer than the model": (f"{TINY} --new-tokens 4090", "max_new_tokens (4090)", "4096 positions"),
    "unknown rule": (f"{TINY} --rule magic", "rule 'magic'", "low_confidence_static"),
    "threshold of zero": (f"{TINY} --threshold 0", "threshold", "(0, 1]"),
    "unknown backend": (f"{TINY} --backend fast", "backend 'fast'", "continuous"),
    "no memory": (f"{TINY} --memory-gib 0", "memory-gib", "more than 0"),
    "too little memory": (f"{TINY} --memory-gib 0.000001", "pages", "raise memory_gib"),
    "unknown device": (f"{TINY} --device tpu", "device 'tpu'", "use cpu"),
    "unknown dtype": (f"{TINY} --dtype int8", "dtype 'int8'", "float32"),
    "out is a folder": (f"{TINY} --out .", "--out .", "name a file"),
    "a queue's option without one": (f"{TINY} --seconds 3", "--seconds", "--queue"),
    "queue on the plain backend": (f"{TINY} --queue 999 --backend plain", "--queue", "continuous"),
    "queue shorter than the slots": (f"{TINY} --queue 256", "queue of 256", "queue more"),
    "lengths in words": (f"{TINY} --queue 999 --answer-tokens long", "--answer-tokens 'long'", "50-2000"),
    "lengths the wrong way": (f"{TINY} --queue 999 --answer-tokens 9-3", "answer-tokens 9-3", "50-2000"),
    "a queue's answers longer than the model": (f"{TINY} --queue 999 --answer-tokens 9-5000", "(5000)", "positions"),
    "no seconds": (f"{TINY} --queue 999 --seconds 0", "seconds", "more than 0"),
    "seconds without end": (f"{TINY} --queue 999 --warm-up inf", "warm-up", "more than 0"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_request(kind, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bench" / "results").mkdir(parents=True)
    command, *fragments = WRONG[kind]
    assert run(shlex.split(command)) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    for fragment in fragments:
        assert fragment in err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# --- what is timed ---


def test_counters_of_a_run_are_those_by_hand(model):
    """Three requests, two prompt blocks, two answer blocks, two steps each."""
    runs = BatchBench(model, make_plan(repeats=2), 3).measure(make_plan().decodings[0], lambda run: None)
    for measured in runs:
        assert measured.num_tokens == 24
        assert measured.num_decode_forwards == 12
        assert measured.num_prefill_forwards == 3
        assert measured.counters == Counters(
            num_steps=4,
            num_rows=12,
            num_commits=3,  # the first block rides along with the second; the last one needs no cache
            num_masked=3 * (4 + 2 + 4 + 2),
            num_context=3 * (12 + 12 + 16 + 16),
            num_prefills=1,
            num_prefill_tokens=24,
        )


def test_no_run_finds_prompts_of_an_earlier_one_in_the_cache(model):
    plan = make_plan(prompt_tokens=130)  # two pages, and some
    for measured in BatchBench(model, plan, 2).measure(plan.decodings[0], lambda run: None):
        assert measured.counters.num_shared_tokens == 0
        assert measured.counters.num_prefill_tokens == 2 * 128


def test_tokens_of_blocks_add_up_to_the_answers(model):
    """Whatever prompt and answer leave over at the ends of the block grid."""
    requests = [
        check_request(index, [1] * prompt_length, Decoding(block_size=4, max_new_tokens=length), 0, (), model.config)
        for index, (prompt_length, length) in enumerate([(8, 8), (7, 1), (7, 2), (5, 9), (3, 1), (4, 3), (6, 13)])
    ]
    counts = [0] * len(requests)

    def count(sequence):
        assert 1 <= num_new_tokens(sequence) <= 4
        counts[sequence.request.index] += num_new_tokens(sequence)

    core = ContinuousEngine(model).core_for(requests)
    for request in requests:
        core.submit(Sequence(request, request.index, on_block=count))
    while core.has_work:
        core.step()
    assert counts == [request.decoding.max_new_tokens for request in requests]


def test_a_queue_that_runs_dry_is_refused(model):
    queue = Queue(num_requests=5, answer_tokens=(1, 4), seconds=60, warm_up_seconds=60)
    plan = make_plan(queue=queue)
    with pytest.raises(WorkError, match="ran dry"):
        QueueBench(model, plan, queue, 2).measure(plan.decodings[0], lambda part: None)


def test_answers_of_another_length_are_refused():
    answer = Generation([1], [2, 3], [1, 1], [0.5, 0.5], 2, "length", 0)
    check_length(answer, 2)
    with pytest.raises(WorkError, match="2 of 3"):
        check_length(answer, 3)
    answer.finish_reason = "stop"
    with pytest.raises(WorkError, match="stop"):
        check_length(answer, 2)


def test_prompts_hold_every_token_but_the_mask():
    config = shape_config("story-small")
    prompts = random_prompts(config, 20, 1000, np.random.default_rng(0))
    assert {token for prompt in prompts for token in prompt} == set(range(config.vocab_size)) - {config.mask_token_id}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_complete(name):
    config = shape_config(name)
    assert 0 <= config.mask_token_id < config.vocab_size
    assert config.max_position_embeddings >= 128 + 512  # the command's defaults


def test_weights_are_random_in_the_dtype_asked_for():
    first, second, third = (build_model(shape_config("tiny"), CPU, torch.bfloat16, seed) for seed in (0, 0, 1))
    for name, weight in first.named_parameters():
        assert weight.dtype == torch.bfloat16
        assert weight.isfinite().all()
        assert torch.equal(weight, second.get_parameter(name))
    assert not torch.equal(first.lm_head.weight, third.lm_head.weight)
    assert torch.get_default_dtype() == torch.float32


# --- the roofline ---

FACTS = ModelFacts(
    num_layers=2,
    before_attention=10,
    after_attention=30,
    head=100,
    query_width=8,
    bytes_per_position=16,
    itemsize=2,
)


def test_facts_of_the_1_7b_shape():
    facts = model_facts(shape_config("sdar-1.7b"), torch.bfloat16)
    assert facts.layer_parameters == 28 * (2048 * (2048 + 2 * 1024) + 2048 * 2048 + 3 * 2048 * 6144)
    assert facts.head == 2048 * 151_936
    assert facts.bytes_per_position == 114_688  # 28 layers of keys and values, 8 heads of 128, 2 bytes
    # The norms are all that is missing: two of a layer, those of queries and keys, the last.
    model = build_model(shape_config("tiny"), CPU, torch.float32)
    tiny = model_facts(shape_config("tiny"), torch.float32)
    norms = 2 * (2 * 32 + 2 * 8) + 32
    assert tiny.layer_parameters + tiny.head + norms == sum(weight.numel() for weight in model.parameters())


def test_decode_cost_by_hand():
    """Two steps of three rows: 5 tokens' context on average and blocks of 2; one block commits."""
    counters = Counters(num_steps=2, num_rows=6, num_commits=1, num_masked=9, num_context=30)
    tokens = 2 * (6 + 1)
    weights = 2 * (2 * 40 + 100) * 2  # steps, parameters, bytes
    stored = (30 + tokens) * 16
    matrices = 2 * 80 * tokens + 2 * 100 * 9
    seen = 2 * 30 + 2 * (5 - 2)  # by the active blocks; by the finished one, which does not see the active one
    assert decode_cost(FACTS, 2, counters) == Cost(weights + stored, matrices + 4 * 2 * 8 * seen)


def test_prefill_cost_by_hand():
    """One forward of twelve tokens, which ends before the last layer's attention."""
    counters = Counters(num_prefills=1, num_prefill_tokens=12)
    parameters = 2 * 40 - 30
    cost = Cost(parameters * 2 + 12 * 16, 2 * parameters * 12 + 4 * 1 * 8 * 12 * 3.5)
    assert prefill_cost(FACTS, 3.5, counters) == cost


def test_work_takes_as_long_as_the_scarcer_resource():
    cost = Cost(num_bytes=600, num_operations=1000)
    assert cost.seconds(Ceilings(bytes_per_second=100, operations_per_second=1000)) == 6
    assert cost.seconds(Ceilings(bytes_per_second=1000, operations_per_second=100)) == 10


def test_floor_adds_prefill_and_decoding():
    """Prompts of 7 in blocks of 2: 6 are prefilled and see (2 + 2 + 4 + 4 + 6 + 6) / 6 = 4 positions on average."""
    counters = Counters(num_steps=1, num_rows=1, num_masked=2, num_context=8, num_prefills=1, num_prefill_tokens=6)
    ceilings = Ceilings(bytes_per_second=50, operations_per_second=1e9)
    seconds = floor_seconds(FACTS, 2, 7, counters, ceilings)
    assert seconds == pytest.approx((180 * 2 + (8 + 2) * 16) / 50 + (50 * 2 + 6 * 16) / 50)
    slow_matrices = Ceilings(bytes_per_second=1e9, operations_per_second=10)
    operations = decode_cost(FACTS, 2, counters).num_operations + prefill_cost(FACTS, 4, counters).num_operations
    assert floor_seconds(FACTS, 2, 7, counters, slow_matrices) == pytest.approx(operations / 10)


def test_no_work_takes_no_time():
    assert floor_seconds(FACTS, 4, 0, Counters(), Ceilings(1, 1)) == 0


def test_roofline_share_is_floor_over_time():
    counters = Counters(num_steps=4, num_rows=4, num_masked=8, num_context=60, num_prefills=1, num_prefill_tokens=8)
    ceilings = Ceilings(1e6, 1e9)
    floor = floor_seconds(FACTS, 4, 8, counters, ceilings)
    stretches = [Stretch(2 * floor, 8, 4, 1, counters, [1.0]), Stretch(6 * floor, 8, 4, 1, counters, [3.0])]
    row = make_row(make_plan(), 1, make_plan().decodings[0], stretches, FACTS, ceilings, CPU)
    assert row.roofline_share == pytest.approx(2 / 8)
    assert row.tokens_per_second == pytest.approx((8 / (2 * floor) + 8 / (6 * floor)) / 2)  # of two, the middle
    assert row.seconds_to_first_block == 2
    assert row.forwards_per_second == pytest.approx(10 / (8 * floor))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_roofline_share_on_a_gpu(tmp_path):
    out = tmp_path / "result.json"
    command = "bench rollout --shape story-small --concurrency 8 --new-tokens 64 --repeats 1 --device cuda"
    assert run([*shlex.split(command), "--out", str(out)]) == 0
    assert result(out)["dtype"] == "bfloat16"
    assert result(out)["ceilings"]["bytes_per_second"] > 1e11
    for row in result(out)["rows"]:
        assert 0 < row["roofline_share"] < 1
        assert row["peak_memory_gib"] > 0
