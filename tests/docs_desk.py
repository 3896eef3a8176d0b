"""The folder in which the documentation's commands are executed: a tiny model or file behind each name."""

import json
from itertools import pairwise

import yaml
from ar_models import TURN_END, make_source
from conftest import STOP_IDS, save_tiny_model
from docs_fences import ROOT
from test_convert_gguf import write_gguf

from t3d.config import load_recipe

QUESTIONS = [
    {
        "id": f"q{i}",
        "question": f"Tom has {i + 3} pens. He buys {i} more. How many pens has he?",
        "answer": str(2 * i + 3),
    }
    for i in range(8)
]
FILES = {
    "questions": QUESTIONS,
    "gsm8k": [{"question": each["question"], "answer": f"So #### {each['answer']}"} for each in QUESTIONS],
    "math500": [{"problem": each["question"], "answer": each["answer"], "unique_id": each["id"]} for each in QUESTIONS],
    "humaneval": [
        {
            "task_id": f"HumanEval/{i}",
            "prompt": f"def f{i}(x):\n",
            "canonical_solution": "    return x\n",
            "test": "def check(candidate):\n    assert candidate(3) == 3\n",
            "entry_point": f"f{i}",
        }
        for i in range(2)
    ],
    "mbpp": [
        {
            "task_id": i,
            "text": "Write a function.",
            "code": f"def f{i}(x):\n    return x",
            "test_list": [f"assert f{i}({i}) == {i}"],
            "test_setup_code": "",
        }
        for i in range(11, 14)
    ],
}
"""Name of a JSON Lines file -> its rows."""
HUB_BENCHMARKS = ("gsm8k", "math500", "humaneval", "mbpp")
SDAR = ("JetLM/SDAR-1.7B-Chat", "JetLM/SDAR-4B-Chat")
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


def make_desk(folder):
    """Everything that a command may name before any command has run. Hub ids are folders of that name here."""
    for name in SDAR:
        save_tiny_model(folder / name, max_position_embeddings=2048)
    (folder / SMOLLM2).mkdir(parents=True)
    source = make_source(folder / SMOLLM2, max_position_embeddings=2048)
    source.generation_config.eos_token_id = [TURN_END, *range(100, 100 + STOP_IDS)]
    source.generation_config.save_pretrained(folder / SMOLLM2)
    write_gguf(folder / f"{SMOLLM2.split('/')[1]}.Q8_0.gguf", source)
    for name, rows in FILES.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rows.json").write_text(json.dumps(few_rows()))
    for name in ("recipes", "bench", "launch"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def few_rows():
    """One method and the teacher of the study that docs/study.md reports: its intervals take seconds a method."""
    study = json.loads((ROOT / "bench" / "results" / "study" / "story-small.json").read_text())
    return {**study, "rows": [row for row in study["rows"] if row["name"] in ("teacher", "t3d")]}


def lay_out(desk, folder):
    """A page's own folder, with all that lies on the desk."""
    for entry in desk.iterdir():
        (folder / entry.name).symlink_to(entry)


SMALLER = {"generate": ["--max-new-tokens=16"], "rollout": ["--limit=6"], "eval": ["--limit=1", "--max-new-tokens=16"]}
"""Command -> options that come last, and so win; `serve` gets a free port."""
SMALLER_RECIPE = {
    "optim.steps": 2,
    "optim.examples_per_step": 2,
    "data.count": 8,
    "batch.num_workers": 0,
    "evaluation.limit": 2,
    "evaluation.max_new_tokens": 16,
    "every_round.rollout.count": 4,
    "every_round.rollout.max_new_tokens": 64,
}
"""Keys of a recipe that are set, where it has their group."""


def smaller(arguments):
    """A command of a page with less to do; what else it says stays."""
    command, rest = arguments[0], arguments[1:]
    if command == "serve":
        return [command, *rest, "--port=0"]
    if command == "train":
        with_recipe = [each for each in rest if each.endswith(".yaml")]
        return [command, *rest, *(overrides_of(with_recipe[0]) if with_recipe else ())]
    if command == "eval":
        asked = next((after for word, after in pairwise(rest) if word == "--benchmark"), "story")
        named = [name for name in asked.split(",") if name in HUB_BENCHMARKS and "--data" not in rest]
        rest = [*rest, *(f"--data={name}={name}.jsonl" for name in named)]
    return [command, *rest, *SMALLER.get(command, ())]


def overrides_of(recipe):
    """`SMALLER_RECIPE` as far as the groups of a recipe go; and rounds keep all, as random models agree on nothing."""
    with open(recipe) as file:
        fields = yaml.safe_load(file)
    found = [f"{key}={value}" for key, value in SMALLER_RECIPE.items() if _has(fields, key.split(".")[:-1])]
    for place, each in enumerate(load_recipe(recipe).rounds):
        if each.keep != "all" and not str(fields["model"].get("source")).startswith("story-"):
            found += [f"rounds.{place}.keep=all", f"rounds.{place}.agree_with=self"]
    return found


def _has(fields, groups):
    for group in groups:
        if not isinstance(fields, dict) or group not in fields:
            return groups == ["batch"]
        fields = fields[group]
    return True
