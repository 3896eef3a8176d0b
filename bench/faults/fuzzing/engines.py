"""What looks for cases: crafted ones, hypothesis, and atheris, which follows the branches that a case takes."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

TARGETS = {
    "recipe": ("fuzzing.yaml_files", "RecipeTarget"),
    "study": ("fuzzing.yaml_files", "StudyTarget"),
    "prompts": ("fuzzing.texts", "PromptTarget"),
    "trajectories": ("fuzzing.parquet", "TrajectoryTarget"),
    "model": ("fuzzing.models", "ModelTarget"),
    "gguf": ("fuzzing.gguf_files", "GGUFTarget"),
    "request": ("fuzzing.server_requests", "RequestTarget"),
    "results": ("fuzzing.texts", "ResultTarget"),
    "upstream-rollouts": ("fuzzing.upstream", "RolloutTarget"),
    "upstream-config": ("fuzzing.upstream", "ConfigTarget"),
}
"""Name -> module and class."""
ENGINES = ("crafted", "hypothesis", "atheris")
SEED_INPUTS, INPUT_BYTES = 64, 400
GUIDING = ("t3d", "yaml", "gguf.gguf_reader")
"""Modules whose branches atheris follows."""


class RandomDraw:
    """Decisions of a random generator."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def below(self, limit: int) -> int:
        """As `Draw`."""
        return self._random.randrange(limit)


def fuzz(
    name: str, engine: str, cases: int, seconds: float, folder: Path, report: Callable[[dict[str, Any]], None]
) -> None:
    """Judge `cases` cases of a target, or as many as there is time for; may end the process (atheris does).

    Args:
        name: of the target; engine: in `ENGINES`.
        cases, seconds: at most; seconds of computing, as all here.
        folder: for files.
        report: is given the figures.
    """
    atheris = import_module("atheris") if engine == "atheris" else None
    module, kind = TARGETS[name]
    with atheris.instrument_imports(include=list(GUIDING)) if atheris else nullcontext():
        target = getattr(import_module(module), kind)(folder / "files")
        target.run(target.make(_Valid()))  # a valid case passes, and whatever is imported late is imported now
        from fuzzing.judging import Judge, limit_memory

    limit_memory()
    judge, started = Judge(folder / "findings", target.mentions), time.process_time()

    def judged(case: dict[str, bytes], what: str = "") -> None:
        judge.case(lambda: target.run(case), lambda: f"{what}\n{_shown(case)}")

    def is_over() -> bool:
        return judge.outcomes.total() >= cases or time.process_time() - started >= seconds

    def done() -> None:
        report({**judge.report(), "seconds": round(time.process_time() - started, 1)})

    if engine == "crafted":
        for what, case in target.bombs():
            judged(case, what)
            if os.environ.get("T3D_FUZZ_VERBOSE"):
                print(what, dict(judge.outcomes), file=sys.stderr, flush=True)
    elif engine == "hypothesis":
        _by_hypothesis(target, judged, is_over, cases)
    else:
        _by_atheris(atheris, target, judged, is_over, done, folder)
    done()


class _Valid:
    """No fault at all."""

    def below(self, limit: int) -> int:
        return 0


def _by_hypothesis(
    target: Any, judged: Callable[[dict[str, bytes]], None], is_over: Callable[[], bool], cases: int
) -> None:
    from hypothesis import HealthCheck, Phase, given, settings

    from fuzzing.strategies import cases_of

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases_of(target))
    def judge_one(case: dict[str, bytes]) -> None:
        if not is_over():
            judged(case)

    while not is_over():
        judge_one()


def _by_atheris(
    atheris: Any, target: Any, judged: Any, is_over: Callable[[], bool], done: Callable[[], None], folder: Path
) -> None:
    class Consumed:
        def __init__(self, data: bytes) -> None:
            self._provider = atheris.FuzzedDataProvider(data)

        def below(self, limit: int) -> int:
            return self._provider.ConsumeIntInRange(0, limit - 1) if limit > 1 else 0

    def one(data: bytes) -> None:
        if is_over():
            done()
            sys.stdout.flush()
            os._exit(0)  # libFuzzer's own end runs no code of ours
        judged(target.make(Consumed(data)))

    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number in range(SEED_INPUTS):
        (corpus / str(number)).write_bytes(random.Random(number).randbytes(INPUT_BYTES))
    options = [
        f"-max_len={INPUT_BYTES}",
        "-len_control=0",
        "-rss_limit_mb=0",
        "-timeout=60",
        "-verbosity=0",
        f"-artifact_prefix={folder}/",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def _shown(case: dict[str, bytes]) -> str:
    return "\n".join(f"{name}: {content[:4000]!r}" for name, content in case.items())


def write_report(file: Path) -> Callable[[dict[str, Any]], None]:
    """What writes figures to a file."""

    def write(figures: dict[str, Any]) -> None:
        file.write_text(json.dumps(figures))

    return write
