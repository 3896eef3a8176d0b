"""Kill commands at random moments, go on with --resume, and compare what they leave with an undisturbed run.

    python bench/faults/kill.py --out bench/results/faults/kill.json
    python bench/faults/kill.py --what train --kills 200 --seed 1 --out kill.json

Every run is the command itself, in a process group of its own that is forked from this process, which has done the slow
imports; SIGKILL goes to the whole group. Half of the moments are drawn over the time of an undisturbed run, from its
first instant to its end; the other half are changes in its folder (a file that appears, goes or grows), at which the
kill comes within milliseconds: in the middle of what is being written. Up to `KILLS_A_RUN` kills hit one run before it
may end. Kinds that the result file holds with as many kills are not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from killed_commands import RECIPE, ROUNDS, STUDY, words_of_evaluation, words_of_rollout, words_with_file
from left_behind import differences_of_evaluation, differences_of_rollout, differences_of_study, differences_of_training

import t3d.evaluation
import t3d.study.run
import t3d.training
import t3d.trajectories.rollout
from t3d.cli import run
from t3d.files import write_whole
from t3d.models import load_tokenizer, random_model, save_model

IMPORTED = (t3d.evaluation, t3d.study.run, t3d.training, t3d.trajectories.rollout)
"""Before the first fork, so that no run spends its time on them."""
SHAPES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "initializer_range": 0.4,
    "block_size": 4,
}
KILLS_A_RUN = 4
LOOK_EVERY_SECONDS = 0.002
LONGEST_DELAY_SECONDS = 0.006
"""Between a change in the folder and the kill."""
PATIENCE_SECONDS = 300.0
HALF_WRITTEN = ("*.partial", ".*.partial", ".*.previous", ".t3d-tmp-*")
Compare = Callable[[Path, Path], list[str]]
"""What differs between the folder of an undisturbed run and another one, but for clocks."""


@dataclass(frozen=True)
class Kind:
    """A command.

    Attributes:
        words: of the command line that writes into a folder, without --resume.
        compare: two folders that it wrote.
        kills: share of `--kills` that it gets.
    """

    words: Callable[[Path, Path], list[str]]
    compare: Compare
    kills: float = 1.0


@dataclass
class Found:
    """What came of one kind.

    Attributes:
        kills, runs: so many kills, spread over so many runs, each of which was let go on to its end.
        seconds: of the undisturbed run.
        at_a_change: kills at a change in the folder, not at a drawn time.
        amid_a_write: kills that left a half-written file or folder behind.
        moments: what the folder held at each kill, as `state_of` says it, and how often.
        wrong: what differed, or went wrong.
    """

    kills: int = 0
    runs: int = 0
    seconds: float = 0.0
    at_a_change: int = 0
    amid_a_write: int = 0
    moments: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


KINDS = {
    "rollout": Kind(words_of_rollout, differences_of_rollout),
    "train": Kind(words_with_file("train", RECIPE), differences_of_training),
    "eval": Kind(words_of_evaluation, differences_of_evaluation),
    "train with rounds": Kind(words_with_file("train", ROUNDS), differences_of_training, kills=0.2),
    "study": Kind(words_with_file("study", STUDY), differences_of_study, kills=0.2),
}


class Command:
    """A command in a process group of its own.

    Attributes:
        code: with which it ended; None while it runs.
    """

    def __init__(self, words: list[str], log: Path) -> None:
        self._log, self._written = log, log.stat().st_size if log.exists() else 0
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            code = 70
            try:
                code = run(words)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def exit_code(self, wait: bool = False) -> int | None:
        """None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, 0 if wait else os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def kill(self) -> None:
        """What `kill -9` does, to all that it started too."""
        os.killpg(self.pid, signal.SIGKILL)
        self.exit_code(wait=True)

    def said(self) -> str:
        """What it printed."""
        with self._log.open("rb") as stream:
            stream.seek(self._written)
            return stream.read().decode(errors="replace")


def moments(count: int, seed: int) -> list[tuple[str, float]]:
    """When to kill: ("time", share of a whole run), spread evenly, and ("change", share of the whole run's changes)."""
    rng = random.Random(seed)
    spread = [("change" if place % 2 else "time", (place + rng.random()) / count) for place in range(count)]
    rng.shuffle(spread)
    return spread


def kill_again_and_again(kind: Kind, inputs: Path, folder: Path, count: int, seed: int) -> Found:
    """Kill a command `count` times; every run is then let go on to its end and compared."""
    found, rng = Found(), random.Random(seed)
    whole = folder / "whole"
    found.seconds, changes = undisturbed(kind.words(inputs, whole), whole)
    todo, number = moments(count, seed), 0
    while todo:
        number += 1
        out, log = folder / f"run-{number}", folder / f"run-{number}.log"
        words = kind.words(inputs, out)
        for own in range(KILLS_A_RUN):
            if not todo:
                break
            how, share = todo.pop()
            at = share * (found.seconds if how == "time" else changes)
            command = Command([*words, "--resume"] if own else words, log)
            if not killed(command, out, how, at, rng):
                todo.insert(0, (how, share if own else 0.9 * share))  # it was over before
                found.wrong += failures(command, out, resumed=own > 0)
                break
            found.kills += 1
            found.at_a_change += how == "change"
            found.amid_a_write += any(any(out.rglob(each)) for each in HALF_WRITTEN)
            state = state_of(out)
            found.moments[state] = found.moments.get(state, 0) + 1
        command = Command([*words, "--resume"], log)
        command.exit_code(wait=True)
        found.wrong += failures(command, out, resumed=True)
        found.wrong += [f"{out.name}: {each}" for each in kind.compare(whole, out)]
        found.runs += 1
    return found


def undisturbed(words: list[str], out: Path) -> tuple[float, int]:
    """Run a command to its end; its seconds, and how often its folder changed."""
    started, changes = time.monotonic(), 0
    command, before = Command(words, out.with_suffix(".log")), look(out)
    while (code := command.exit_code()) is None:
        time.sleep(LOOK_EVERY_SECONDS)
        now = look(out)
        changes += now != before
        before = now
    if code != 0:
        raise SystemExit(f"{' '.join(words)} ended with {code}: {command.said()}")
    return time.monotonic() - started, changes


def killed(command: Command, out: Path, how: str, at: float, rng: random.Random) -> bool:
    """Kill a command at a time, or a number of changes, after its start; False if it ended before."""
    started, changes, before = time.monotonic(), 0, look(out)
    delay = LONGEST_DELAY_SECONDS * rng.random()
    while command.exit_code() is None:
        now = look(out)
        changes += now != before
        before = now
        if (changes > at) if how == "change" else (time.monotonic() - started > at):
            time.sleep(delay if how == "change" else 0.0)
            command.kill()
            return True
        if time.monotonic() - started > PATIENCE_SECONDS:
            command.kill()
            raise SystemExit(f"hangs: {command.said()[-500:]}")
        time.sleep(LOOK_EVERY_SECONDS)
    return False


def look(out: Path) -> dict[str, int]:
    """The files below a folder with their sizes."""
    return dict(_files(str(out)))


def _files(folder: str) -> Iterator[tuple[str, int]]:
    try:
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                yield entry.path, 0
                yield from _files(entry.path)
            else:
                yield entry.path, entry.stat().st_size
    except OSError:  # gone meanwhile, or not yet there
        return


def state_of(out: Path) -> str:
    """How far a run was, in a word or two."""
    if not out.exists() or not any(out.iterdir()):
        return "nothing written"
    if (out / "outcome.json").exists():
        return "all written"
    shards, checkpoints = len([*out.rglob("shard-*.parquet")]), len([*out.rglob("step-*")])
    lines = sum(file.read_bytes().count(b"\n") for file in (*out.rglob("metrics.jsonl"), *out.rglob("journal.jsonl")))
    parts = {"shards": shards, "checkpoints": checkpoints, "lines": lines // 10 * 10}
    return ", ".join(f"{count} {name}" for name, count in parts.items() if count) or "begun"


def failures(command: Command, out: Path, resumed: bool) -> list[str]:
    """What went wrong in a part of a run that was not killed: a traceback, or an exit code that it should not have."""
    said, code = command.said(), command.code
    is_over = resumed and code == 2 and "this run is finished" in said  # nothing was left to do, as `t3d train` says
    if "Traceback" in said or not (code == 0 or is_over):
        return [f"{out.name}: ended with {code}: {said[-1500:]}"]
    return []


def make_inputs(folder: Path) -> Path:
    """A tiny random model, and trajectories of it."""
    tokenizer = load_tokenizer("story-tokenizer")
    model = random_model(SHAPES, tokenizer, seed=0)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(100, 160)]
    save_model(model, folder / "model", tokenizer)
    undisturbed([*words_of_rollout(folder, folder / "rows"), "--limit", "24"], folder / "rows")
    return folder


def main() -> None:
    """Kill, compare and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--what", default=",".join(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it cannot go with forks
    torch.set_num_threads(1)
    table: dict[str, Any] = json.loads(asked.out.read_text())["commands"] if asked.out.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        inputs = make_inputs(Path(name))
        for what in asked.what.split(","):
            count = max(1, round(asked.kills * KINDS[what].kills))
            if table.get(what, {}).get("kills", 0) >= count:
                continue
            folder = Path(name) / what.replace(" ", "-")
            folder.mkdir()
            table[what] = asdict(kill_again_and_again(KINDS[what], inputs, folder, count, asked.seed))
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            write_whole(asked.out, json.dumps({"seed": asked.seed, "commands": table}, indent=1) + "\n")
    show(table)
    sys.exit(any(each["wrong"] for each in table.values()))


def show(table: dict[str, Any]) -> None:
    """The result, short."""
    print(f"{'command':20}{'kills':>6}{'runs':>6}{'at a change':>13}{'amid a write':>14}{'wrong':>7}")
    for name, row in table.items():
        cells = (f"{row[key]:{width}}" for key, width in (("kills", 6), ("runs", 6), ("at_a_change", 13)))
        print(f"{name:20}{''.join(cells)}{row['amid_a_write']:14}{len(row['wrong']):7}")
        for each in row["wrong"]:
            print(f"  {each}")


if __name__ == "__main__":
    main()
