"""Sheets, cells, boxes and arrows: what the pictures are made of."""

from __future__ import annotations

from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

WIDTH = 700
"""Of every picture, in the units of its drawing: pixels, about, where it is shown in full."""
INK, FAINT, PAPER = "#1f2933", "#616e7c", "#ffffff"
KNOWN, CLEAN, NOISY, MASK, RANDOM, UNSEEN = "#e4e7eb", "#9fc5e8", "#f6c177", "#ffffff", "#f4a6a0", "#f5f7fa"
STEPS = ("#d6e9f8", "#a9d0f0", "#74b3e3", "#4a94d0")
"""By turn in the block: pale first."""
TEXT, SMALL, TOKEN = 9.5, 8.5, 8
"""Points."""

plt.rcParams |= {
    "svg.fonttype": "none",
    "svg.hashsalt": "t3d",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],  # the widest first: what was laid out with it fits
    "font.size": TEXT,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def canvas(height: int) -> tuple[Figure, Axes]:
    """An empty sheet of `WIDTH` by `height`, y downwards: paper of its own, so that it reads on any page."""
    figure = plt.figure(figsize=(WIDTH / 100, height / 100), facecolor=PAPER)
    sheet = figure.add_axes((0, 0, 1, 1))
    sheet.set_xlim(0, WIDTH)
    sheet.set_ylim(height, 0)
    sheet.axis("off")
    return figure, sheet


def plot_at(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes for a plot on a sheet, by its units."""
    full = figure.get_size_inches()[1] * 100
    axes = figure.add_axes((left / WIDTH, 1 - (top + height) / full, width / WIDTH, height / full))
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def write(sheet: Axes, x: float, y: float, text: str, size: float = TEXT, **style: Any) -> None:
    """Text, its middle at that height; `ha` and the like as matplotlib's."""
    sheet.text(x, y, text, fontsize=size, va="center_baseline", **style)


def cell(
    sheet: Axes, x: float, y: float, width: float, height: float, text: str = "", fill: str = MASK, **style: Any
) -> None:
    """A token; without text a hatched mask."""
    hatch = None if text or fill != MASK else "////"
    sheet.add_patch(
        Rectangle((x, y), width, height, facecolor=fill, edgecolor="#b8c2cc", hatch=hatch, linewidth=0.7, clip_on=False)
    )
    if text:
        sheet.text(x + width / 2, y + height / 2, text, fontsize=TOKEN, ha="center", va="center_baseline", **style)


def box(sheet: Axes, x: float, y: float, width: float, height: float, text: str, fill: str) -> None:
    """A rounded box with text in its middle."""
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=6", facecolor=fill, edgecolor=FAINT
    )
    sheet.add_patch(shape)
    sheet.text(x + width / 2, y + height / 2, text, fontsize=TEXT, ha="center", va="center", linespacing=1.35)


def arrow(sheet: Axes, start: tuple[float, float], end: tuple[float, float], **style: Any) -> None:
    """From one point to another."""
    sheet.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=FAINT, **style))


def legend(sheet: Axes, y: float, entries: list[tuple[str, str]], x: float = 20, gap: float = 26) -> None:
    """Squares of a colour with what they mean, on one line; the hatched one for an empty colour."""
    for fill, meaning in entries:
        cell(sheet, x, y - 7, 18, 14, fill=fill or MASK)
        write(sheet, x + 25, y, meaning, SMALL)
        x += 25 + 6.4 * len(meaning) + gap
