"""Bars of a report: a number an experiment, best first."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imgtool.selection.records import Selection, Verdict
from imgtool.selection.style import COLOURS, GREY, WINNER, Style, label_of, new_figure, plain_axes


def _bars(
    axes: Axes,
    style: Style,
    rows: Sequence[tuple[Verdict, float]],
    selection: Selection,
    ends: Sequence[tuple[float, float]] | None = None,
) -> None:
    """Horizontal bars with their numbers, best first; `ends` are those of error bars."""
    plain_axes(axes)
    axes.grid(False, axis="y")
    names = [style.short[v.candidate.name] for v, _ in rows]
    winner = selection.winner.candidate.name if selection.winner else None
    colours = [
        WINNER if v.candidate.name == winner else COLOURS[0] if v.is_eligible else GREY
        for v, _ in rows
    ]
    axes.barh(range(len(rows)), [value for _, value in rows], color=colours, height=0.7)
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    if ends is not None:
        values = [value for _, value in rows]
        reach = [
            [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)],
            [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)],
        ]
        axes.errorbar(
            values, range(len(rows)), xerr=reach, fmt="none", color="#333333", capsize=2,
            linewidth=0.9,
        )  # fmt: skip
    tips = [value for _, value in rows] if ends is None else [high for _, high in ends]
    for number, ((_, value), tip) in enumerate(zip(rows, tips, strict=True)):
        axes.annotate(
            _number(value), (tip, number), (3, 0), textcoords="offset points", va="center",
            fontsize=7,
        )  # fmt: skip
    axes.margins(x=0.18)


def _number(value: float) -> str:
    if abs(value) >= 10_000:
        return _si(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _si(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _height(number: int) -> float:
    return 1.2 + 0.27 * max(number, 2)


def _panel(selection: Selection, style: Style, metrics: Sequence[str]) -> Figure | None:
    """Bars of several metrics side by side, the experiments in one order."""
    shown = [m for m in metrics if any(m in v.candidate.metrics for v in selection.verdicts)]
    if not shown:
        return None
    figure = new_figure(3.9 * len(shown), _height(len(selection.verdicts)))
    for number, metric in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), number + 1)
        rows = [(v, v.candidate.metrics.get(metric, math.nan)) for v in selection.verdicts]
        rows = [(v, value if math.isfinite(value) else 0.0) for v, value in rows]
        _bars(axes, style, rows, selection)
        if number:
            axes.tick_params(labelleft=False)
        axes.set_title(label_of(metric), fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(lambda value, _: _si(value))
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
    rows.sort(key=lambda row: row[1])
    ends = []
    for verdict, value in rows:
        interval = verdict.interval or (verdict.candidate.metrics[name],) * 2
        far = sorted(100 * (end - best) / abs(best) * (1 if is_min else -1) for end in interval)
        ends.append((far[0], far[1]) if verdict.interval else (value, value))
    figure = new_figure(7, _height(len(rows)))
    axes = figure.add_subplot()
    is_known = any(verdict.interval is not None for verdict, _ in rows)
    _bars(axes, style, rows, selection, ends if is_known else None)
    axes.set_xlabel(f"{label_of(name)}: % {'above' if is_min else 'below'} the best")
    return figure


def convergence(selection: Selection, style: Style) -> Figure | None:
    return _panel(selection, style, ("convergence_epochs", "stability"))


def efficiency(selection: Selection, style: Style) -> Figure | None:
    metrics = ("latent_dims", "num_parameters", "macs_per_image", "images_per_sec")
    return _panel(selection, style, metrics)
