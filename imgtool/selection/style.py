"""How the figures of a report look: colours, names, numbers, axes."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import MaxNLocator
from PIL import ImageFont

from imgtool.selection.candidates import natural, short_names
from imgtool.selection.numbers import number
from imgtool.selection.records import Selection

# Okabe & Ito 2008: told apart by colour-blind readers too; the lightest left out, and the winner's
# kept for it alone.
COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
WINNER = "#D55E00"
GREY = "#9a9a9a"
RIM = "#222222"  # of a point that is set off
DASHES = ("-", "--", ":", "-.")
MARKERS = ("s", "^", "D", "o")
POINT_REACH = 3.0  # from the middle of a common point to its edge, in points of type
DPI = 150
WIDTH = 8.0  # of every figure, inches: the page's, so that no letter shrinks
NAME_LENGTH = 28  # of a name in a figure; longer ones lose their middle
FONT = "DejaVu Sans"  # comes with matplotlib


def literal(text: str) -> str:
    """A text that matplotlib draws as it is: dollars are no mathematics."""
    return text.replace("$", r"\$")


@dataclass(frozen=True)
class Look:
    """How an experiment is drawn."""

    colour: str
    dash: str
    marker: str


class Style:
    """Every experiment looks the same in all figures.

    Attributes:
        short: name -> name without what all names begin with.
        labels: name -> what figures call it: the short name, without its middle where it is long,
            `no. 3` (its place in the ranking) where no font that is installed can draw it.
        of: name -> how it is drawn.
    """

    def __init__(self, selection: Selection) -> None:
        ranked = [v.candidate.name for v in selection.verdicts]
        names = sorted(ranked, key=natural)
        self.short = short_names(names)
        self._fonts: dict[str, str] = {}
        self.labels = self._labels(ranked)
        winner = selection.winner.candidate.name if selection.winner else None
        others = [name for name in names if name != winner]
        self.of = {name: self._look(place) for place, name in enumerate(others)}
        if winner is not None:
            self.of[winner] = Look(WINNER, "-", "o")

    @staticmethod
    def _look(place: int) -> Look:
        turn = place // len(COLOURS) % len(DASHES)
        return Look(COLOURS[place % len(COLOURS)], DASHES[turn], MARKERS[turn])

    def _labels(self, ranked: Sequence[str]) -> dict[str, str]:
        labels: dict[str, str] = {}
        for place, name in enumerate(ranked, 1):
            label = _elided(" ".join(self.short[name].split()))
            font = _font_for(label)
            if font is None or label in labels.values():
                label, font = f"no. {place}", _font_for("no. 1")
            labels[name] = label
            assert font is not None
            self._fonts[label] = font
        return labels

    def drawn(self, name: str) -> str:
        """An experiment's label, for matplotlib."""
        return literal(self.labels[name])

    def font(self, label: str, size_px: int) -> ImageFont.FreeTypeFont:
        """A font that has every letter of a label, for Pillow."""
        return ImageFont.truetype(self._fonts.get(label) or _path_of_font(), size_px)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Figures made and drawn inside can show all labels."""
        own = _path_of_font()
        families = [
            font_manager.get_font(path).family_name
            for path in dict.fromkeys(self._fonts.values())
            if path != own
        ]
        with matplotlib.rc_context({"font.family": [FONT, *families]}):
            yield


def _elided(text: str) -> str:
    """Without its middle where it is too long for a figure."""
    if len(text) <= NAME_LENGTH:
        return text
    half = NAME_LENGTH // 2
    return f"{text[: half - 1]}…{text[-half:]}"


@cache
def _path_of_font() -> str:
    return str(font_manager.findfont(FONT))


@cache
def _letters(path: str) -> frozenset[int]:
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def _font_for(text: str) -> str | None:
    """The file of a font that has every letter of a text: our own, else one of the system's."""
    needed = {ord(letter) for letter in text}
    own = _path_of_font()
    if needed <= _letters(own):
        return own
    shipped = str(matplotlib.get_data_path())
    others = {entry.fname for entry in font_manager.fontManager.ttflist}
    return next(
        (
            path
            for path in sorted(others)
            if not path.startswith(shipped + os.sep) and needed <= _letters(path)
        ),
        None,
    )


def png(figure: Figure) -> bytes:
    """The figure as a PNG."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure, in inches."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def plain_axes(axes: Axes) -> None:
    """No frame above and at the right, a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", labelsize=8)


def whole_ticks(axes: Axes) -> None:
    """What is counted has no ticks between whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def logarithmic_y(axes: Axes) -> None:
    """A logarithmic scale that is told in plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: number(value))
    axes.yaxis.set_minor_formatter(
        lambda value, _: number(value) if f"{value:e}"[0] in "25" else ""
    )


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend under the figure, as many columns as its names leave room for."""
    if labels:
        columns = max(1, min(6, 110 // (max(map(len, labels)) + 7)))
        figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False
        )


def ring(axes: Axes, x: float, y: float, area: float) -> None:
    """The winner's, about its point."""
    axes.scatter(x, y, s=area, facecolors="none", edgecolors=WINNER, linewidths=2, zorder=4)


def label_points(
    figure: Figure,
    axes: Axes,
    points: Sequence[tuple[str, float, float]],
    reaches: Sequence[float] | None = None,
) -> None:
    """Names beside their points, each where it covers no other one.

    Args:
        reaches: from a point's middle to the edge of its mark, in points of type.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    taken: list[tuple[float, float, float, float]] = []
    reaches = reaches or [POINT_REACH] * len(points)
    for (_, x, y), reach in zip(points, reaches, strict=True):
        (px, py), r = axes.transData.transform((x, y)), reach * figure.dpi / 72
        taken.append((px - r, py - r, px + r, py + r))
    fontsize = 8 if len(points) <= 20 else 7
    offsets = [(8, 4, "left"), (8, -11, "left"), (-8, 4, "right"), (-8, -11, "right")]
    offsets += [(0, 11, "center"), (0, -18, "center"), (10, 16, "left"), (10, -24, "left")]
    offsets += [(-10, 16, "right"), (-10, -24, "right"), (10, 28, "left"), (10, -36, "left")]
    inside = axes.get_window_extent(renderer)
    pairs = zip(points, reaches, strict=True)
    for (name, x, y), reach in sorted(pairs, key=lambda pair: pair[0][1:]):
        more = reach - POINT_REACH
        for dx, dy, align in offsets:
            text = axes.annotate(
                name,
                (x, y),
                (
                    dx + math.copysign(more, dx) * (dx != 0),
                    dy + math.copysign(more, dy) * (dx == 0),
                ),
                textcoords="offset points",
                ha=align,
                fontsize=fontsize,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.4},
            )
            box = text.get_window_extent(renderer)
            area = (box.x0, box.y0, box.x1, box.y1)
            free = not any(_overlap(area, other) for other in taken)
            if free and box.x0 >= inside.x0 and box.x1 <= inside.x1 and box.y0 >= inside.y0:
                taken.append(area)
                break
            text.remove()
        # A name that fits nowhere is left to the table.


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
