"""The figures of a selection's report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from imgtool.selection.bars import convergence, efficiency, relative
from imgtool.selection.columns import GFID, direction
from imgtool.selection.edits import (
    caption_of_edits,
    caption_of_fid,
    figure_of_edits,
    figure_of_fid,
)
from imgtool.selection.history import LOSS, Curve, curves_of
from imgtool.selection.numbers import label_of, number
from imgtool.selection.records import Selection, Verdict
from imgtool.selection.style import (
    GREY,
    RIM,
    Look,
    Style,
    label_points,
    legend_below,
    literal,
    logarithmic_y,
    new_figure,
    plain_axes,
    png,
    ring,
    whole_ticks,
)

NUM_LEGEND = 16
NUM_LABELS = 60  # of points: the first in the ranking, and the frontier
RECONSTRUCTION = ("val_mse", "val_psnr", "val_lpips", "val_ms_ssim", "fid")
FLOOR = f"{GFID}_floor"


def figures(selection: Selection, style: Style) -> Iterator[tuple[str, str, bytes]]:
    """(file stem, caption, PNG) of every figure for which there are numbers."""
    curves = curves_of(selection)
    for stem, caption, draw in (
        ("quality", _caption_of_quality(selection), _quality),
        ("generation", _caption_of_generation(selection), _generation),
        ("edits", caption_of_edits(selection), figure_of_edits),
        ("fid", caption_of_fid(selection), figure_of_fid),
        ("curves", _caption_of_curves(curves), lambda *words: _curves(curves, *words)),
        ("relative", "Distance from the best, in per cent; lower is better.", relative),
        (
            "convergence",
            "Epochs to nine tenths of the improvement, and how restless the last "
            "rows are (lower is steadier).",
            convergence,
        ),
        (
            "efficiency",
            "What each experiment costs: size of the latent, parameters, multiply-accumulates, "
            "speed of its training.",
            efficiency,
        ),
    ):
        figure = draw(selection, style)
        if figure is not None:
            yield stem, caption, png(figure)


def curves_png(selection: Selection) -> bytes | None:
    """The curves alone, as a PNG; None where there are none."""
    style = Style(selection)
    with style.drawing():
        figure = _curves(curves_of(selection), selection, style)
        return None if figure is None else png(figure)


# --- quality against size -----------------------------------------------------------------


def _caption_of_quality(selection: Selection) -> str:
    size = label_of(selection.size or "latent_dims")
    count = sum(bool(verdict.on_frontier) for verdict in selection.verdicts)
    bars = " Bars are 95 % confidence intervals of the mean over seeds." * any(
        verdict.interval is not None for verdict in selection.verdicts
    )
    line = f" The step line is the Pareto frontier; its {count} points have a rim."
    ring = " The ringed point is the winner." if selection.winner is not None else ""
    grey = " Grey ones are rejected." * any(not v.is_eligible for v in selection.verdicts)
    told = label_of(selection.quality)
    head = told if told[1:2].isupper() else f"{told[:1].upper()}{told[1:]}"  # gFID is a name
    return f"{head} against {size}.{line if count > 1 else ''}{ring}{grey}{bars}"


def _points(selection: Selection, x: str, y: str) -> list[tuple[Verdict, float, float]]:
    return [
        (v, v.candidate.metrics[x], v.candidate.metrics[y])
        for v in selection.verdicts
        if x in v.candidate.metrics and y in v.candidate.metrics
    ]


def _quality(selection: Selection, style: Style) -> Figure | None:
    size = selection.size or "latent_dims"
    points = _points(selection, size, selection.quality)
    if not points:
        return None
    figure = new_figure(5.2)
    axes = figure.add_subplot()
    plain_axes(axes)
    for verdict, x, y in points:
        _point(axes, verdict, x, y, selection, style)
    frontier = sorted((x, y) for v, x, y in points if v.on_frontier)
    if len(frontier) > 1:
        axes.step(
            *zip(*frontier, strict=True), where="post", color="#555555", linewidth=1, zorder=1
        )
    if selection.threshold is not None:
        axes.axhline(selection.threshold, color="#555555", linewidth=0.9, linestyle=(0, (5, 4)))
        axes.annotate(
            f"threshold {number(selection.threshold, selection.quality)}",
            (1, selection.threshold),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color="#555555",
        )
    _logarithmic(axes, [x for _, x, _ in points], [y for _, _, y in points], selection.quality)
    axes.xaxis.set_major_formatter(lambda value, _: number(value, size))
    axes.set_xlabel(literal(label_of(size)))
    axes.set_ylabel(literal(label_of(selection.quality)))
    labelled = [
        (style.drawn(v.candidate.name), x, y)
        for place, (v, x, y) in enumerate(points)
        if place < NUM_LABELS or v.on_frontier
    ]
    label_points(figure, axes, labelled)
    return figure


def _point(
    axes: Axes,
    verdict: Verdict,
    x: float,
    y: float,
    selection: Selection,
    style: Style,
    *,
    area: float = 46.0,
) -> None:
    name = verdict.candidate.name
    look = style.of[name]
    colour = look.colour if verdict.is_eligible else GREY
    if verdict.interval is not None:
        low, high = verdict.interval
        reach = [[max(0.0, y - low)], [max(0.0, high - y)]]
        axes.errorbar(x, y, yerr=reach, color=colour, capsize=3, linewidth=1)
    rim = RIM if verdict.on_frontier else "none"
    axes.scatter(x, y, s=area, color=colour, marker=look.marker, edgecolors=rim, zorder=3)
    if selection.winner is not None and selection.winner.candidate.name == name:
        ring(axes, x, y, area + 144)


# --- reconstruction against generation ----------------------------------------------------


def _error_of(selection: Selection) -> str | None:
    """The metric that tells how well images are reconstructed."""
    known = [v.candidate.metrics for v in selection.verdicts if GFID in v.candidate.metrics]
    return next((m for m in RECONSTRUCTION if sum(m in one for one in known) > 1), None)


def _caption_of_generation(selection: Selection) -> str:
    metric = _error_of(selection)
    floor = any(FLOOR in v.candidate.metrics for v in selection.verdicts)
    bars = any(v.interval is not None for v in selection.verdicts)
    best = "bottom right" if metric is not None and direction(metric) == "max" else "bottom left"
    return (
        f"What is generated from a latent (gFID) against how well it is reconstructed; best is "
        f"{best}. The larger the mark, the larger the latent; behind a name is its number of "
        "elements."
        + " Bars are 95 % confidence intervals of the mean over the probes' seeds."
        * bars
        + " The dash that dots join to a mark is its floor: the same distance of the images' own "
        "latents, decoded." * floor
    )


def _generation(selection: Selection, style: Style) -> Figure | None:
    metric = _error_of(selection)
    points = _points(selection, metric, GFID) if metric is not None else []
    if metric is None or not points:
        return None
    figure = new_figure(5.2)
    axes = figure.add_subplot()
    plain_axes(axes)
    sizes = [v.candidate.metrics.get("latent_dims", 0.0) for v, _, _ in points]
    largest = max(sizes) or 1.0
    labelled, reaches = [], []
    for (verdict, x, y), size in zip(points, sizes, strict=True):
        area = 24 + 230 * size / largest
        _point(axes, verdict, x, y, selection, style, area=area)
        is_ringed = verdict is selection.winner
        reaches.append(math.sqrt(area + 144 * is_ringed) / 2)
        floor = verdict.candidate.metrics.get(FLOOR)
        if floor is not None:
            colour = style.of[verdict.candidate.name].colour
            axes.plot([x, x], [floor, y], ":", color=colour, linewidth=0.8, zorder=1)
            axes.plot([x], [floor], "_", color=colour, markersize=12, markeredgewidth=1.6)
        told = f"{style.drawn(verdict.candidate.name)} · {number(size, 'latent_dims')}"
        labelled.append((told if size else style.drawn(verdict.candidate.name), x, y))
    xs = [x for _, x, _ in points]
    if "psnr" not in metric and min(xs) > 0 and max(xs) > 3 * min(xs):
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: number(value, metric))
    axes.xaxis.set_minor_formatter(
        lambda value, _: number(value) if f"{value:e}"[0] in "25" else ""
    )
    axes.margins(x=0.14, y=0.14)
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    axes.set_xlabel(literal(label_of(metric)))
    axes.set_ylabel(literal(label_of(GFID)))
    label_points(figure, axes, labelled[:NUM_LABELS], reaches[:NUM_LABELS])
    return figure


def _logarithmic(axes: Axes, xs: Sequence[float], ys: Sequence[float], quality: str) -> None:
    if min(xs) > 0 and max(xs) > 2 * min(xs):
        axes.set_xscale("log", base=2)
    if quality.endswith("mse") and min(ys) > 0 and max(ys) > 5 * min(ys):
        logarithmic_y(axes)
    axes.margins(x=0.12, y=0.14)


# --- curves -------------------------------------------------------------------------------


def _caption_of_curves(found: Mapping[str, Mapping[str, Sequence[Curve]]]) -> str:
    names = [column if column == LOSS else label_of(column) for column in found]
    seeds = any(
        sum(bool(curve) for curve in seeds) > 1 for curves in found.values()
        for seeds in curves.values()
    )  # fmt: skip
    several = " Further seeds of an experiment are thin." if seeds else ""
    told = " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
    return f"{told[:1].upper()}{told[1:]}, by iteration; the winner is bold.{several}"


def _curves(
    found: Mapping[str, Mapping[str, Sequence[Curve]]], selection: Selection, style: Style
) -> Figure | None:
    """The validation's, where there is more than a point, and the training loss."""
    if not found:
        return None
    figure = new_figure(0.7 + 3.0 * len(found))
    for place, (column, curves) in enumerate(found.items(), 1):
        axes = figure.add_subplot(len(found), 1, place)
        plain_axes(axes)
        for verdict in reversed(selection.verdicts):
            _draw_curves(axes, verdict, curves[verdict.candidate.name], selection, style)
        values = [y for seeds in curves.values() for curve in seeds for _, y in curve]
        if "psnr" not in column and min(values) > 0 and max(values) > 5 * min(values):
            logarithmic_y(axes)
        whole_ticks(axes)
        axes.set_title(column if column == LOSS else literal(label_of(column)), fontsize=10)
    figure.axes[-1].set_xlabel("iteration")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    legend_below(figure, handles[::-1], labels[::-1])
    return figure


def _draw_curves(
    axes: Axes, verdict: Verdict, seeds: Sequence[Curve], selection: Selection, style: Style
) -> None:
    name = verdict.candidate.name
    is_winner = selection.winner is not None and selection.winner.candidate.name == name
    is_ranked = verdict.rank is not None and verdict.rank <= NUM_LEGEND
    is_named = len(selection.verdicts) <= NUM_LEGEND or is_winner or is_ranked
    look = style.of[name] if is_named else Look("#d0d0d0", "-", "o")
    label = style.drawn(name) if is_named else None
    for place, curve in enumerate(filter(None, seeds)):
        axes.plot(
            *zip(*curve, strict=True),
            look.dash,
            color=look.colour,
            linewidth=0.6 if place else 2.4 if is_winner else 1.2,
            marker=look.marker if len(curve) < 3 else None,
            markersize=4,
            label=None if place else label,
        )
