"""What a shell is told when it asks what may come next, by the protocol that the installed scripts speak."""

import os
import shutil
import subprocess
import sys
from typing import get_args

import pytest

from t3d import cli_completion as completion
from t3d.bench.shapes import SHAPES
from t3d.config import PromptConfig, Recipe
from t3d.config.study import StudyConfig
from t3d.engine.rules import RULES
from t3d.evaluation import BENCHMARKS
from t3d.evaluation.report import TABLES
from t3d.models import BUILT_IN, as_device, as_dtype
from t3d.tasks import TASKS

PROGRAM = [sys.executable, "-c", "from t3d.cli import main; main()"]
WATCHED = """
import atexit, sys
atexit.register(lambda: print(*({'torch', 'transformers', 'numpy'} & sys.modules.keys()), file=sys.stderr))
from t3d.cli import main; main()
"""


def ask(shell, line, program=PROGRAM):
    """What a shell shows at the end of a line; for bash as its script asks, with the words counted."""
    asked = {"_T3D_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line, "COMP_WORDS": line}
    asked |= {"COMP_CWORD": str(len(line.split(" ")) - 1), "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    ran = subprocess.run(program, env={**os.environ, **asked}, capture_output=True, text=True)
    assert ran.returncode == 0
    return ran


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_commands_are_completed(shell):
    said = [line.split("\t")[0] for line in ask(shell, "t3d st").stdout.splitlines()]
    assert said == ["study", "study-report"]


def test_zsh_is_answered_in_its_own_words():
    assert ask("zsh", "t3d generate --model story-s").stdout == (
        '_arguments \'*: :(("story-small"\n"story-small-student"))\'\n'
    )


@pytest.mark.parametrize("line", ["t3d rollout --rule ", "t3d train recipe.yaml optim.l", "t3d eval --benchmark gs"])
def test_an_answer_waits_for_nothing_slow(line):
    ran = ask("bash", line, [sys.executable, "-c", WATCHED])
    assert ran.stdout.strip()
    assert ran.stderr == "\n"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_works_in_bash(tmp_path):
    asked = {**os.environ, "_T3D_COMPLETE": "source_bash"}  # what --show-completion shows, whichever shell it runs in
    script = subprocess.run(PROGRAM, env=asked, capture_output=True, text=True, check=True).stdout
    (tmp_path / "t3d").write_text(f"#!/bin/sh\nexec {sys.executable} -c 'from t3d.cli import main; main()' \"$@\"\n")
    (tmp_path / "t3d").chmod(0o755)
    words = 'COMP_WORDS=(t3d eval --model story-mini-); COMP_CWORD=3; _t3d_completion t3d; echo "${COMPREPLY[@]}"'
    ran = subprocess.run(
        ["bash", "--norc", "-c", f"{script}\n{words}"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert ran.stdout == "story-mini-student\n"


@pytest.mark.parametrize("where, registry", [
    (completion.RULES, RULES), (completion.TASKS, TASKS), (completion.SHAPES, SHAPES), (completion.TABLES, TABLES),
])  # fmt: skip
def test_names_read_from_a_source_are_the_registry(where, registry):
    assert completion.registry_names(*where) == list(registry)


def test_benchmarks_are_the_tasks():
    assert list(BENCHMARKS) == list(TASKS)


def test_names_that_no_registry_holds_are_those_that_are_taken():
    assert set(completion.models("")) == set(BUILT_IN)
    assert set(completion.STYLES) == set(get_args(PromptConfig.model_fields["style"].annotation))
    cpu = as_device(completion.DEVICES[0])
    assert [str(as_dtype(name, cpu)) for name in completion.DTYPES] == [f"torch.{name}" for name in completion.DTYPES]


def test_several_names_are_completed_one_after_another():
    complete = completion.registered(*completion.TASKS, separated=True)
    assert complete("story,gs") == ["story,gsm8k"]
    assert complete("gs") == ["gsm8k"]
    assert complete("nothing") == []


@pytest.mark.parametrize("config, some, no", [
    (Recipe, {"out=", "optim.lr=", "evaluation.limit=", "objective.name="}, {"rounds=", "optim=", "evaluation="}),
    (StudyConfig, {"out=", "test.limit="}, {"test="}),
])  # fmt: skip
def test_keys_are_single_values(config, some, no):
    keys = set(completion.keys_of(config))
    assert some <= keys
    assert not no & keys
