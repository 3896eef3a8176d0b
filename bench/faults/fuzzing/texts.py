"""Prompt files, and results of evaluations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzzing.drawing import Draw, as_json, broken, pick
from fuzzing.targets import Case, Target, json_bombs


class PromptTarget(Target):
    """Prompt files and benchmark files of every kind, up to the tokens of their prompts."""

    name = "prompts"
    mentions = ("rows.", "prompt")
    ROWS: tuple[tuple[str, list[dict[str, Any]]], ...] = (
        (
            "jsonl",
            [{"question": "How many?", "answer": 3, "id": "a"}, {"prompt": "Tell", "answer": "4", "split": "train"}],
        ),
        (
            "jsonl",
            [
                {
                    "prompt": "Add.",
                    "tests": ["assert add(1, 2) == 3"],
                    "cases": [{"input": "1", "output": "2"}, ["1", "2"]],
                    "solution": "x",
                }
            ],
        ),
        (
            "gsm8k",
            [
                {"question": "2*9?", "answer": "2*9=<<2*9=18>>18\n#### 18"},
                {"question": "q", "answer": 18, "solution": "s"},
            ],
        ),
        (
            "math500",
            [{"problem": "1+1", "solution": "so \\boxed{2}", "unique_id": "u/1"}, {"problem": "p", "answer": "3"}],
        ),
        (
            "mbpp",
            [
                {
                    "task_id": 1,
                    "text": "Add",
                    "test_list": ["assert add(1, 2) == 3"],
                    "test_setup_code": "",
                    "code": "def add(a, b): ...",
                }
            ],
        ),
        (
            "humaneval",
            [
                {
                    "task_id": "H/0",
                    "prompt": "def f(x):\n",
                    "test": "def check(f): ...",
                    "entry_point": "f",
                    "canonical_solution": " return x",
                }
            ],
        ),
    )
    STYLES = ("auto", "chat", "plain", "raw")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from t3d.models import load_tokenizer

        self._tokenizer = load_tokenizer("story-tokenizer")

    def make(self, draw: Draw) -> Case:
        """Rows with faults, as lines or as one array."""
        task, rows = pick(draw, self.ROWS)
        rows, suffix = broken(draw, rows), pick(draw, ("jsonl", "jsonl", "json"))
        lines = (as_json(draw, rows),) if suffix == "json" else (as_json(draw, row) for row in rows)
        return {f"rows.{suffix}": (b"\r\n" if draw.below(5) == 4 else b"\n").join(lines), "task": task.encode()}

    def shaped(self, value: Any) -> Case:
        """A row."""
        return {"rows.jsonl": json.dumps(value).encode("utf-8", "surrogatepass"), "task": b"jsonl"}

    def run(self, case: Case) -> None:
        """Read, render and tokenise."""
        from t3d.config import PromptConfig
        from t3d.tasks import get_task
        from t3d.tasks.prompts import put_questions

        name = next(iter(case))
        (self.folder / name).write_bytes(case[name])
        task = get_task(case["task"].decode(), data=str(self.folder / name))
        asked = put_questions(task, task.problems("all"), PromptConfig(), self._tokenizer)
        for prompt in asked.prompts[:8]:
            self._tokenizer.encode(prompt.text[:100_000], add_special_tokens=False)

    def bombs(self) -> Iterator[tuple[str, Case]]:
        """Of JSON, of Python's parser, and of parquet."""
        row = {"question": "How many?", "answer": 3}
        for suffix in ("jsonl", "json"):
            for what, content in json_bombs([row] if suffix == "json" else row):
                yield f"{suffix}: {what}", {f"rows.{suffix}": content, "task": b"jsonl"}
        for code in (
            "(" * 10**5,
            "-" * 10**6 + "1",
            "x" + ".y" * 10**5,
            "assert " + "+".join("1" * 10**5),
            "[" * 10**5 + "]" * 10**5,
            "\0",
        ):
            yield (
                f"tests: {code[:12]}",
                {"rows.jsonl": json.dumps({"prompt": "p", "tests": code}).encode(), "task": b"jsonl"},
            )
        yield (
            "a thousand long names",
            {"rows.jsonl": json.dumps({f"k{n}" * 50: 1 for n in range(1000)}).encode(), "task": b"jsonl"},
        )
        from fuzzing.parquet import prompt_bombs

        for what, content in prompt_bombs():
            yield f"parquet: {what}", {"rows.parquet": content, "task": b"jsonl"}


class ResultTarget(Target):
    """`t3d compare`, and journals that `t3d eval --resume` goes on from."""

    name = "results"
    mentions = ("result.json", "journal.jsonl", "name", "paired", "folder", "model")
    JOURNAL = "journal.jsonl"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._results = [json.loads(file.read_text()) for file in _some_results()]
        self._journal = [
            {"header": {"identity": {"model": "m"}, "started": "2026", "command": "t3d eval", "version": 2}},
            {
                "setting": 0,
                "place": 1,
                "response": {
                    "part": 0,
                    "elapsed": 1.0,
                    "text": "t",
                    "num_tokens": 1,
                    "num_forwards": 2,
                    "steps": 1,
                    "seconds": 0.5,
                    "finish_reason": "stop",
                    "error": None,
                    "surprisal": 0.1,
                },
            },
            {"setting": 0, "place": 1, "verdict": {"right": True, "outcome": "right", "answer": "1", "detail": ""}},
        ]

    def make(self, draw: Draw) -> Case:
        """A result with faults, or a journal."""
        if draw.below(4) == 3:
            lines = [as_json(draw, line) for line in broken(draw, self._journal)]
            return {self.JOURNAL: b"\n".join(lines) + b"\n"}
        return {"result.json": as_json(draw, broken(draw, pick(draw, self._results)))}

    def shaped(self, value: Any) -> Case:
        """A result with other settings."""
        return {"result.json": json.dumps({**self._results[0], "settings": value}).encode("utf-8", "surrogatepass")}

    def run(self, case: Case) -> None:
        """Read and compare, or go on with."""
        self.write(case)
        (self._go_on if self.JOURNAL in case else self._compare)()

    def _compare(self) -> None:
        from t3d.evaluation import report

        measurements = report.comparable(report.read_results([self.folder / "result.json"]))
        for table in report.paper_tables(measurements, "all"):
            table.records, str(table)
        for each in measurements:
            each.setting.rights()
            json.dumps(each.record())

    def _go_on(self) -> None:
        from t3d.evaluation.journal import Header, open_journal

        journal = open_journal(self.folder, Header({"model": "m"}, "2026", "t3d eval"), resume=True)
        try:
            journal.decoding_seconds(0)
        finally:
            journal.close()

    def bombs(self) -> Iterator[tuple[str, Case]]:
        """Of JSON."""
        for what, content in json_bombs(self._results[0]):
            yield what, {"result.json": content}
            yield f"journal: {what}", {self.JOURNAL: content + b"\n"}


def _some_results() -> list[Path]:
    found = sorted((Path(__file__).resolve().parents[2] / "results" / "evaluation").rglob("*.json"))
    whole = [file for file in found if '"settings"' in file.read_text()[:100_000] and file.stat().st_size < 40_000]
    assert whole, "bench/results/evaluation holds no small result to start from"
    return whole[:3]
