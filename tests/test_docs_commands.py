"""Every fence of the documentation: executed, or marked as needing a GPU, or checked by the test that is named here.

A page is one sitting: its fences are executed in order, in one folder, in this process. Commands in backticks need only
name commands and options that exist.
"""

import ast
import asyncio
import contextlib
import inspect
import json
import re
import subprocess
import tomllib
import webbrowser
from pathlib import Path

import pytest
import torch
import yaml
from docs_desk import lay_out, make_desk, smaller
from docs_fences import (
    NEEDS_GPU,
    PAGES,
    ROOT,
    arguments_of_t3d,
    commands_of,
    fences_of,
    inline_of,
    parse,
    unknown_options,
    without_settings,
)

import t3d.serve
from t3d.cli import run
from t3d.config import make_recipe
from t3d.config.study import StudyConfig

torch.set_num_threads(1)

ELSEWHERE = {
    "docs/extending.md": "tests/test_extending.py",
}
"""Page, or page and first line of a fence -> the test that executes it."""
BEFORE = {
    "docs/viewer.md": [
        "t3d rollout --model story-mini --task story --max-new-tokens 64 --out runs/rollouts",
        "t3d rollout --model story-mini --task story --max-new-tokens 64 --out runs/teacher",
        "t3d rollout --model story-mini-student --task story --max-new-tokens 64 --out runs/student",
    ],
    "docs/evaluation.md": ["cp -r JetLM/SDAR-1.7B-Chat runs/student/model"],
    "docs/study.md": ["cp rows.json runs/study/rows.json"],
    "docs/reference/trajectories.md": [
        "t3d rollout --model story-mini --task story --max-new-tokens 64 --out runs/rollouts"
    ],
}
"""Page -> what its reader has done before: trained, rolled out."""
LANGUAGES = {"bash", "python", "yaml", "json", "text", "console", ""}
PROGRAMS = re.compile(r"^(\$ )?(t3d|python3?|pip|make|torchrun|accelerate|sbatch|sky|bash|curl|git) ", re.MULTILINE)
ADDRESS = "http://127.0.0.1:8000"
"""Of `t3d serve`, as pages write it."""


def is_elsewhere(fence):
    first = fence.text.splitlines()[0] if fence.text else ""
    return fence.page in ELSEWHERE or (fence.page, first) in ELSEWHERE


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    return make_desk(tmp_path_factory.mktemp("desk"))


@pytest.fixture
def sitting(desk, tmp_path, monkeypatch):
    """Runs what a page shows, in a folder of its own."""
    lay_out(desk, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(webbrowser, "open", lambda url: True)
    with contextlib.ExitStack() as servers:
        sitting = Sitting(servers)
        monkeypatch.setattr(t3d.serve, "serve", sitting.serve)
        yield sitting


class Sitting:
    """One reader at one page.

    Attributes:
        address: of the server that the reader has started last.
        names: what Python fences have defined.
    """

    def __init__(self, servers):
        self._servers, self.address, self.names = servers, ADDRESS, {}

    def serve(self, service, settings, listener, on_ready):
        """`t3d serve`, in a thread until the page ends."""
        self.address = self._servers.enter_context(t3d.serve.serving(service, settings, listener))
        on_ready()
        return True

    def execute(self, words):
        """One command."""
        words = without_settings(words)
        arguments = arguments_of_t3d(words)
        if arguments is not None:
            assert run(smaller(arguments)) == 0, " ".join(words)
            return
        getattr(self, f"_{words[0]}")(words[1:])

    def _curl(self, words):
        subprocess.run(["curl", "-sSf", *(each.replace(ADDRESS, self.address) for each in words)], check=True)

    def _cp(self, words):
        Path(words[-1]).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", *words], check=True)

    def _pip(self, words):
        """Not executed: what it names is an extra of this package."""
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = re.findall(r"\[([\w,-]+)\]", " ".join(words))
        assert named, words
        assert {extra for each in named for extra in each.split(",")} <= set(extras), words

    def _make(self, words):
        """Not executed: what it names is a target."""
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words

    def program(self, text):
        """Python, which may await at its outermost level."""
        code = compile(text.replace(ADDRESS, self.address), "fence", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        started = eval(code, self.names)
        if inspect.isawaitable(started):
            asyncio.run(started)


def check_yaml(text):
    """A study, a recipe, or a part of one; one that says its name in the first line is there for the next command."""
    if named := re.match(r"# ([\w-]+\.yaml)\n", text):
        Path(named[1]).write_text(text)
    part = yaml.safe_load(text)
    if "methods" in part:
        StudyConfig.model_validate(part)
        return
    whole = {"model": {"source": "m"}, "objective": {"name": "t3d"}, "optim": {"steps": 1}, "out": "o"}
    learns = {} if "rounds" in part else {"data": {"trajectories": "t"}}
    make_recipe({**whole, **learns, **part})


@pytest.mark.parametrize("page", PAGES)
def test_a_page_works_as_it_says(page, sitting):
    fences = [fence for fence in fences_of(page) if not is_elsewhere(fence) and fence.title != NEEDS_GPU]
    for command in BEFORE.get(page, ()) if fences else ():
        sitting.execute(command.split())
    for fence in fences:  # first, as a page may show a command before the file that it reads
        if fence.language == "yaml":
            check_yaml(fence.text)
    for fence in fences:
        assert fence.language in LANGUAGES, fence
        match fence.language:
            case "bash":
                for words in commands_of(fence.text):
                    sitting.execute(words)
            case "python":
                sitting.program(fence.text)
            case "json":
                json.loads(fence.text if fence.text.startswith(("{", "[")) else f"{{{fence.text}}}")
            case "text" | "console" | "":
                assert not PROGRAMS.search(fence.text), f"{fence}: commands belong into a fence ```bash"


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_need_a_gpu_are_spelt_right(page):
    for fence in fences_of(page):
        if fence.language != "bash":
            assert fence.title != NEEDS_GPU, f"{fence}: what is no command needs nothing"
            continue
        for words in commands_of(fence.text):
            words = without_settings(words)
            arguments = arguments_of_t3d(words)
            if arguments is not None:
                parse(arguments)
            else:
                assert unknown_options(words) == [], fence
            ours = [word for word in words if word.startswith(("launch/", "bench/", "recipes/"))]
            assert [file for file in ours if not (ROOT / file).exists()] == [], fence


@pytest.mark.parametrize("page", PAGES)
def test_commands_between_backticks_exist(page):
    for text in inline_of(page):
        words = without_settings(text.split())
        if words and words[0] in ("t3d", "python", "torchrun"):
            assert unknown_options(words) == [], f"{page}: {text}"


def test_tests_that_are_named_exist():
    assert all((ROOT / test).exists() for test in ELSEWHERE.values())
    assert set(BEFORE) <= set(PAGES)
