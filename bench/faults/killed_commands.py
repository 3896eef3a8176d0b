"""The commands that are killed: tiny ones, whose runs take seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

STUDY = """
teacher: {model}
out: {out}
seeds: [0]
learning_rates: [1.0e-3]
rollout: {{task: story, count: 12, max_new_tokens: 12, temperature: 1.0}}
recipe:
  optim: {{steps: 6, examples_per_step: 4, warmup_steps: 1}}
  batch: {{tokens_per_batch: 200}}
  checkpoint: {{every_steps: 2}}
  log_every: 1
  device: cpu
tune: {{limit: 3, tokens_per_step: [1, 4]}}
test: {{limit: 6, tokens_per_step: [1, 4], thresholds: [0.5], max_new_tokens: 12}}
methods:
  plain: {{objective: {{name: trajectory_ce}}, about: one training}}
"""
RECIPE = """
model: {{source: {model}}}
objective: {{name: t3d}}
data: {{trajectories: {rows}, keep_unfinished: true}}
optim: {{steps: 36, examples_per_step: 4, lr: 1.0e-3, warmup_steps: 2, keep_moments: true}}
batch: {{tokens_per_batch: 120}}
reference: {{refresh_every: 5}}
checkpoint: {{every_steps: 3, keep: 2}}
evaluation: {{benchmark: story, every_steps: 9, at_start: true, limit: 4, tokens_per_step: [1, 4], max_new_tokens: 8}}
log_every: 1
device: cpu
out: {out}
"""
ROUNDS = """
model: {{source: {model}}}
objective: {{name: t3d}}
optim: {{steps: 6, examples_per_step: 4, lr: 1.0e-3, warmup_steps: 1}}
batch: {{tokens_per_batch: 120}}
checkpoint: {{every_steps: 2}}
rounds:
  - {{rollout: {{task: story, count: 12, max_new_tokens: 12, temperature: 1.0}}, keep_unfinished: true}}
  - {{rollout: {{task: story, count: 12, max_new_tokens: 12, temperature: 1.0}}, keep_unfinished: true}}
log_every: 1
device: cpu
out: {out}
"""


def words_of_rollout(inputs: Path, out: Path) -> list[str]:
    """Thirty shards of four rows."""
    words = f"rollout --model {inputs}/model --out {out} --task story --limit 120 --rows-per-shard 4 --device cpu"
    return [*words.split(), "--max-new-tokens", "16", "--temperature", "1.0"]


def words_of_evaluation(inputs: Path, out: Path) -> list[str]:
    """Two settings, 24 answers each."""
    words = f"eval --model {inputs}/model --out {out} --limit 12 --samples 2 --tokens-per-step 1,4 --device cpu"
    return [*words.split(), "--threshold", "", "--max-new-tokens", "16", "--temperature", "1.0", "--batch-size", "4"]


def words_with_file(command: str, text: str) -> Callable[[Path, Path], list[str]]:
    """A command that reads all it needs from a YAML file."""

    def words(inputs: Path, out: Path) -> list[str]:
        file = out.with_suffix(".yaml")
        file.write_text(text.format(model=inputs / "model", rows=inputs / "rows", out=out))
        return [command, str(file)]

    return words
