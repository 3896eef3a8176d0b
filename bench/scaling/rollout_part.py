"""One process of `rollout.py`: load, warm up, wait for the others, do this process's part of a rollout.

    python bench/scaling/rollout_part.py FOLDER SHARDS [--tiny]      # alone, or under torchrun

Writes the rows to FOLDER/rollout and what it took to FOLDER/part-RANK.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import distributed

from t3d.bench.shapes import build_model, shape_config
from t3d.engine import Engine
from t3d.models import BlockDiffusionConfig, device_name, load_config, load_tokenizer
from t3d.trajectories import Part, rollout
from t3d.trajectories.parts import rank_of, use_own_gpu
from t3d.types import Decoding, Prompt
from t3d.versions import versions


@dataclass(frozen=True)
class Size:
    """What is measured.

    Attributes:
        config: of a model that gets random weights.
        device, dtype: that it runs in.
        rows_per_shard, prompt_tokens, new_tokens: no answer is shorter than it may be.
        concurrency: requests decoded together.
        memory_gib: of the device; None is nine tenths of it.
    """

    config: BlockDiffusionConfig
    device: str
    dtype: torch.dtype
    rows_per_shard: int
    prompt_tokens: int
    new_tokens: int
    concurrency: int
    memory_gib: float | None

    def decoding(self) -> Decoding:
        """One step a block, so that nothing hides what moving the work costs."""
        return Decoding(4, 1, temperature=1.0, max_new_tokens=self.new_tokens, seed=3)

    def build(self) -> Engine:
        """The same weights in every process. No answer ends by itself."""
        model = build_model(self.config, torch.device(self.device), self.dtype)
        return Engine(
            model,
            load_tokenizer("story-mini"),
            stop_token_ids=[],
            max_batch_size=self.concurrency,
            memory_gib=self.memory_gib,
        )

    def texts(self, count: int, seed: int) -> list[str]:
        """Prompts: random digits, each of which is a token."""
        digits = random.Random(seed)
        return ["".join(digits.choices("0123456789", k=self.prompt_tokens)) for _ in range(count)]


def size_of(tiny: bool) -> Size:
    """As `t3d bench rollout` measures SDAR-1.7B with all slots full; or something that a CPU does in seconds."""
    if tiny:
        return Size(load_config("story-mini"), "cpu", torch.float32, 8, 16, 32, 8, None)
    return Size(shape_config("sdar-1.7b"), "cuda", torch.bfloat16, 1024, 128, 512, 256, 60.0)


def main() -> None:
    """Do this process's part."""
    parser = argparse.ArgumentParser(description="One process of rollout.py.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("shards", type=int)
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    size, part = size_of(asked.tiny), rank_of(os.environ)
    use_own_gpu(os.environ, size.device)
    engine, decoding = size.build(), size.decoding()
    loaded, load_seconds = time.monotonic(), time.time() - psutil.Process().create_time()
    engine.generate(engine.encode(size.texts(size.concurrency, seed=1)), decoding)  # all that is compiled or captured
    warm = time.monotonic()
    texts = size.texts(asked.shards * size.rows_per_shard, seed=2)
    prompts = [Prompt(str(number), text) for number, text in enumerate(texts)]
    with together(part) as wait_for_all:
        begun = time.monotonic()
        done = rollout(
            engine,
            prompts,
            decoding,
            asked.folder / "rollout",
            model_name="random weights",
            rows_per_shard=size.rows_per_shard,
            part=part,
            shown=part.index == 0,
        )
        ended = time.monotonic()
        wait_for_all()
        all_ended = time.monotonic()
    found = {
        "device": device_name(engine.model.device),
        "versions": versions(),
        "load_seconds": round(load_seconds, 2),
        "warm_up_seconds": round(warm - loaded, 2),
        "seconds": round(ended - begun, 3),
        "seconds_of_all": round(all_ended - begun, 3),
        "rows": done.num_rows,
        "tokens": done.num_tokens,
    }
    (asked.folder / f"part-{part.index}.json").write_text(json.dumps(found) + "\n")


@contextmanager
def together(part: Part) -> Iterator[Callable[[], None]]:
    """Begin when all processes have come here; gives what waits until all have come there."""
    if part.count == 1:
        yield lambda: None
        return
    distributed.init_process_group("gloo")
    try:
        distributed.barrier()
        yield distributed.barrier
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
