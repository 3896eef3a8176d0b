"""Files of the public T3D code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fuzzing.drawing import VALUES, Draw, broken, broken_bytes, pick
from fuzzing.targets import Case, Target, json_bombs
from fuzzing.yaml_files import MARK, as_yaml, yaml_bombs

INTERPOLATIONS = (
    "${training.seed}",
    "${oc.env:HOME}",
    "${a.b}${c.d}",
    "${",
    "${oc.decode:'__import__'}",
    "???",
    "x${training.seed}" * 50,
)


class RolloutTarget(Target):
    """`t3d convert upstream-rollouts`, up to the tables that would be written."""

    name = "upstream-rollouts"
    mentions = ("rollouts.json",)
    file = "rollouts.json"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from t3d.interop.upstream.rollouts import load_vocabulary

        self._vocabulary = load_vocabulary("story-mini")
        answer = " She has 64 shells and 3 boxes.<|endoftext|>"
        steps = [*range(1, 1 + len(self._vocabulary.tokenizer.encode(answer)))]
        row = {"question": "?", "prompt": "Anna has 32 shells.\nAnswer:", "ground_truth_answer": "64"}
        self._rows = [
            {**row, "full_output": [answer, answer], "step_map": [steps, steps], "response_length": [9, 9]},
            {**row, "prompt": "Anna has 31 shells.\nAnswer:", "answer": [answer], "step_map": [steps]},
        ]

    def make(self, draw: Draw) -> Case:
        """Rows with faults; now and then with bytes at fault."""
        text = json.dumps(broken(draw, self._rows), ensure_ascii=draw.below(2) == 1)
        data = text.encode("utf-8", "surrogatepass")
        return {self.file: broken_bytes(draw, data) if draw.below(4) == 3 else data}

    def shaped(self, value: Any) -> Case:
        """A row."""
        return {self.file: json.dumps([self._rows[0], value]).encode("utf-8", "surrogatepass")}

    def run(self, case: Case) -> None:
        """Read, judge and tabulate."""
        from t3d.interop.upstream.rollouts import convert_to_tables
        from t3d.interop.upstream.rows import RowConverter
        from t3d.types import Decoding

        self.write(case)
        converter = RowConverter(self._vocabulary, Decoding(block_size=4, steps_per_block=4), "repair")
        tables = convert_to_tables(self.folder / self.file, converter, "story-mini", shown=False)
        assert sum(map(len, tables)) == converter.tally.num_kept, "rows were lost"
        json.dumps(converter.tally.to_dict())
        converter.tally.lines()

    def bombs(self) -> Iterator[tuple[str, Case]]:
        """Those of JSON."""
        for what, content in json_bombs(self._rows):
            yield what, {self.file: content}
        for step in (10**30, -1, 0, 2**63, 1e308):
            row = {**self._rows[1], "step_map": [[step] * len(self._rows[1]["step_map"][0])]}
            yield f"every step is {step}", {self.file: json.dumps([row]).encode()}


class ConfigTarget(Target):
    """`t3d convert upstream-config`."""

    name = "upstream-config"
    mentions = ("config.yaml", "override")
    file = "config.yaml"
    DOCUMENT: dict[str, Any] = {  # noqa: RUF012
        "experiment": {"project": "p", "save_every_steps": 256, "max_grad_norm": 1.0, "gradient_clipping": True},
        "model": {"pretrained_model": "JetLM/SDAR-4B-Chat", "random_ratio": 0.1},
        "dataset": {"optimization_data": "rows"},
        "training": {
            "gradient_accumulation_steps": 32,
            "mixed_precision": "bf16",
            "seed": 10086,
            "num_train_epochs": 30,
            "mask_strategy": "trace",
            "mask_ratios": [1.0, 0.75],
            "multi_round": True,
            "round_interval": 10,
        },
        "optimizer": {"name": "adamw", "params": {"learning_rate": "1e-5", "weight_decay": 0.01}},
        "lr_scheduler": {"scheduler": "cosine", "params": {"learning_rate": "${optimizer.params.learning_rate}"}},
    }

    def make(self, draw: Draw) -> Case:
        """In flow style, with other values and interpolations."""
        values = (*VALUES, *INTERPOLATIONS, MARK, MARK, MARK)
        return {self.file: as_yaml(draw, broken(draw, self.DOCUMENT, values)), "override": self._override(draw)}

    def shaped(self, value: Any) -> Case:
        """A value in place of a group."""
        document = json.dumps({**self.DOCUMENT, "training": value})
        return {self.file: document.encode("utf-8", "surrogatepass"), "override": b""}

    def run(self, case: Case) -> None:
        """Convert, and read what was written."""
        from t3d.config import load_recipe
        from t3d.interop.upstream.recipe import convert_config

        (self.folder / self.file).write_bytes(case[self.file])
        out = self.folder / "recipe.yaml"
        out.unlink(missing_ok=True)
        overrides = [case["override"].decode()] if case["override"] else []
        done = convert_config(self.folder / self.file, out, overrides, num_rows=1000)
        assert load_recipe(out) == done.recipe, "not the same when read again"

    def bombs(self) -> Iterator[tuple[str, Case]]:
        """Those of YAML and JSON, and references without end."""
        for what, content in (*json_bombs(self.DOCUMENT), *yaml_bombs(yaml.safe_dump(self.DOCUMENT))):
            yield what, {self.file: content, "override": b""}
        laughs = {f"a{n}": f"${{a{n - 1}}}" * 9 for n in range(1, 30)}
        document = json.dumps({**self.DOCUMENT, **laughs, "a0": "x" * 9}).encode()
        yield "references that multiply", {self.file: document, "override": b""}

    def _override(self, draw: Draw) -> bytes:
        if draw.below(3):
            return b""
        key = pick(draw, ("training.seed", "optimizer.params.learning_rate", "model", "x", ""))
        return f"{key}={pick(draw, INTERPOLATIONS)}".encode()
