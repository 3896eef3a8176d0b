"""Draw the pictures of docs/concepts.md into docs/, from what `facts.py` computes.

    python docs/pictures/make.py

Each SVG carries the facts that it shows as its description, so that a test can see whether a committed one is current.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from drawing import (
    CLEAN,
    FAINT,
    KNOWN,
    MASK,
    NOISY,
    PAPER,
    RANDOM,
    SMALL,
    STEPS,
    UNSEEN,
    WIDTH,
    arrow,
    box,
    canvas,
    cell,
    legend,
    plot_at,
    write,
)
from facts import FACTS
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

DOCS = Path(__file__).parent.parent


def main() -> None:
    """Draw them all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=DOCS, help="folder for the pictures")
    parser.add_argument("--format", default="svg", choices=["svg", "png"])
    arguments = parser.parse_args()
    for name, draw in PICTURES.items():
        facts = FACTS[name]()
        figure, file = draw(facts), arguments.out / f"concept-{name}.{arguments.format}"
        if arguments.format == "png":
            figure.savefig(file, dpi=100)
        else:
            content = io.StringIO()
            figure.savefig(
                content, format="svg", metadata={"Date": None, "Description": json.dumps(facts, ensure_ascii=False)}
            )
            file.write_text(re.sub(r"\n +", "\n", content.getvalue()))  # indentation is a tenth of it
        plt.close(figure)


def draw_attention(facts: dict[str, Any]) -> Figure:
    """Two matrices: a row sees the coloured columns."""
    figure, sheet = canvas(415)
    size = 15
    decoding, training = facts["decoding"], facts["training"]
    write(sheet, 20, 22, "Decoding: whole blocks", weight="bold")
    write(sheet, 290, 22, "Training: the clean text, then its noisy copy", weight="bold")
    for left, matrix, noisy in ((62, decoding, [0] * len(decoding)), (366, training, facts["training_is_noisy"])):
        top = 62
        for row, sees in enumerate(matrix):
            fills = [(NOISY if noisy[column] else CLEAN) if seen else UNSEEN for column, seen in enumerate(sees)]
            place = 0
            for fill, run in groupby(fills):
                length = len(list(run))
                corner = (left + place * size, top + row * size)
                sheet.add_patch(Rectangle(corner, length * size, size, facecolor=fill, clip_on=False))
                place += length
        for line in range(len(matrix)):
            for across, down in (((0, len(matrix)), (line, line)), ((line, line), (0, len(matrix)))):
                sheet.plot(
                    [left + x * size for x in across], [top + y * size for y in down], color=PAPER, linewidth=0.8
                )
        _name_blocks(sheet, left, top, size, facts, noisy)
    legend(sheet, 392, [(CLEAN, "sees a finished or prompt token"), (NOISY, "sees a token of the noisy block")])
    return figure


def _name_blocks(sheet: Axes, left: float, top: float, size: float, facts: dict[str, Any], noisy: list[int]) -> None:
    """Block numbers along both sides of a matrix, and a line between the two copies."""
    block_size, num_clean = facts["block_size"], noisy.count(0)
    first_noisy = facts["prompt_length"] // block_size
    for place in range(0, len(noisy), block_size):
        number = place // block_size if not noisy[place] else (place - num_clean) // block_size + first_noisy
        middle = (place + block_size / 2) * size
        name = f"noisy {number}" if noisy[place] else f"block {number}"
        write(sheet, left + middle, top - 12, name, SMALL, ha="center", color=FAINT)
        write(sheet, left - 6, top + middle, name, SMALL, ha="right", color=FAINT)
        for line in (place, place + block_size):
            sheet.plot([left + line * size] * 2, [top, top + len(noisy) * size], color=FAINT, linewidth=0.6)
            sheet.plot([left, left + len(noisy) * size], [top + line * size] * 2, color=FAINT, linewidth=0.6)


def draw_trajectory(facts: dict[str, Any]) -> Figure:
    """What each step shows of the first blocks, of two answers."""
    teacher, student = facts["answers"]
    num_steps = [max(each["steps"]) for each in facts["answers"]]
    figure, sheet = canvas(120 + 23 * (sum(num_steps) + 2))
    top = 22.0
    for answer, last in zip((teacher, student), num_steps, strict=True):
        tokens = 4 // answer["steps_per_block"]
        title = f"{answer['model']}, {tokens} token{'s' * (tokens > 1)} a step: "
        title += f"{answer['num_tokens']} tokens in {answer['num_forwards']} forwards"
        write(sheet, 20, top, title, weight="bold")
        top += 20
        for step in range(last + 1):
            write(sheet, 70, top + 10, f"step {step}" if step else "start", SMALL, ha="right", color=FAINT)
            for place, (token, revealed) in enumerate(zip(answer["tokens"], answer["steps"], strict=True)):
                before = answer["steps"][: place // 4 * 4]
                if before and step <= max(before):
                    break  # this block has not begun
                fill = KNOWN if revealed == 0 else STEPS[2] if revealed == step else STEPS[0]
                known = revealed <= step
                cell(sheet, _column(place), top, 47, 20, token if known else "", fill if known else MASK)
            top += 23
        top += 26
    legend(
        sheet,
        top - 6,
        [(KNOWN, "prompt"), ("", "mask"), (STEPS[2], "revealed in this step"), (STEPS[0], "revealed before")],
    )
    return figure


def _column(place: int) -> float:
    """Left edge of a token's column; a gap ends a block."""
    return 80 + place * 48.5 + place // 4 * 12


def draw_hiding(facts: dict[str, Any]) -> Figure:
    """The noisy copy at each ratio."""
    figure, sheet = canvas(292)
    write(sheet, 20, 22, "The answer, and when the teacher revealed each token of a block", weight="bold")
    for place, (token, turn) in enumerate(zip(facts["tokens"], facts["turns"], strict=True)):
        fill = STEPS[turn - 1] if turn else KNOWN
        cell(sheet, _column(place), 40, 47, 20, token, fill)
        write(sheet, _column(place) + 23.5, 71, f"{turn}." if turn else "", SMALL, ha="center", color=FAINT)
    top = 112.0
    write(sheet, 20, top - 17, "What a training example shows of it, by hidden ratio r", weight="bold")
    for row in facts["rows"]:
        if row["mask_order"] == "reverse":
            top += 29
            write(
                sheet,
                20,
                top - 15,
                "The other way round (mask_order: reverse): a state that decoding never is in",
                weight="bold",
            )
        write(sheet, 70, top + 10, f"r = {row['ratio']:g}", SMALL, ha="right", color=FAINT)
        for place, token in enumerate(row["tokens"]):
            is_random = token is not None and place in row["loss"]
            fill = KNOWN if place < facts["num_known"] else RANDOM if is_random else STEPS[0]
            cell(sheet, _column(place), top, 47, 20, token or "", fill if token else MASK)
        top += 23
    top += 20
    entries = [(KNOWN, "prompt"), (STEPS[0], "shown"), ("", "mask, with loss"), (RANDOM, "random token, with loss")]
    legend(sheet, top - 3, entries)
    return figure


def draw_budget(facts: dict[str, Any]) -> Figure:
    """Forwards in time with and without the fused commit; tokens per forward against tokens per step."""
    figure, sheet = canvas(385)
    write(sheet, 20, 22, "Two tokens a step: which forwards the first three blocks take", weight="bold")
    names = "ABC"
    plain, fused, pending = [("prompt", KNOWN)], [("prompt", KNOWN)], ""
    for name, steps in zip(names, facts["timeline"], strict=True):
        for _ in range(steps):
            plain.append((name, STEPS[1]))
            fused.append((f"{pending}{name}", NOISY if pending else STEPS[1]))
            pending = ""
        plain.append((name, NOISY))
        pending = f"{name}+"
    for top, label, forwards in ((42, "a forward for\neach commit", plain), (86, "the commit\nrides along", fused)):
        sheet.text(95, top + 16, label, fontsize=SMALL, ha="right", va="center", color=FAINT)
        for place, (text, fill) in enumerate(forwards):
            cell(sheet, 108 + 62 * place, top, 58, 32, text, fill)
    legend(sheet, 142, [(STEPS[1], "reveals tokens"), (NOISY, "also, or only, writes a finished block to the cache")])

    axes = plot_at(figure, 70, 176, 330, 160)
    tokens = [row["tokens_per_step"] for row in facts["rows"]]
    for key, label, style in (
        ("num_forwards", "T3D", "o-"),
        ("num_forwards_unfused", "a forward for each commit", "s--"),
    ):
        values = [row["num_tokens"] / row[key] for row in facts["rows"]]
        axes.plot(tokens, values, style, color="#2f6fab" if key == "num_forwards" else "#b35900", label=label)
        for x, y in zip(tokens, values, strict=True):
            offset = (0, 8) if key == "num_forwards" else (0, -16)
            axes.annotate(f"{y:.2f}", (x, y), offset, textcoords="offset points", ha="center", fontsize=SMALL)
    axes.set_xticks(tokens)
    axes.set_ylim(0, 4.4)
    axes.set_xlim(0.6, 4.4)
    axes.set_xlabel("tokens per step")
    axes.set_ylabel("tokens per forward")
    num_tokens = facts["rows"][0]["num_tokens"]
    text = f"One answer of story-mini-student,\n{num_tokens} tokens; all forwards counted,\nthe prompt's too"
    sheet.text(430, 205, text, fontsize=SMALL, va="center", linespacing=1.4)
    for y, color, mark, label in ((255, "#2f6fab", "o-", "T3D"), (280, "#b35900", "s--", "a forward for each commit")):
        sheet.plot([432, 452, 472], [y] * 3, mark, color=color, markevery=[1])
        write(sheet, 482, y, label, SMALL)
    return figure


def draw_objective(facts: dict[str, Any]) -> Figure:
    """The terms of DDO over their gaps; the weight of each rank in the path term."""
    figure, sheet = canvas(300)
    write(sheet, 20, 22, "DDO: what each gap costs", weight="bold")
    write(sheet, 360, 22, "Path term: weight by order of reveal, B = 8", weight="bold")
    axes = plot_at(figure, 55, 44, 270, 190)
    axes.plot(facts["gaps"], facts["terms"]["ddo_real"], "-", color="#2f6fab")
    axes.plot(facts["gaps"], facts["terms"]["ddo_fake"], "--", color="#b35900")
    axes.axvline(0, color=FAINT, linewidth=0.6)
    axes.set_ylabel("loss")
    axes.set_xlabel("gap: student − reference,\nmean log-probability (nats)")
    axes.text(-37, 4.3, "real tokens", color="#2f6fab", fontsize=SMALL)
    axes.text(14, 2.55, "fake tokens", color="#b35900", fontsize=SMALL)
    bars = plot_at(figure, 425, 44, 250, 190)
    styles = {"2": ("#74b3e3", -0.28), "4": ("#1f4e79", 0.0), "8": ("#c5ccd3", 0.28)}
    for k, weights in facts["path_weights"].items():
        color, shift = styles[k]
        bars.bar([rank + 1 + shift for rank in range(8)], weights, 0.27, color=color, label=f"k = {k}")
    bars.legend(frameon=False, fontsize=SMALL, loc="upper right")
    bars.set_xticks(range(1, 9))
    bars.set_xlabel("order of reveal in the block")
    bars.set_ylabel("weight")
    return figure


def draw_rounds(facts: dict[str, Any]) -> Figure:
    """Who answers, at how many tokens per step, and whom it trains."""
    figure, sheet = canvas(300)
    write(sheet, 20, 22, "The demo's rounds: each student answers for the next, at ever fewer steps", weight="bold")
    count = len(facts["tokens_per_step"])
    step = (WIDTH - 22) / (count + 1)
    width = step - 18
    for number in range(count + 1):
        x = 20 + number * step
        name = f"teacher\n{facts['teacher']}" if number == 0 else f"student {number}"
        box(sheet, x, 50, width, 54, name, KNOWN if number == 0 else STEPS[min(number, 4) - 1])
        if number == count:
            break
        tokens = facts["tokens_per_step"][number]
        text = f"{facts['answers']} answers,\n{tokens} token{'s' * (tokens > 1)} a step"
        box(sheet, x, 142, width, 54, text, PAPER)
        arrow(sheet, (x + width / 2, 106), (x + width / 2, 140))
        arrow(sheet, (x + width - 14, 142), (x + step + 14, 104))
    share = f"{facts['teacher_share']:.0%}"
    lines = (
        "Kept: answers that agree with the teacher's full-step answer to the same question. No labels are used.",
        f"From round 2 on {share} of the examples are the teacher's answers of round 1, which keeps full-step decoding",
        "as it was. One round, the teacher's, is the paper.",
    )
    for place, line in enumerate(lines):
        write(sheet, 20, 226 + 20 * place, line, SMALL)
    return figure


PICTURES: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "attention": draw_attention,
    "trajectory": draw_trajectory,
    "hiding": draw_hiding,
    "budget": draw_budget,
    "objective": draw_objective,
    "rounds": draw_rounds,
}

if __name__ == "__main__":
    main()
