"""Evaluation: the figures are recomputed here from the answers, and the command line does what it says."""

import json
import signal
from collections import Counter
from dataclasses import replace
from math import comb, log
from time import perf_counter

import numpy as np
import pytest
from paper_exam import Dice, judge, paper_benchmark

from t3d.cli import run
from t3d.cli_eval import benchmarks_of
from t3d.config import PromptConfig
from t3d.engine import Engine
from t3d.errors import RequestError
from t3d.evaluation import (
    BENCHMARKS,
    evaluate,
    get_benchmark,
    prepare,
    read_result,
    settings_to_try,
    take_exam,
    write_result,
)
from t3d.evaluation.answers import Answer, figures_of
from t3d.evaluation.diversity import vote_of
from t3d.evaluation.exam import seeds_of
from t3d.evaluation.metrics import bootstrap_interval, wilson_interval
from t3d.evaluation.settings import label_of
from t3d.models import load_model
from t3d.tasks import TASKS, get_task
from t3d.types import Decoding

LIMIT = 12
SAMPLES = 3


def test_settings_to_try():
    base = Decoding(rule="sequential", temperature=0.5, max_new_tokens=9)
    settings = settings_to_try([1, 2, 4], [0.9, 0.5], base, model_block_size=4)
    assert [(each.rule, each.block_size, each.steps_per_block) for each in settings] == [
        ("sequential", 4, 4),
        ("sequential", 4, 2),
        ("sequential", 4, 1),
        ("low_confidence_dynamic", 4, 4),
        ("low_confidence_dynamic", 4, 4),
    ]
    assert [each.threshold for each in settings[3:]] == [0.9, 0.5]
    assert all((each.temperature, each.max_new_tokens) == (0.5, 9) for each in settings)
    wider = settings_to_try([8], [], Decoding(block_size=16), model_block_size=4)
    assert [(each.block_size, each.steps_per_block) for each in wider] == [(16, 2)]
    for wrong in (3, 0, -1, 8):
        with pytest.raises(RequestError, match=f"{wrong} does not divide the block size 4"):
            settings_to_try([wrong], [], base, model_block_size=4)


def test_settings_are_there_and_are_told_apart():
    labels = [
        label_of(each)
        for rule in ("low_confidence_static", "sequential", "low_confidence_dynamic")
        for each in settings_to_try([1, 2], [0.7] if rule == "sequential" else [], Decoding(rule=rule), 4)
    ]
    assert labels == [
        "1 token/step",
        "2 tokens/step",
        "1 token/step, sequential",
        "2 tokens/step, sequential",
        "dynamic > 0.7",
        "dynamic > 0.9",
        "dynamic > 0.9, at least 2/step",
    ]
    assert [label_of(each) for each in settings_to_try([1], [], Decoding(rule="entropy_bounded"), 4)] == [
        "entropy <= 0.5"
    ]
    bounded = settings_to_try([1], [0.9], Decoding(), 4, [0.1, 0.0])
    assert [label_of(each) for each in bounded[2:]] == ["entropy <= 0.1", "entropy <= 0"]
    assert [each.steps_per_block for each in bounded[2:]] == [4, 4]
    with pytest.raises(RequestError, match=r"entropy <= 0\.5 would be measured twice: leave out --rule"):
        settings_to_try([1], [], Decoding(rule="entropy_bounded"), 4, [0.5])
    with pytest.raises(RequestError, match="entropy_bound must be 0 or more, not -1"):
        settings_to_try([], [], Decoding(), 4, [-1.0])
    for numbers, thresholds, rule in (
        ([1, 1], [], "sequential"),
        ([1, 2], [], "entropy_bounded"),
        ([], [0.5, 0.5], ""),
    ):
        with pytest.raises(RequestError, match="twice"):
            settings_to_try(numbers, thresholds, Decoding(rule=rule), 4)
    with pytest.raises(RequestError, match="nothing to evaluate"):
        settings_to_try([], [], Decoding(), 4)


def test_every_task_is_a_benchmark():
    assert set(BENCHMARKS) == set(TASKS)
    story = get_benchmark("story")
    assert (story.name, story.task.name, story.split, story.data) == ("story", "story", "test", None)
    assert story.problems(limit=3, seed=1) == get_task("story").problems("test", 3, 1)
    assert len(story.problems()) == story.task.default_limit
    with pytest.raises(RequestError, match="'gsm9k' is unknown"):
        get_benchmark("gsm9k")


@pytest.fixture(scope="module")
def engine(model_folder):
    return Engine.from_pretrained(model_folder, device="cpu")


@pytest.fixture(scope="module")
def sampled(engine, tmp_path_factory):
    """(result, answers) of several samples a problem, by the real engine and a grader of ours."""
    out = tmp_path_factory.mktemp("evaluated")
    settings = settings_to_try([1, 4], [0.2], Decoding(max_new_tokens=30, temperature=1.0, top_k=50), 4)
    result = evaluate(
        engine, paper_benchmark(LIMIT), settings, name="tiny", model="a/b", seed=3, samples=SAMPLES, out=out
    )
    return result, answers_in(out)


def answers_in(folder):
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_figures_are_those_of_the_answers(sampled):
    result, answers = sampled
    assert [each.label for each in result.settings] == ["1 token/step", "4 tokens/step", "dynamic > 0.2"]
    assert len(answers) == 3 * LIMIT * SAMPLES
    for setting in result.settings:
        own = [answer for answer in answers if answer["setting"] == setting.label]
        tokens, forwards, steps = (sum(each[name] for each in own) for name in ("num_tokens", "num_forwards", "steps"))
        right = sum(each["right"] for each in own)
        assert (setting.num_problems, setting.num_samples, setting.num_right) == (LIMIT, SAMPLES, right)
        assert 0 < right < len(own)
        assert setting.accuracy == right / len(own)
        assert (setting.num_tokens, setting.num_forwards) == (tokens, forwards)
        assert setting.tokens_per_forward == tokens / forwards
        assert setting.mean_steps == pytest.approx(steps / len(own))
        assert setting.measured_tokens_per_step == pytest.approx(tokens / steps)
        assert setting.mean_length == tokens / len(own)
        assert setting.tokens_per_second == pytest.approx(tokens / setting.seconds)
        assert setting.latency_median == pytest.approx(np.median([each["seconds"] for each in own]))
        assert setting.latency_p95 == pytest.approx(np.percentile([each["seconds"] for each in own], 95))
        assert setting.finish_reasons == Counter(each["finish_reason"] for each in own)
        assert setting.verdicts == Counter(each["outcome"] for each in own)


def test_chances_and_intervals_are_those_of_the_answers(sampled):
    result, answers = sampled
    for setting in result.settings:
        right = Counter({f"test/{index}": 0 for index in range(LIMIT)})
        right.update(each["problem_id"] for each in answers if each["setting"] == setting.label and each["right"])
        assert len(right) == LIMIT
        misses = [comb(SAMPLES - count, 2) / comb(SAMPLES, 2) for count in right.values()]
        assert setting.pass_at_k == pytest.approx({1: setting.accuracy, 2: 1 - sum(misses) / LIMIT})
        assert setting.interval == bootstrap_interval([right[f"test/{index}"] / SAMPLES for index in range(LIMIT)])
        assert setting.interval[0] < setting.accuracy < setting.interval[1]


def test_what_sampling_finds_is_that_of_the_answers(sampled):
    result, answers = sampled
    assert any(each["answer"] is None for each in answers)
    for setting in result.settings:
        shares, counts, texts = [], [], []
        for index in range(LIMIT):
            own = [a for a in answers if (a["setting"], a["problem_id"]) == (setting.label, f"test/{index}")]
            tally = Counter(vote_of(a["answer"], a["right"]) for a in own if a["answer"] is not None)
            first = [answer for answer in tally if tally[answer] == max(tally.values())]
            shares.append(first.count(vote_of("", True)) / max(1, len(first)))
            counts.append(len(tally))
            texts.append(len({a["response"] for a in own}) / SAMPLES)
        assert setting.majority_accuracy == pytest.approx(sum(shares) / LIMIT)
        assert setting.majority_interval == bootstrap_interval(shares)
        assert setting.distinct_responses == pytest.approx(sum(texts) / LIMIT)
        assert setting.distinct_answers == pytest.approx(sum(counts) / LIMIT)


def test_right_answers_are_kept_by_problem_and_sample(sampled):
    result, answers = sampled
    for setting in result.settings:
        own = {(a["problem_id"], a["sample"]): a["right"] for a in answers if a["setting"] == setting.label}
        in_order = sorted(f"test/{index}" for index in range(LIMIT))
        assert in_order[2] == "test/10"
        expected = [[own[problem, sample] for sample in range(SAMPLES)] for problem in in_order]
        assert setting.rights().tolist() == expected
    assert setting.model_copy(update={"right_answers": None}).rights() is None


def test_right_answers_of_shuffled_problems_are_in_the_same_order(engine):
    engine = Engine(engine.model, engine.tokenizer, backend=Dice())
    settings = settings_to_try([1], [], Decoding(max_new_tokens=12), 4)
    (plain,), (shuffled,) = (
        evaluate(engine, paper_benchmark(40), settings, name="tiny", model="a/b", shuffle=shuffle).settings
        for shuffle in (None, 3)
    )
    assert 0 < plain.num_right < 40
    assert plain.right_answers == shuffled.right_answers


def test_nats_per_token_estimate_the_entropy_of_what_was_drawn_from(engine):
    """One token of two (top-k 2), 300 times: its two probabilities are known, and so is the entropy."""
    decoding = Decoding(max_new_tokens=1, temperature=1.0, top_k=2, rule="sequential")
    exam = prepare(
        engine, paper_benchmark(1), settings_to_try([1], [], decoding, 4), samples=300, prompt=PromptConfig()
    )
    generations = engine.generate([item.prompt_ids for item in exam.items], exam.settings[0])
    probabilities = {each.token_ids[0]: each.confidences[0] for each in generations}.values()
    assert len(probabilities) == 2
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    entropy = -sum(p * log(p) for p in probabilities)
    deviation = sum(p * (log(p) + entropy) ** 2 for p in probabilities) ** 0.5
    measured = take_exam(engine, exam, name="tiny", model="a/b").settings[0].nats_per_token
    assert measured == pytest.approx(entropy, abs=4 * deviation / 300**0.5 + 1e-6)


def test_nats_per_token_by_hand():
    decoding = Decoding(block_size=4, steps_per_block=4)
    answer = Answer("", "", 0, True, "right", None, "1", "", "", 5, 6, 5, 1.0, "stop", 2.0)
    failed = replace(answer, finish_reason="error", surprisal=None, num_tokens=3)
    longer = replace(answer, num_tokens=15, surprisal=4.0)
    assert figures_of(decoding, [answer, longer, failed], 1, 1.0).nats_per_token == 6 / 20
    assert figures_of(decoding, [failed], 1, 1.0).nats_per_token is None


def test_programs_have_no_majority():
    decoding = Decoding(block_size=4, steps_per_block=4)
    answer = Answer("", "", 0, True, "right", "print(1)", None, "", "a", 5, 6, 5, 1.0, "stop", 2.0)
    found = figures_of(decoding, [answer, replace(answer, response="b")], 2, 1.0)
    assert (found.majority_accuracy, found.majority_interval, found.distinct_answers) == (None, None, None)
    assert found.distinct_responses == 1.0


def test_answers_are_in_the_order_of_problems_and_judged_each_by_its_own(sampled):
    _, answers = sampled
    asked = [(f"test/{index}", sample, str(index)) for index in range(LIMIT) for sample in range(SAMPLES)]
    assert [(each["problem_id"], each["sample"], each["reference"]) for each in answers] == 3 * asked
    for each in answers:
        verdict = judge(each["response"])
        found = tuple(each[name] for name in ("right", "outcome", "answer", "detail"))
        assert found == (verdict.right, verdict.outcome, verdict.answer, verdict.detail)
    assert len({each["response"] for each in answers if each["setting"] == "1 token/step"}) > LIMIT


def test_what_is_known_of_a_result(sampled, engine):
    result, _ = sampled
    full, fast, dynamic = result.settings
    assert [each.tokens_per_step for each in result.settings] == [1, 4, None]
    assert [each.threshold for each in result.settings] == [None, None, 0.2]
    assert [each.rule for each in result.settings] == 2 * ["low_confidence_static"] + ["low_confidence_dynamic"]
    assert all((each.temperature, each.top_k, each.max_new_tokens) == (1.0, 50, 30) for each in result.settings)
    assert full.tokens_per_forward < 1 < fast.tokens_per_forward < 4  # prefill counted
    assert full.tokens_per_forward < dynamic.tokens_per_forward
    assert full.tokens_per_forward < full.measured_tokens_per_step <= 1  # below 1 by what follows stop tokens
    assert full.measured_tokens_per_step < dynamic.measured_tokens_per_step < fast.measured_tokens_per_step <= 4
    assert (result.name, result.model, result.benchmark, result.split) == ("tiny", "a/b", "paper", "test")
    assert (result.seed, result.shuffle, result.data) == (3, None, None)
    assert (result.grader, result.isolation) == ("even 1", None)
    assert (result.dtype, result.backend, result.batch_size) == ("float32", "plain", None)
    assert result.device.startswith("cpu")
    assert result.prompt == PromptConfig(style="plain", instruction="", prefix="{prefix}")
    assert {"t3d", "torch", "python"} <= set(result.versions)


def test_one_sample_has_wilson_intervals_and_greedy_ones_repeat(engine):
    settings = settings_to_try([4], [], Decoding(max_new_tokens=12), 4)
    first, second = (
        evaluate(engine, paper_benchmark(), settings, name="tiny", model="a/b", seed=seed) for seed in (0, 1)
    )
    (setting,), (again,) = first.settings, second.settings
    assert setting.interval == wilson_interval(setting.num_right, 7)
    assert setting.pass_at_k == {1: setting.accuracy}
    assert (setting.majority_accuracy, setting.distinct_answers, setting.distinct_responses) == (None, None, None)
    assert setting.nats_per_token > 0  # the surprisal of the greedy path
    assert (setting.num_right, setting.num_tokens, setting.verdicts) == (
        again.num_right,
        again.num_tokens,
        again.verdicts,
    )
    assert first.data_fingerprint == second.data_fingerprint
    assert first.model_fingerprint == second.model_fingerprint


def test_the_interval_of_samples_that_are_all_alike_is_not_a_point():
    decoding = Decoding(block_size=4, steps_per_block=4)
    answer = Answer("", "", 0, True, "right", None, None, "", "", 5, 6, 5, 1.0, "stop", 1.0)
    for right, interval in ((True, wilson_interval(10, 10)), (False, wilson_interval(0, 10))):
        answers = [replace(answer, right=right)] * 20
        assert figures_of(decoding, answers, num_samples=2, seconds=1.0).interval == interval
    some = [replace(answer, right=problem < 3, problem_id=f"{problem}") for problem in range(10) for _ in range(2)]
    assert figures_of(decoding, some, num_samples=2, seconds=1.0).interval == wilson_interval(3, 10)


def responses(engine, tmp_path, name, **options):
    """(setting, problem, sample) -> response."""
    settings = settings_to_try([1, 4], [], Decoding(max_new_tokens=20, temperature=1.0), 4)
    asked = {"name": "tiny", "model": "a/b", "seed": 3, **options}
    evaluate(engine, asked.pop("benchmark", paper_benchmark(9)), settings, out=tmp_path / name, **asked)
    answers = answers_in(tmp_path / name)
    return {(each["setting"], each["problem_id"], each["sample"]): each["response"] for each in answers}


def test_a_sample_hangs_on_nothing_else_that_is_asked(engine, tmp_path):
    all_of_them = responses(engine, tmp_path, "all", samples=3)
    few = responses(engine, tmp_path, "few", samples=2, limit=4)
    shuffled = responses(engine, tmp_path, "shuffled", samples=1, limit=5, shuffle=1)
    assert len(few) == 2 * 2 * 4
    assert len(shuffled) == 2 * 5
    assert {key[1] for key in shuffled} != {f"test/{index}" for index in range(5)}
    for part in (few, shuffled):
        assert part == {key: all_of_them[key] for key in part}
    other = responses(engine, tmp_path, "other", seed=4)
    assert all(other[key] != all_of_them[key] for key in other if key[0] == "1 token/step")


def test_seeds_differ_by_problem_sample_and_seed():
    seeds = [each for seed in range(3) for name in ("a/1", "a/2", "b/1") for each in seeds_of(name, 5, seed)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= each < 2**63 for each in seeds)
    assert seeds_of("a/1", 2, 0) == seeds_of("a/1", 5, 0)[:2]


def test_fingerprints_name_problems_and_prompts_whatever_their_order(engine):
    engine = Engine(engine.model, engine.tokenizer, backend=Dice())

    def fingerprints(**options):
        settings = settings_to_try([1], [], Decoding(max_new_tokens=12), 4)
        asked = {"benchmark": paper_benchmark(), **options}
        result = evaluate(engine, asked.pop("benchmark"), settings, name="tiny", model="a/b", **asked)
        return result.data_fingerprint, result.prompt_fingerprint

    data, prompts = fingerprints()
    assert fingerprints(shuffle=3) == (data, prompts)
    instructed = fingerprints(prompt=PromptConfig(instruction="Say it."))
    assert instructed[0] == data
    assert instructed[1] != prompts
    fewer, other = fingerprints(limit=6), fingerprints(benchmark=replace(paper_benchmark(), split="train"))
    assert len({data, fewer[0], other[0]}) == len({prompts, fewer[1]}) + 1 == 3


def test_responses_that_end_by_an_error_count_as_wrong(engine, tmp_path):
    engine = Engine(engine.model, engine.tokenizer, backend=Dice())
    benchmark, settings = paper_benchmark(40), settings_to_try([1], [], Decoding(max_new_tokens=12), 4)
    result = evaluate(engine, benchmark, settings, name="tiny", model="a/b", out=tmp_path)
    failed = [each for each in answers_in(tmp_path) if each["finish_reason"] == "error"]
    assert 0 < len(failed) < 40
    assert all(not each["right"] and each["detail"] == "the model's logits were not finite" for each in failed)
    (setting,) = result.settings
    assert setting.num_problems == 40
    assert setting.finish_reasons["error"] == setting.verdicts["not_decoded"] == len(failed)
    assert not {each["problem_id"] for each in failed} & set(benchmark.task.graders[0].submitted)


def test_wrong_requests_run_nothing(engine, tmp_path):
    engine = Engine(engine.model, engine.tokenizer, backend=Dice())
    greedy, long = (settings_to_try([1], [], Decoding(max_new_tokens=count), 4) for count in (12, 250))
    for settings, options, said in (
        (greedy, {"samples": 2}, "temperature 0"),
        (greedy, {"samples": 0}, "samples must be at least 1"),
        ([*greedy, *long], {}, r"benchmark paper: the prompt of test/0 \(\d+ tokens\) plus max_new_tokens \(250\)"),
        (greedy, {"prompt": PromptConfig(style="chat")}, "chat template"),
        (greedy, {"benchmark": get_benchmark("story"), "shuffle": 1}, "shuffle"),
    ):
        benchmark = options.pop("benchmark", paper_benchmark())
        with pytest.raises(RequestError, match=said):
            evaluate(engine, benchmark, settings, name="tiny", model="a/b", out=tmp_path / "out", **options)
    assert engine.backend.decoded == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("backend", ["plain", "continuous"])
def test_latency_lies_within_the_wall_time(model_folder, backend):
    """Those that waited in the queue do not count that: of two batches each takes part of the time."""
    engine = Engine(load_model(model_folder, device="cpu"), max_batch_size=2, backend=backend)
    seen, start = [], perf_counter()

    def finish(index, generation):
        seen.append((perf_counter() - start, generation.seconds))

    prompts = [[5, 6, 7, 8, 9 + index] for index in range(4)]
    generations = engine.generate(prompts, Decoding(max_new_tokens=16, stop_token_ids=()), on_finish=finish)
    assert all(generation.seconds > 0 for generation in generations)
    assert all(seconds <= since_start for since_start, seconds in seen)
    assert sum(generation.seconds for generation in generations) < 2.5 * seen[-1][0]  # not 4: two waited for two
    assert replace(generations[0], seconds=99.0) == generations[0]


def test_result_survives_its_file(sampled, tmp_path):
    result, _ = sampled
    write_result(result, tmp_path / "new" / "result.json")
    assert read_result(tmp_path / "new" / "result.json") == result
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["result.json"]


def test_results_of_another_schema_are_told_from_what_is_none(sampled, tmp_path):
    fields = sampled[0].model_dump(mode="json")
    file = tmp_path / "result.json"
    first = ("name", "model", "model_fingerprint", "benchmark", "seed", "device", "versions", "settings")
    for other in ({name: fields[name] for name in first}, {**fields, "schema_version": 4}):
        file.write_text(json.dumps(other))
        with pytest.raises(RequestError, match="run t3d eval again"):
            read_result(file)
    for content in (b"{", b"[]", b"\xff", b'{"settings": []}', json.dumps({**fields, "accuracy": 1}).encode()):
        file.write_bytes(content)
        with pytest.raises(RequestError, match="not a result of t3d eval"):
            read_result(file)


def test_results_of_the_schema_before_are_read(sampled, tmp_path):
    fields = sampled[0].model_dump(mode="json") | {"schema_version": 2}
    added = {"majority_accuracy", "majority_interval", "distinct_answers", "distinct_responses", "nats_per_token"}
    for setting in fields["settings"]:
        for name in added | {"right_answers"}:
            del setting[name]
    (tmp_path / "result.json").write_text(json.dumps(fields))
    read = read_result(tmp_path / "result.json")
    assert read.schema_version == 2
    for old, new in zip(read.settings, sampled[0].settings, strict=True):
        assert old == new.model_copy(update=dict.fromkeys(added | {"right_answers"}))


# The command line

QUICK = "--limit 4 --max-new-tokens 12 --device cpu"


def eval_words(model_folder, out, *more):
    return ["eval", "--model", str(model_folder), *QUICK.split(), "--out", str(out), *more]


def test_eval_end_to_end(model_folder, tmp_path, capsys):
    assert run(eval_words(model_folder, tmp_path / "a", "--name", "first")) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path}/a: result.json, answers.jsonl, accuracy.png" in said
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == ["accuracy.png", "answers.jsonl", "result.json"]
    more = [
        "--tokens-per-step",
        "",
        "--threshold",
        "0.7,0.95",
        "--temperature",
        "0.5",
        "--samples",
        "2",
        "--top-k",
        "9",
    ]
    assert run(eval_words(model_folder, tmp_path / "b", *more)) == 0
    first, second = (read_result(tmp_path / name / "result.json") for name in "ab")
    labels = [each.label for each in first.settings]
    assert labels == ["1 token/step", "2 tokens/step", "4 tokens/step", "dynamic > 0.9"]
    assert [(each.label, each.num_samples, each.top_k) for each in second.settings] == [
        ("dynamic > 0.7", 2, 9),
        ("dynamic > 0.95", 2, 9),
    ]
    assert (first.name, second.name) == ("first", "tiny")
    assert first.data_fingerprint == second.data_fingerprint
    assert (tmp_path / "a" / "accuracy.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_eval_renders_and_encodes_its_prompts_once(model_folder, tmp_path, monkeypatch):
    encoded, encode = [], Engine.encode
    monkeypatch.setattr(Engine, "encode", lambda self, texts: encoded.append(len(texts)) or encode(self, texts))
    assert run(eval_words(model_folder, tmp_path / "a", "--tokens-per-step", "4", "--threshold", "")) == 0
    assert encoded == [4]


def test_eval_of_samples_says_what_sampling_found(model_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    more = ["--temperature", "1", "--samples", "4", "--threshold", "", "--entropy-bound", "0.5,1"]
    assert run(eval_words(model_folder, tmp_path / "a", *more)) == 0
    said = capsys.readouterr().out
    labels = [each.label for each in read_result(tmp_path / "a" / "result.json").settings]
    assert labels == ["1 token/step", "2 tokens/step", "4 tokens/step", "entropy <= 0.5", "entropy <= 1"]
    assert all(words in said for words in ("Sharpness on story", "pass@4", "maj@4", "low_confidence_static keeps"))
    assert run(eval_words(model_folder, tmp_path / "b", "--tokens-per-step", "4", "--threshold", "")) == 0
    assert "Sharpness" not in capsys.readouterr().out


def test_eval_wants_a_name(model_folder, tmp_path, capsys):
    for name in ("", " "):
        assert run(eval_words(model_folder, tmp_path / "a", "--name", name)) == 2
        said = capsys.readouterr().err
        assert "--name is empty" in said
        assert said.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_eval_of_several_benchmarks_is_interrupted_and_resumed(model_folder, tmp_path, capsys, monkeypatch):
    data, out = tmp_path / "sums=1.jsonl", tmp_path / "out"
    data.write_text("".join(json.dumps({"question": f"1 + {i}", "answer": str(1 + i)}) + "\n" for i in range(6)))
    more = ["--benchmark", "story,jsonl", "--data", f"jsonl={data}", "--split", "test", "--tokens-per-step", "1,4"]
    words, advanced = eval_words(model_folder, out, *more, "--threshold", ""), []

    def advance(self, amount=1, **values):
        advanced.append(values)
        if len(advanced) == 13:  # the fifth of eight answers of the second benchmark
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr("t3d.progress._Lines.advance", advance)
        assert run(words) == 130
    assert f"{out}/jsonl keeps what is finished" in capsys.readouterr().err
    assert [set(values) for values in advanced[::4]] == [{"1 token/step"}, {"4 tokens/step"}] * 2
    assert read_result(out / "jsonl" / "result.json").settings[0].num_problems == 4
    before = (out / "story" / "answers.jsonl").stat().st_mtime_ns
    assert run(words) == 2
    assert "--resume goes on with it" in capsys.readouterr().err
    assert run([*words, "--resume"]) == 0
    said = capsys.readouterr().out
    assert (out / "story" / "answers.jsonl").stat().st_mtime_ns == before
    result, answers = read_result(out / "jsonl" / "result.json"), answers_in(out / "jsonl")
    assert (result.data, result.split) == (str(data), "test")
    assert len(answers) == 2 * 4
    undecided = sum(each["outcome"] in ("unparsed", "timeout") for each in answers)
    assert (f"{undecided} unparsed (`outcome` in {out}/jsonl/answers.jsonl)" in said) == (undecided > 0)


def test_unparsed_answers_are_told_and_listed(model_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("t3d.tasks.story.task.judge", lambda text, answer: judge(text))
    assert run(eval_words(model_folder, tmp_path / "a", "--tokens-per-step", "1,2", "--threshold", "")) == 0
    unparsed = sum(each["outcome"] == "unparsed" for each in answers_in(tmp_path / "a"))
    said = capsys.readouterr().out
    assert (f"counted as wrong: {unparsed} unparsed (`outcome` in {tmp_path}/a/answers.jsonl)" in said) == (
        unparsed > 0
    )
    assert ("counted as wrong" in said) == (unparsed > 0)


def test_data_goes_to_its_benchmark():
    def found(names, data, split=None):
        return [(each.name, each.data, each.split) for each in benchmarks_of(names, data, split)]

    assert found(["gsm8k"], ["a=b.jsonl"]) == [("gsm8k", "a=b.jsonl", "test")]
    assert found(["gsm8k"], ["gsm8k=a.jsonl"], "train") == [("gsm8k", "a.jsonl", "train")]
    both = found(["gsm8k", "jsonl"], ["jsonl=b.jsonl", "gsm8k=owner/name@main"])
    assert [each[:2] for each in both] == [("gsm8k", "owner/name@main"), ("jsonl", "b.jsonl")]
    for names, data in (
        (["gsm8k", "mbpp"], ["a.jsonl"]),
        (["gsm8k"], ["mbpp=a.jsonl"]),
        (["gsm8k"], ["a.jsonl", "b.jsonl"]),
        (["gsm8k", "gsm8k"], []),
    ):
        with pytest.raises(RequestError, match=r"--data|--benchmark"):
            found(names, data)
