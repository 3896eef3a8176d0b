"""How often the continuous backend's tokens are the plain one's, and how near a tie the first difference was.

    python bench/engine_agreement.py --model story-small --dtype bfloat16 --device cuda --out FILE.json

In float32 they agree but for rounding; in bfloat16 two kernels round differently, and where two candidates are nearly
equally sure the other one may be revealed, after which the texts differ. The first difference of a request is
explained by a tie if both backends gave what they chose there nearly the same probability.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import torch
import transformers

from t3d.bench.shapes import SHAPES, build_model, random_prompts, shape_config
from t3d.config import PromptConfig
from t3d.engine import Engine
from t3d.files import write_whole
from t3d.models import device_name, load_model, load_tokenizer
from t3d.tasks import get_task
from t3d.tasks.prompts import put_questions
from t3d.types import Decoding, Generation


def main() -> None:
    """Decode the same prompts twice and compare."""
    arguments = parse()
    torch_dtype = getattr(torch, arguments.dtype)
    if arguments.model in SHAPES and arguments.model != "story-small":
        model = build_model(shape_config(arguments.model), torch.device(arguments.device), torch_dtype, seed=0)
        prompts = random_prompts(model.config, arguments.requests, 128, np.random.default_rng(0))
        stop_token_ids: list[int] | None = []
    else:
        model = load_model(arguments.model, dtype=arguments.dtype, device=arguments.device)
        tokenizer = load_tokenizer(arguments.model)
        task = get_task("story")
        asked = put_questions(task, task.problems("test", arguments.requests), PromptConfig(), tokenizer)
        prompts = [tokenizer.encode(prompt.text, add_special_tokens=False) for prompt in asked.prompts]
        stop_token_ids = None
    rows = []
    for steps_per_block in (1, 2, 4):
        decoding = Decoding(block_size=4, steps_per_block=steps_per_block, max_new_tokens=arguments.new_tokens)
        fast, plain = (
            Engine(model, stop_token_ids=stop_token_ids, backend=backend).generate(prompts, decoding)
            for backend in ("continuous", "plain")
        )
        rows.append({"steps_per_block": steps_per_block, **compare(fast, plain)})
        print(rows[-1])
    result = {
        "date": date.today().isoformat(),
        "device": device_name(torch.device(arguments.device)),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "command": " ".join(["python", *sys.argv]),
        "model": arguments.model,
        "dtype": arguments.dtype,
        "rows": rows,
    }
    write_whole(Path(arguments.out), json.dumps(result, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="story-small", help="folder, hub id, story-small, or a shape of t3d bench")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--new-tokens", type=int, default=160)
    parser.add_argument("--out", required=True)
    return parser.parse_args()


def compare(fast: list[Generation], plain: list[Generation]) -> dict[str, float]:
    """Shares of requests and tokens that agree, and the gap in log-probability at the first differences."""
    same = [one.token_ids == other.token_ids for one, other in zip(fast, plain, strict=True)]
    tokens = [
        (token, expected)
        for one, other in zip(fast, plain, strict=True)
        for token, expected in zip(one.token_ids, other.token_ids, strict=False)
    ]
    gaps = [gap for one, other in zip(fast, plain, strict=True) if (gap := first_gap(one, other)) is not None]
    return {
        "requests": len(fast),
        "same_responses": sum(same) / len(same),
        "same_tokens": sum(token == expected for token, expected in tokens) / len(tokens),
        "first_differences": len(gaps),
        "median_gap_nats": float(np.median(gaps)) if gaps else 0.0,
        "largest_gap_nats": float(max(gaps, default=0.0)),
    }


def first_gap(one: Generation, other: Generation) -> float | None:
    """At the first step that revealed something else: how far apart the two least sure choices were, in nats."""
    for left, right in zip(by_step(one), by_step(other), strict=False):
        if {(place, token) for place, token, _ in left} != {(place, token) for place, token, _ in right}:
            return abs(min(np.log(sure) for *_, sure in left) - min(np.log(sure) for *_, sure in right))
    return None


def by_step(generation: Generation) -> Iterator[list[tuple[int, int, float]]]:
    """(place, token, confidence) of what each step revealed."""
    revealed: dict[int, list[tuple[int, int, float]]] = {}
    columns = zip(generation.token_ids, generation.reveal_steps, generation.confidences, strict=True)
    for place, (token, step, confidence) in enumerate(columns):
        revealed.setdefault(step, []).append((place, token, confidence))
    for step in sorted(revealed):
        yield revealed[step]


if __name__ == "__main__":
    main()
