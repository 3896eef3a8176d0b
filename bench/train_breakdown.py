"""Draw where the time of a training step goes, ours beside the public code's: docs/training-step.svg.

    python bench/train_breakdown.py

Ours is read from bench/results/train-*.json. The public code's parts were measured on an H200 at the same shapes and
average lengths, in its shipped configuration (512 + 1,024 padded positions, batch 1, checkpointing, Liger, bfloat16
AdamW), a part at a time, so that they add up to a little more than the whole.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

RESULTS, PICTURE = Path("bench", "results"), Path("docs", "training-step.svg")
PARTS = {"reference": "#4c72b0", "forward": "#55a868", "losses": "#c44e52", "backward": "#8172b3", "rest": "#999999"}
"""What a step consists of; our losses are part of the forward, and our rest holds the optimizer."""
PUBLIC = {
    "SDAR-1.7B": {"reference": 0.083, "forward": 0.088, "losses": 0.048, "backward": 0.168},
    "SDAR-4B": {"reference": 0.145, "forward": 0.143, "losses": 0.063, "backward": 0.348},
}
OURS = {"SDAR-1.7B": "train-sdar-1.7b-real.json", "SDAR-4B": "train-sdar-4b-real.json"}


def main() -> None:
    """Two bars a model, in milliseconds an example."""
    bars = {}
    for model, file in OURS.items():
        phases = json.loads((RESULTS / file).read_text())["rows"][0]["phases"]
        bars[f"{model}, public code"] = PUBLIC[model]
        bars[f"{model}, t3d"] = {**phases, "rest": phases["rest"] + phases["optimizer"]}
    figure, axes = plt.subplots(figsize=(8.5, 2.8))
    for place, parts in enumerate(bars.values()):
        left = 0.0
        for part, color in PARTS.items():
            width = 1000 * parts.get(part, 0.0)
            axes.barh(place, width, left=left, color=color, label=part if place == 0 or part == "rest" else None)
            left += width
        axes.text(left + 6, place, f"{left:.0f} ms", va="center")
    axes.set_yticks(range(len(bars)), list(bars))
    axes.invert_yaxis()
    axes.set_xlim(0, 780)
    axes.set_xlabel("milliseconds an example (one H200; 100 prompt and 300 response tokens on average)")
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes.legend(unique.values(), unique.keys(), frameon=False, ncols=5, loc="lower left", bbox_to_anchor=(0, 1))
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
