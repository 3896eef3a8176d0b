"""Rollouts: every row is what the engine did, and neither shards nor interruptions change a row."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import groupby

import pytest

from t3d.cli import run
from t3d.config import PromptConfig
from t3d.engine import Engine
from t3d.errors import RequestError
from t3d.models import load_model, load_tokenizer, save_model
from t3d.noise import derive_seeds
from t3d.tasks import choose, get_task
from t3d.tasks.prompts import put_questions, render, resolve_form
from t3d.trajectories import read, read_meta, rollout
from t3d.types import Decoding, Prompt

B = 4
DECODING = Decoding(block_size=B, steps_per_block=2, temperature=1.0, max_new_tokens=21, seed=5)


@pytest.fixture(scope="module")
def engine(model_folder):
    return Engine.from_pretrained(model_folder, device="cpu")


@pytest.fixture(scope="module")
def prompts():
    """Their lengths meet every remainder of the block: a digit is a token."""
    task = get_task("story")
    texts = [prompt.text for prompt in put_questions(task, task.problems("train", 5, 3), PromptConfig(), None).prompts]
    return [Prompt(f"p{number}", text, str(number)) for number, text in enumerate(["1", "12", "123", "1234", *texts])]


@pytest.fixture(scope="module")
def rolled(engine, prompts, tmp_path_factory):
    """(rows, summary) of three samples a prompt."""
    folder = tmp_path_factory.mktemp("rolled") / "out"
    summary = rollout(engine, prompts, DECODING, folder, model_name="tiny", samples=3, rows_per_shard=10)
    return list(read(folder)), summary


def essence(row):
    """What must not depend on the batch: all but the last bits of the confidences."""
    return replace(row, confidence=[round(value, 4) for value in row.confidence])


def test_rows_are_the_work_list(rolled, prompts):
    rows, _ = rolled
    assert [(row.prompt_id, row.sample) for row in rows] == [(p.prompt_id, s) for p in prompts for s in range(3)]
    assert [row.seed for row in rows] == list(derive_seeds(DECODING.seed, len(rows)))
    for row in rows:
        prompt = prompts[int(row.prompt_id[1:])]
        assert (row.prompt_text, row.answer) == (prompt.text, prompt.answer)


def test_ids_and_texts_belong_together(rolled, engine):
    rows, _ = rolled
    assert {len(row.prompt_ids) % B for row in rows} == set(range(B))
    for row in rows:
        assert row.prompt_ids == engine.tokenizer.encode(row.prompt_text, add_special_tokens=False)
        assert row.response_text == engine.tokenizer.decode(row.response_ids, skip_special_tokens=True)
        assert engine.mask_token_id not in row.response_ids


def test_responses_end_where_they_say(rolled, engine):
    rows, _ = rolled
    assert {row.finish_reason for row in rows} == {"stop", "length"}
    for row in rows:
        stops = [place for place, token in enumerate(row.response_ids) if token in engine.stop_token_ids]
        if row.finish_reason == "stop":
            assert stops == [len(row.response_ids) - 1]
        else:
            assert stops == []
            assert len(row.response_ids) == DECODING.max_new_tokens


def test_reveal_steps_and_forwards_follow_from_the_block_grid(rolled):
    rows, _ = rolled
    for row in rows:
        start = len(row.prompt_ids)
        places = list(enumerate(row.reveal_step, start))
        steps_before = 0
        for block, members in groupby(places, key=lambda place: place[0] // B):
            steps = [step for _, step in members]
            num_hidden = (block + 1) * B - max(start, block * B)  # when the block begins
            num_steps = -(-num_hidden // 2)  # two tokens a step
            assert set(steps) <= set(range(steps_before + 1, steps_before + num_steps + 1))
            assert all(steps.count(step) <= 2 for step in steps)
            if len(steps) == num_hidden:
                counts = [steps.count(steps_before + 1 + number) for number in range(num_steps)]
                assert counts == [2] * (num_hidden // 2) + [1] * (num_hidden % 2)
            steps_before += num_steps
        assert row.num_forwards == steps_before + (start >= B)  # the prefill; no forward to commit a block
        assert all(0 < value <= 1 for value in row.confidence)


def test_some_block_is_not_revealed_from_left_to_right(rolled):
    rows, _ = rolled
    assert any(row.reveal_step != sorted(row.reveal_step) for row in rows)


def test_a_seed_gives_its_row_again_alone(rolled, engine):
    rows, _ = rolled
    for row in rows[::5]:
        (alone,) = engine.generate([row.prompt_ids], DECODING, seeds=[row.seed])
        assert (alone.token_ids, alone.reveal_steps) == (row.response_ids, row.reveal_step)
        assert (alone.num_forwards, alone.finish_reason) == (row.num_forwards, row.finish_reason)
        assert alone.confidences == pytest.approx(row.confidence, abs=1e-4)


def test_samples_differ_exactly_when_something_is_drawn(rolled, engine, prompts, tmp_path):
    rows, _ = rolled
    for _, samples in groupby(rows, key=lambda row: row.prompt_id):
        assert len({tuple(row.response_ids) for row in samples}) == 3
    greedy = replace(DECODING, temperature=0.0)
    rollout(engine, prompts[:4], greedy, tmp_path / "greedy", model_name="tiny", samples=3)
    for _, samples in groupby(read(tmp_path / "greedy"), key=lambda row: row.prompt_id):
        assert len({tuple(row.response_ids) for row in samples}) == 1


def test_summary_counts_everything(rolled):
    rows, summary = rolled
    assert summary.num_rows == len(rows)
    assert summary.num_tokens == sum(len(row.response_ids) for row in rows)
    assert summary.num_forwards == sum(row.num_forwards for row in rows)
    assert summary.tokens_per_forward == summary.num_tokens / summary.num_forwards
    assert summary.finish_reasons == {
        reason: sum(row.finish_reason == reason for row in rows) for reason in ("stop", "length")
    }


@pytest.mark.parametrize("rows_per_shard", [4, 27, 1000])
def test_shards_do_not_change_rows(rows_per_shard, rolled, engine, prompts, tmp_path):
    rows, _ = rolled
    rollout(engine, prompts, DECODING, tmp_path, model_name="tiny", samples=3, rows_per_shard=rows_per_shard)
    assert len(list(tmp_path.glob("*.parquet"))) == -(-len(rows) // rows_per_shard)
    assert list(map(essence, read(tmp_path))) == list(map(essence, rows))


def test_nothing_is_written_before_every_prompt_is_checked(engine, prompts, tmp_path):
    with pytest.raises(RequestError, match=r"prompt 9 .* exceeds the model's 256 positions"):
        rollout(
            engine,
            [*prompts, Prompt("long", "1" * 250)],
            DECODING,
            tmp_path / "out",
            model_name="tiny",
            rows_per_shard=1,
        )
    assert not (tmp_path / "out").exists()


def test_prompt_file_is_carried_through(model_folder, tmp_path, capsys):
    lines = [
        {"id": "first", "prompt": "As it is:", "answer": 7},
        {"task_id": 12, "question": "How many?"},
        {"question": "And now?", "answer": "many"},
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = f"rollout --model {model_folder} --prompts {tmp_path}/mine.jsonl --out {tmp_path}/out --samples 2"
    assert run([*words.split(), "--max-new-tokens", "8", "--device", "cpu"]) == 0
    rows = list(read(tmp_path / "out"))
    assert [(row.prompt_id, row.sample, row.answer) for row in rows[::2]] == [
        ("first", 0, "7"),
        ("12", 0, None),
        ("mine/3", 0, "many"),
    ]
    assert [row.prompt_text for row in rows[1::2]] == [
        "As it is:",
        "Question: How many?\nAnswer:",
        "Question: And now?\nAnswer:",
    ]
    said = capsys.readouterr().out
    tokens, forwards = sum(len(row.response_ids) for row in rows), sum(row.num_forwards for row in rows)
    assert said.startswith(f"{tmp_path}/out: 6 answers, {tokens} tokens, TPF {tokens / forwards:.2f}, ")


@pytest.fixture(scope="module")
def chat_model(model_folder, tmp_path_factory):
    """The tiny model with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "chat"
    tokenizer = load_tokenizer(model_folder)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
    )
    save_model(load_model(model_folder, device="cpu"), folder, tokenizer)
    return folder


def command(model, out, *more):
    return ["rollout", "--model", str(model), "--out", str(out), "--max-new-tokens", "4", "--device", "cpu", *more]


def test_questions_are_put_as_the_model_and_the_options_say(chat_model, tmp_path):
    (tmp_path / "sums.jsonl").write_text('{"question": "1 + 1?", "answer": 2}\n')
    recipe = "model: {source: m}\nobjective: {name: sft}\ndata: {task: story}\noptim: {steps: 1}\nout: o\n"
    (tmp_path / "recipe.yaml").write_text(f"{recipe}prompt: {{system: Hm., instruction: Recipe.}}\n")
    (problem,) = get_task("jsonl", str(tmp_path / "sums.jsonl")).problems("all")
    own = get_task("jsonl", str(tmp_path / "sums.jsonl")).form.instruction
    cases = {
        "as the task says": ([], f"user: 1 + 1?\n{own}\nassistant:"),
        "with no instruction": (["--instruction", ""], "user: 1 + 1?\nassistant:"),
        "with both": (["--instruction", "Go.", "--system", "Hm."], "system: Hm.\nuser: 1 + 1?\nGo.\nassistant:"),
        "plain": (["--prompt-style", "plain"], "Question: 1 + 1?\nAnswer:"),
        "as a recipe says": (
            ["--recipe", str(tmp_path / "recipe.yaml")],
            "system: Hm.\nuser: 1 + 1?\nRecipe.\nassistant:",
        ),
        "but for one thing": (
            ["--recipe", str(tmp_path / "recipe.yaml"), "--instruction", "Go."],
            "system: Hm.\nuser: 1 + 1?\nGo.\nassistant:",
        ),
    }
    tokenizer = load_tokenizer(chat_model)
    for name, (options, expected) in cases.items():
        assert run(command(chat_model, tmp_path / name, "--prompts", f"{tmp_path}/sums.jsonl", *options)) == 0
        (row,) = read(tmp_path / name)
        assert (row.prompt_text, row.answer) == (expected, "2")
        form = read_meta(tmp_path / name).prompt
        assert form == resolve_form(PromptConfig(), form, tokenizer)
        assert render(problem, form, tokenizer).text == expected
    task = ["--task", "jsonl", "--data", f"{tmp_path}/sums.jsonl"]
    assert run(command(chat_model, tmp_path / "task", *task)) == 0
    assert list(read(tmp_path / "task")) == list(read(tmp_path / "as the task says"))


def test_a_rollout_goes_on_in_its_own_form_only(chat_model, tmp_path, capsys):
    """Also where the prompts are the same: it is written down what they are."""
    (tmp_path / "p.jsonl").write_text('{"prompt": "As it is:"}\n')
    words = command(chat_model, tmp_path / "out", "--prompts", f"{tmp_path}/p.jsonl")
    assert run(words) == 0
    assert run([*words, "--resume"]) == 0
    capsys.readouterr()
    assert run([*words, "--resume", "--prompt-style", "plain"]) == 2
    assert "was rolled out with prompt.style 'chat', not 'plain'; choose another --out" in capsys.readouterr().err
    assert run([*words, "--resume", "--system", "Hm."]) == 2
    assert "was rolled out with prompt.system None, not 'Hm.'" in capsys.readouterr().err


def test_shuffled_prompts_are_the_chosen_ones(model_folder, tmp_path):
    rows = [json.dumps({"id": f"q{number}", "prompt": f"{number}:"}) for number in range(9)]
    (tmp_path / "p.jsonl").write_text("\n".join(rows))
    source = ["--prompts", f"{tmp_path}/p.jsonl", "--limit", "4"]
    assert run(command(model_folder, tmp_path / "first", *source)) == 0
    assert run(command(model_folder, tmp_path / "shuffled", *source, "--shuffle", "5")) == 0
    problems = get_task("jsonl", f"{tmp_path}/p.jsonl").problems("all")
    assert [row.prompt_id for row in read(tmp_path / "first")] == ["q0", "q1", "q2", "q3"]
    shuffled = [row.prompt_id for row in read(tmp_path / "shuffled")]
    assert shuffled == [each.problem_id for each in choose(problems, 4, 5)]
    assert shuffled != ["q0", "q1", "q2", "q3"]


def test_metadata_says_how_it_was_made(trajectory_folder, model_folder, engine):
    meta = read_meta(trajectory_folder)
    assert (meta.model, meta.block_size, meta.steps_per_block) == (str(model_folder), 4, 2)
    assert (meta.rule, meta.temperature, meta.max_new_tokens) == ("low_confidence_static", 1.0, 21)
    assert meta.mask_token_id == engine.mask_token_id
    assert meta.eos_token_ids == tuple(sorted(engine.stop_token_ids))
    assert meta.prompt == PromptConfig(style="plain", instruction="", prefix="{prefix}")


def test_killed_and_resumed_is_uninterrupted(model_folder, tmp_path, capsys):
    words = f"rollout --model {model_folder} --task story --limit 160 --rows-per-shard 4 --device cpu".split()
    words += ["--max-new-tokens", "24", "--temperature", "1.0", "--seed", "3", "--out"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-m", "t3d.cli", *words, str(killed)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not (killed / "shard-00001.parquet").exists():  # so the manifest lists the first
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    finished = len(list(read(killed, allow_partial=True)))
    assert 0 < finished < 160

    assert run([*words, str(killed)]) == 2  # not by accident
    assert run([*words, str(killed), "--resume"]) == 0
    assert f"{160 - finished} answers" in capsys.readouterr().out
    assert run([*words, str(whole)]) == 0
    assert list(read(killed)) == list(read(whole))
    files = {file.name: file.read_bytes() for file in whole.iterdir()}
    assert {file.name: file.read_bytes() for file in killed.iterdir()} == files

    assert run([*words, str(killed), "--resume"]) == 0  # finished already
    assert "nothing to do" in capsys.readouterr().out.splitlines()[-1]
    assert {file.name: file.read_bytes() for file in killed.iterdir()} == files
