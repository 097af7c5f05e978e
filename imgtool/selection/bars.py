"""Bars of a report: a number an experiment, best first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imgtool.selection.numbers import label_of, name_of, number
from imgtool.selection.records import Selection, Verdict
from imgtool.selection.style import GREY, Style, literal, new_figure, plain_axes

NUM_BARS = 60  # of more experiments, the first in the ranking


def draw_bars(
    axes: Axes,
    style: Style,
    rows: Sequence[tuple[Verdict, float]],
    metric: str = "",
    ends: Sequence[tuple[float, float]] | None = None,
) -> None:
    """Horizontal bars with their numbers, the first at the top; `ends` are those of error bars."""
    plain_axes(axes)
    axes.grid(False, axis="y")
    names = [style.drawn(v.candidate.name) for v, _ in rows]
    colours = [style.of[v.candidate.name].colour if v.is_eligible else GREY for v, _ in rows]
    values = [value if math.isfinite(value) else 0.0 for _, value in rows]
    axes.barh(range(len(rows)), values, color=colours, height=0.7)
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    if ends is not None:
        reach = [
            [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)],
            [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)],
        ]
        axes.errorbar(
            values, range(len(rows)), xerr=reach, fmt="none", color="#333333", capsize=2,
            linewidth=0.9,
        )  # fmt: skip
    tips = values if ends is None else [high for _, high in ends]
    for place, ((_, value), tip) in enumerate(zip(rows, tips, strict=True)):
        axes.annotate(
            number(value, metric) if math.isfinite(value) else "not known", (tip, place), (3, 0),
            textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    axes.margins(x=0.24)
    axes.set_xlim(left=1.1 * min([0.0, *(values if ends is None else [low for low, _ in ends])]))


def _formatter(metric: str) -> Callable[[float, object], str]:
    return lambda value, _: number(value, metric)


def bars_height(count: int) -> float:
    """Of a figure, in inches."""
    return 0.8 + 0.24 * max(count, 2)


def _panel(selection: Selection, style: Style, metrics: Sequence[str]) -> Figure | None:
    """Bars of several metrics, two side by side, the experiments in one order."""
    verdicts = selection.verdicts[:NUM_BARS]
    shown = [m for m in metrics if any(m in v.candidate.metrics for v in verdicts)]
    if not shown:
        return None
    columns = min(2, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = new_figure(lines * bars_height(len(verdicts)))
    for place, metric in enumerate(shown):
        axes = figure.add_subplot(lines, columns, place + 1)
        rows = [(v, v.candidate.metrics.get(metric, math.nan)) for v in verdicts]
        draw_bars(axes, style, rows, metric)
        if place % columns:
            axes.tick_params(labelleft=False)
        axes.set_title(literal(label_of(metric)), fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(_formatter(metric))
    return figure


def relative(selection: Selection, style: Style) -> Figure | None:
    name = selection.quality
    known = [v for v in selection.verdicts if name in v.candidate.metrics]
    if len(known) < 2:
        return None
    values = [v.candidate.metrics[name] for v in known]
    is_min = selection.quality_mode == "min"
    best = min(values) if is_min else max(values)
    if not best:
        return None
    rows = [
        (v, 100 * abs(value - best) / abs(best)) for v, value in zip(known, values, strict=True)
    ]
    rows = sorted(rows, key=lambda row: row[1])[:NUM_BARS]
    ends = []
    for verdict, value in rows:
        interval = verdict.interval or (verdict.candidate.metrics[name],) * 2
        far = sorted(100 * (end - best) / abs(best) * (1 if is_min else -1) for end in interval)
        ends.append((far[0], far[1]) if verdict.interval else (value, value))
    figure = new_figure(bars_height(len(rows)))
    axes = figure.add_subplot()
    is_known = any(verdict.interval is not None for verdict, _ in rows)
    draw_bars(axes, style, rows, ends=ends if is_known else None)
    side = "above" if is_min else "below"
    axes.set_xlabel(literal(f"{name_of(name)}: % {side} the best"), fontsize=9)
    return figure


def convergence(selection: Selection, style: Style) -> Figure | None:
    return _panel(selection, style, ("convergence_epochs", "stability"))


def efficiency(selection: Selection, style: Style) -> Figure | None:
    metrics = ("latent_dims", "num_parameters", "macs_per_image", "images_per_sec", "iteration_sec")
    return _panel(selection, style, metrics)
