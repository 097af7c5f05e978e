"""Curves in a terminal, drawn with Braille's dots: two by four in a letter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

COLOURS = ("bright_blue", "bright_red", "green", "yellow", "magenta", "cyan")
HEIGHT = 12  # lines
MARGIN = 10  # letters left of the axis
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # Unicode 15, chapter 21.1
Points = Sequence[tuple[float, float]]


def chart(title: str, curves: Sequence[tuple[str, Points]], width: int, *, log: bool) -> list[Text]:
    """Lines of a chart.

    Args:
        curves: (a letter or two, which ends the curve; its points), drawn first to last.
        width: of the whole, in letters.
        log: y is drawn by its logarithm; its values are above 0.
    """
    from rich.text import Text

    scale = math.log if log else float
    points = [point for _, own in curves for point in own]
    xs, ys = [x for x, _ in points], [scale(y) for _, y in points]
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    columns = max(10, width - MARGIN - 2 - max(len(name) for name, _ in curves))

    def place(x: float, y: float) -> tuple[int, int]:
        """Column and row of a dot."""
        across = (x - left) / (right - left) if right > left else 0.0
        up = (scale(y) - low) / (high - low) if high > low else 0.5
        return round(across * (2 * columns - 1)), round((1 - up) * (4 * HEIGHT - 1))

    cells: dict[tuple[int, int], tuple[int, str]] = {}
    ends: dict[tuple[int, int], tuple[str, str]] = {}
    for number, (name, own) in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        dots = [place(x, y) for x, y in sorted(own)]
        for column, row in _joined(dots):
            key = (row // 4, column // 2)
            cells[key] = (cells.get(key, (0, ""))[0] | DOTS[row % 4][column % 2], colour)
        line, column = dots[-1][1] // 4, dots[-1][0] // 2 + 1
        while any((line, column + i) in ends for i in range(-len(name), len(name) + 1)):
            line = (line + 1) % HEIGHT
        ends[line, column] = (name, colour)
    unscale = math.exp if log else float
    told = {0: f"{unscale(high):.4g}", HEIGHT - 1: f"{unscale(low):.4g}"}
    lines = [Text(f"{title}{' (logarithmic)' if log else ''}", style="bold")]
    for row in range(HEIGHT):
        text = Text(f"{told.get(row, ''):>{MARGIN - 2}} │")
        column = 0
        while column <= columns:
            if (row, column) in ends:
                name, colour = ends[row, column]
                text.append(name, style=f"bold {colour}")
                column += len(name)
                continue
            bits, colour = cells.get((row, column), (0, ""))
            text.append(chr(0x2800 + bits) if bits else " ", style=colour)
            column += 1
        text.rstrip()
        lines.append(text)
    first, last = f"{left:g}", f"{right:g}"
    between = "iteration".center(max(11, columns - len(first) - len(last)))
    lines.append(Text(" " * MARGIN + first + between + last))
    return lines


def _joined(dots: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The dots and those of the straight lines between them."""
    found = list(dots[:1])
    for (x0, y0), (x1, y1) in zip(dots, dots[1:], strict=False):
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        found += [
            (round(x0 + (x1 - x0) * i / steps), round(y0 + (y1 - y0) * i / steps))
            for i in range(1, steps + 1)
        ]
    return found
