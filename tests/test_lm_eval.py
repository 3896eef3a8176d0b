"""lm-evaluation-harness on our engine: the real package, on tasks made of local files."""

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from t3d import Decoding, Engine, Generation
from t3d.cli import run
from t3d.errors import RequestError, WorkError
from t3d.tasks import get_task
from t3d.tasks.prompts import render_question

pytest.importorskip("lm_eval")
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.api.registry import get_model
from lm_eval.models.utils import postprocess_generated_text

from t3d.interop.lm_eval.arguments import model_arguments, request_arguments
from t3d.interop.lm_eval.command import run as run_lm_eval
from t3d.interop.lm_eval.model import T3DLM
from t3d.interop.lm_eval.saving import CheckedTracker
from t3d.interop.lm_eval.stopping import cut_at_stop, stop_token_ids

DECODING = Decoding(steps_per_block=2, max_new_tokens=40)
PROMPTS = ["Tom has 3 apples.", "Mia buys 12 pens and", "How many?", "Question: 7 + 5\nAnswer:"]
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def engine(model_folder):
    return Engine.from_pretrained(model_folder, device="cpu")


@pytest.fixture
def lm(engine):
    return T3DLM(engine, DECODING)


def asked(prompt, task="a", **generation_kwargs):
    """A request as the harness makes it."""
    return Instance("generate_until", {}, (prompt, generation_kwargs), 0, metadata=(task, 0, 1))


def spent(lm):
    return lm.get_model_info()["t3d"]


# --- stop strings


@given(st.text("abc", max_size=12), st.lists(st.text("abc", max_size=3), max_size=4))
def test_the_text_ends_at_the_earliest_stop_string(text, until):
    cut = cut_at_stop(text, until)
    assert cut == min((postprocess_generated_text(text, stop, None) for stop in until), key=len, default=text)
    assert not any(stop in cut for stop in until if stop)


@pytest.mark.parametrize(
    "until, expected",
    [([], "a\nb####c"), ([""], "a\nb####c"), (["####", "\n"], "a"), (["####"], "a\nb"), (["d"], "a\nb####c")],
)
def test_stop_strings_by_hand(until, expected):
    assert cut_at_stop("a\nb####c", until) == expected


def test_only_whole_tokens_stop_decoding(engine):
    one, other = engine.encode(["####", "\n"])
    assert stop_token_ids(engine.tokenizer, ["####", "\n", "\n\n", "", "####"]) == tuple(sorted(one + other))


def whole_tokens(tokenizer, token_ids):
    """Texts of the tokens that stand for themselves."""
    pieces = [tokenizer.decode([token_id], skip_special_tokens=True) for token_id in token_ids]
    return [piece for piece in pieces if piece and stop_token_ids(tokenizer, [piece])]


def test_a_stop_token_ends_decoding_and_changes_no_text(lm, engine):
    whole = engine.generate_text([PROMPTS[0], PROMPTS[2]], DECODING)
    untils = [whole_tokens(engine.tokenizer, one.token_ids)[1:3] for one in whole]
    texts = lm.generate_until([asked(PROMPTS[0], until=untils[0]), asked(PROMPTS[2], until=untils[1])])
    assert texts == [cut_at_stop(one.text, until) for one, until in zip(whole, untils, strict=True)]
    assert spent(lm)["num_forwards"] < sum(one.num_forwards for one in whole)
    assert spent(lm)["num_cut_by_until"] == 2


# --- requests


def test_responses_are_the_engines_in_order(lm, engine):
    texts = lm.generate_until([asked(prompt) for prompt in PROMPTS])
    generations = engine.generate_text(PROMPTS, DECODING)
    assert texts == [one.text for one in generations]
    counts = spent(lm)
    assert counts["num_responses"] == len(PROMPTS)
    assert counts["num_tokens"] == sum(len(one.token_ids) for one in generations)
    assert counts["tokens_per_forward"] == counts["num_tokens"] / sum(one.num_forwards for one in generations)


def test_each_request_has_its_own_settings(lm, engine):
    settings = [
        ({"max_gen_toks": 9}, replace(DECODING, max_new_tokens=9)),
        ({"steps_per_block": 4, "max_tokens": 13}, replace(DECODING, steps_per_block=4, max_new_tokens=13)),
        ({"do_sample": True, "top_k": 5, "top_p": 0.8}, replace(DECODING, temperature=1.0, top_k=5, top_p=0.8)),
        ({"do_sample": False, "temperature": 0.7}, DECODING),
        ({"temperature": 0.7, "block_size": 2}, replace(DECODING, temperature=0.7, block_size=2)),
        ({"num_beams": 1, "until": None}, DECODING),
    ]
    prompts = [PROMPTS[0]] * len(settings)
    texts = lm.generate_until([asked(prompts[0], **fields) for fields, _ in settings])
    seeds = [one.seed for one in engine.generate_text(prompts, DECODING)]
    alone = [
        engine.generate_text(prompts[:1], decoding, seeds=[seed])[0].text
        for (_, decoding), seed in zip(settings, seeds, strict=True)
    ]
    assert texts == alone


def test_repeats_differ_and_other_tasks_do_not_matter(engine):
    lm = T3DLM(engine, replace(DECODING, temperature=1.0, seed=3))
    repeats = [asked(PROMPTS[0])] * 4
    texts = lm.generate_until(repeats)
    assert len(set(texts)) == 4
    among_others = [asked(PROMPTS[1], task="b"), *repeats[:2], asked(PROMPTS[2], task="c"), *repeats[2:]]
    both = lm.generate_until(among_others)
    assert [both[place] for place in (1, 2, 4, 5)] == texts
    other_seed = T3DLM(engine, replace(DECODING, temperature=1.0, seed=4)).generate_until(repeats)
    assert other_seed != texts


def test_answers_are_cached_as_they_come(lm, tmp_path):
    cached = CachingLM(lm, str(tmp_path / "answers.db"))
    texts = cached.generate_until([asked(prompt) for prompt in PROMPTS[:3]])
    assert cached.generate_until([asked(prompt) for prompt in PROMPTS])[:3] == texts
    assert spent(lm)["num_responses"] == len(PROMPTS)  # three, then the one that was new


def test_a_lost_response_is_no_empty_answer(lm, engine, tmp_path, monkeypatch):
    def lose_the_last(prompts, decoding, seeds, on_finish):
        ended = [Generation(list(prompt), [5], [1], [1.0], 1, "stop", 0, "fine") for prompt in prompts]
        ended[-1] = Generation(list(prompts[-1]), [], [], [], 1, "error", 0, error="the device burnt down")
        for index, generation in enumerate(ended):
            on_finish(index, generation)
        return ended

    cached = CachingLM(lm, str(tmp_path / "answers.db"))
    monkeypatch.setattr(engine, "generate", lose_the_last)
    with pytest.raises(WorkError, match=r"1 of 4 .* burnt down"):
        cached.generate_until([asked(prompt) for prompt in PROMPTS])
    monkeypatch.undo()
    assert cached.generate_until([asked(prompt) for prompt in PROMPTS])[:3] == ["fine"] * 3


@pytest.mark.parametrize("method", ["loglikelihood", "loglikelihood_rolling"])
@pytest.mark.parametrize("kind", [NotImplementedError, RequestError])
def test_no_likelihoods(lm, method, kind):
    with pytest.raises(kind, match=r"^some_task: .*generate_until$"):
        getattr(lm, method)([asked("x", task="some_task")])


# --- arguments


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, "model_args: pretrained is missing"),
        ({"pretrained": "m", "steps": 2}, "model_args: unknown key steps"),
        ({"pretrained": "m", "steps_per_block": "two"}, "model_args: steps_per_block: .*integer"),
        ({"pretrained": "m", "max_gen_toks": 9, "max_new_tokens": 9}, "max_gen_toks and max_new_tokens are the same"),
    ],
)
def test_wrong_model_args(fields, message):
    with pytest.raises(RequestError, match=message) as refusal:
        model_arguments(fields, {})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"repetition_penalty": 1.2}, "gen_kwargs: unknown key repetition_penalty"),
        ({"num_beams": 4}, "gen_kwargs: num_beams"),
        ({"until": 3}, "gen_kwargs: until"),
        ({"temperature": -1}, "temperature must be 0 or more"),
        ({"steps_per_block": 5}, "steps_per_block must be at most"),
        ({"max_gen_toks": 1000}, "exceeds the model's 256 positions"),
    ],
)
def test_wrong_requests(lm, fields, message):
    with pytest.raises(RequestError, match=message):
        lm.generate_until([asked(PROMPTS[0]), asked(PROMPTS[1], **fields)])
    assert spent(lm)["num_responses"] == 0


@pytest.mark.parametrize(
    "model_args, options, expected",
    [
        ({}, {"batch_size": 1, "max_batch_size": None, "device": "cuda:0"}, (None, None)),
        ({}, {"batch_size": "1", "device": "cpu"}, (1, "cpu")),
        ({}, {"batch_size": "auto:4", "max_batch_size": 8}, (8, None)),
        ({"batch_size": 3, "device": "cpu"}, {"batch_size": "16", "device": "cuda:1"}, (3, "cpu")),
        ({"batch_size": "auto"}, {"batch_size": "16"}, (None, None)),
    ],
)
def test_model_args_come_before_the_harness_own_options(model_args, options, expected):
    arguments = model_arguments({"pretrained": "m", **model_args}, options)
    assert (arguments.batch_size, arguments.device) == expected


def test_what_is_left_open_is_the_models():
    arguments = model_arguments({"pretrained": "m", "max_gen_toks": 7, "seed": 2, "rule": "sequential"}, {})
    assert arguments.decoding == Decoding(max_new_tokens=7, seed=2, rule="sequential")
    assert model_arguments({"pretrained": "m"}, {}).decoding.max_new_tokens == 256
    assert request_arguments({"until": "x"}).until == ("x",)


def test_the_model_is_made_from_a_string(model_folder):
    text = f"pretrained={model_folder},steps_per_block=1,dtype=bfloat16,max_gen_toks=50"
    lm = get_model("t3d").create_from_arg_string(text, {"batch_size": 1, "device": "cpu"})
    assert type(lm) is T3DLM
    assert lm.decoding == Decoding(block_size=4, steps_per_block=1, max_new_tokens=50)
    assert lm.engine.model.dtype == torch.bfloat16


@pytest.mark.parametrize("field", [{"rule": "best"}, {"steps_per_block": 8}])
def test_settings_are_checked_before_any_request(engine, field):
    with pytest.raises(RequestError, match=next(iter(field))):
        T3DLM(engine, replace(DECODING, **field))


def test_one_process_only(model_folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RequestError, match="one process"):
        T3DLM.create_from_arg_obj({"pretrained": str(model_folder)})


# --- chat


@pytest.fixture
def chatty(lm, monkeypatch):
    monkeypatch.setattr(lm.tokenizer, "chat_template", CHAT_TEMPLATE)
    return lm


def test_conversations_become_prompts(chatty):
    history = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    prompt = "<system>Be brief.</system><user>2+2?</user>"
    assert chatty.apply_chat_template(history) == f"{prompt}<assistant>"
    begun = [*history, {"role": "assistant", "content": "It is"}]
    assert chatty.apply_chat_template(begun, add_generation_prompt=False) == f"{prompt}<assistant>It is"
    assert chatty.chat_template(True) == CHAT_TEMPLATE
    assert chatty.chat_template() is None


def test_prompt_cache_knows_the_template(lm, monkeypatch):
    names = {lm.tokenizer_name}
    for template in (CHAT_TEMPLATE, CHAT_TEMPLATE + " "):
        monkeypatch.setattr(lm.tokenizer, "chat_template", template)
        names.add(lm.tokenizer_name)
    assert len(names) == 3


def test_refused_conversations(lm, chatty, monkeypatch):
    with pytest.raises(RequestError, match="of user, tool: no tools"):
        chatty.apply_chat_template([{"role": "user", "content": "x"}, {"role": "tool", "content": "y"}])
    with pytest.raises(RequestError, match="give no name"):
        chatty.chat_template("rag")
    monkeypatch.setattr(lm.tokenizer, "chat_template", None)
    for use in (lambda: lm.chat_template(True), lambda: lm.apply_chat_template([{"role": "user", "content": "x"}])):
        with pytest.raises(RequestError, match="no chat template"):
            use()


# --- the harness itself


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No network, the data sets' cache in a folder of this test, and none of what makes the harness slow to start."""

    def refuse(*_):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(tmp_path / "cache" / "it looks for its own tasks here"))
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "not asked")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


def write_task(folder, rows, name="local_story", **fields):
    """A task of a JSONL file with `prompt` and `answer`, graded by the number after the last ####."""
    folder.mkdir(exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": [], "max_gen_toks": 160, "do_sample": False},
        "filter_list": [{"name": "last-number", "filter": [LAST_NUMBER, {"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        **fields,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return folder


LAST_NUMBER = {"function": "regex", "regex_pattern": r"####\s*(-?[0-9]+(?:\.[0-9]+)?)", "group_select": -1}


def story_rows(count):
    return [
        {"prompt": render_question(one.question), "answer": one.answer}
        for one in get_task("story").problems("test", count)
    ]


def results_of(folder):
    (file,) = Path(folder).rglob("results_*.json")
    return json.loads(file.read_text())


def story_arguments(tmp_path, steps_per_block, tasks="local_story"):
    folder = write_task(tmp_path / "tasks", story_rows(10))
    model_args = f"pretrained=story-mini,device=cpu,steps_per_block={steps_per_block}"
    command = (
        f"--model t3d --model_args {model_args} --include_path {folder} --tasks {tasks} --output_path {tmp_path}/out"
    )
    return command.split()


def story_score(steps_per_block):
    """(accuracy, TPF) by the engine and the task's own grader."""
    task = get_task("story")
    problems = task.problems("test", 10)
    engine = Engine.from_pretrained("story-mini", device="cpu")
    decoding = Decoding(steps_per_block=steps_per_block, max_new_tokens=160)
    done = engine.generate_text([render_question(each.question) for each in problems], decoding)
    with task.grader() as grader:
        right = sum(grader.submit(one.text, each).result().right for one, each in zip(done, problems, strict=True))
    return right / len(problems), sum(len(one.token_ids) for one in done) / sum(one.num_forwards for one in done)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("steps_per_block", [1, 2, 4])
def test_the_harness_finds_what_the_engine_and_the_grader_find(tmp_path, steps_per_block):
    run_lm_eval(story_arguments(tmp_path, steps_per_block))
    found = results_of(tmp_path / "out")
    accuracy, tokens_per_forward = story_score(steps_per_block)
    assert found["results"]["local_story"]["exact_match,last-number"] == accuracy
    assert found["config"]["t3d"]["tokens_per_forward"] == tokens_per_forward
    assert found["config"]["t3d"]["decoding"]["steps_per_block"] == steps_per_block
    assert {1: accuracy < 0.5, 2: 0 < accuracy < 1, 4: accuracy > 0.5}[steps_per_block]


@pytest.mark.usefixtures("offline")
def test_chat_options_reach_the_prompt(chatty, tmp_path):
    rows = [{"prompt": f"What is {n}+1?", "answer": str(n + 1)} for n in range(3)]
    shots = {
        "num_fewshot": 1,
        "fewshot_config": {"sampler": "first_n"},
        "fewshot_split": "test",
        "target_delimiter": "",
    }
    folder = write_task(tmp_path / "tasks", rows, "additions", **shots)
    from lm_eval.tasks import TaskManager

    results = simple_evaluate(
        chatty,
        tasks=["additions"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        system_instruction="Add.",
        limit=3,
        gen_kwargs="max_gen_toks=8",
        bootstrap_iters=0,
    )
    prompt = results["samples"]["additions"][2]["arguments"][0][0]
    assert prompt.startswith("<system>Add.</system><user>What is 0+1?</user><assistant>1</assistant>")
    assert prompt.endswith("<user>What is 2+1?</user><assistant>")


@pytest.mark.slow
def test_the_harness_own_command_knows_t3d_through_a_task_file(tmp_path):
    hook = tmp_path / "t3d.yaml"
    hook.write_text("group: t3d\ntask: []\nmetadata:\n  model: !function t3d.interop.lm_eval.model.T3DLM\n")
    arguments = story_arguments(tmp_path, 4, tasks=f"{hook},local_story")
    program = str(Path(sys.executable).with_name("lm_eval"))
    done = subprocess.run([program, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert results_of(tmp_path / "out")["results"]["local_story"]["exact_match,last-number"] == story_score(4)[0]


# --- our command


def test_help_is_the_harness_own(capsys):
    assert run(["lm-eval", "--help"]) == 0
    assert "Language Model Evaluation Harness" in capsys.readouterr().out


def test_arguments_of_this_process_stay(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest", "--own"])
    run(["lm-eval", "run", "--help"])
    assert sys.argv == ["pytest", "--own"]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "wrong, code, message",
    [
        ("--tasks local_story --fast", 2, "unrecognized arguments: --fast"),
        ("--tasks local_stry", 1, "Tasks not found: local_stry"),
        ("--tasks local_story --model_args pretrained=story-mini,steps=1", 2, "unknown key steps"),
        ("--tasks local_story --model_args pretrained=no/such/folder", 2, "no/such/folder"),
        ("--tasks choices --model_args pretrained=story-mini,device=cpu", 2, "choices: needs log-likelihoods"),
    ],
)
def test_wrong_commands(tmp_path, capsys, wrong, code, message):
    folder = write_task(tmp_path / "tasks", story_rows(2))
    choices = {"output_type": "multiple_choice", "doc_to_choice": ["1", "2"], "doc_to_target": 0, "filter_list": None}
    metrics = [{"metric": "acc"}]
    write_task(folder, story_rows(2), "choices", generation_kwargs=None, metric_list=metrics, **choices)
    assert run(["lm-eval", "--model", "t3d", "--include_path", str(folder), *wrong.split()]) == code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in last


SAVING = ["--tasks", "local_story", "--model_args", "pretrained=story-mini,device=cpu,max_gen_toks=4", "--limit", "1"]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "options, lost", [([], ["results_"]), (["--log_samples"], ["results_", "samples_local_story_"])]
)
def test_results_that_were_not_written_are_no_success(tmp_path, capsys, options, lost):
    """The harness itself ends with 0 here: where it would make a folder, named after the model, lies a file."""
    folder = write_task(tmp_path / "tasks", story_rows(1))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "story-mini").write_text("no folder")
    command = ["lm-eval", "--model", "t3d", "--include_path", str(folder), *SAVING, *options]
    assert run([*command, "--output_path", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    last = said.err.strip().splitlines()[-1]
    assert last.startswith("t3d: lm_eval: not written: results (")
    assert all(f"story-mini/{name}" in last for name in lost)
    assert last.count("story-mini/") == len(lost)
    assert "exact_match" in said.out, "the figures are printed all the same"


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["out", "out/results.json", "file/below"])
def test_an_output_path_that_cannot_be_written_is_refused_before_decoding(tmp_path, monkeypatch, capsys, name):
    folder = write_task(tmp_path / "tasks", story_rows(1))
    (tmp_path / "out").mkdir()
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr("os.access", lambda path, _: Path(path) != tmp_path / "out")  # as on a read-only disk
    monkeypatch.setattr(T3DLM, "generate_until", None)  # a call would show
    command = ["lm-eval", "--model", "t3d", "--include_path", str(folder), *SAVING]
    assert run([*command, "--output_path", str(tmp_path / name)]) == 2
    assert "nothing can be written in" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [0.5, 1])
def test_a_file_that_breaks_off_counts_as_lost(tmp_path, monkeypatch, kept):
    lost = []
    tracker = CheckedTracker(lost, output_path=str(tmp_path / "all.json"))
    write = Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda file, text, **how: write(file, text[: int(kept * len(text))], **how))
    tracker.save_results_aggregated({"a": 1})
    tracker.save_results_samples("task", [])
    (file,) = tmp_path.glob("all_*.json")
    assert lost == ([] if kept == 1 else [f"results ({file})"])


class NotInstalled:
    """An import hook that hides the harness."""

    def find_spec(self, name, path=None, target=None):
        if name == "lm_eval":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_without_the_extra(monkeypatch, capsys):
    for name in list(sys.modules):
        if name.split(".")[0] == "lm_eval" or name.startswith("t3d.interop.lm_eval"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NotInstalled(), *sys.meta_path])
    assert run(["lm-eval", "--help"]) == 2
    assert capsys.readouterr().err == "t3d: lm-evaluation-harness is not installed: pip install 't3d[eval]'\n"


def test_an_interrupted_run_says_how_to_go_on(monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("t3d.interop.lm_eval.command.run", interrupt)
    assert run(["lm-eval", "--tasks", "x"]) == 130
    assert "--use_cache" in capsys.readouterr().err
