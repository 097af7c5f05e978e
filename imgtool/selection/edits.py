"""Editors of faces compared: tables, success against preservation, FID, and the same faces of all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image, ImageDraw
from scipy import special

from imgtool.selection.bars import bars_height, draw_bars
from imgtool.selection.markup import tables, whole
from imgtool.selection.numbers import label_of, number
from imgtool.selection.pictures import (
    GAP_PX,
    INK,
    TEXT_PX,
    TILE_PX,
    as_png,
    document_of,
    fitted_tile,
    open_picture,
)
from imgtool.selection.records import Candidate, Selection, Verdict
from imgtool.selection.style import GREY, RIM, Style, label_points, new_figure, plain_axes, ring

SUCCESS, KEPT, FID = "edit_success", "edit_preservation", "fid"
FILE = "edit.json"
UNKNOWN = '<span class="soft">not measured</span>'
LEVEL = 0.95
MOST_BLOCKS, FEW_BLOCKS = 24, 3
# In a strip of `eval edit`, with what a reader has to know of them.
COLUMNS = (
    *("Au (has it)", "B0 (has it not)", "A0 (Au without)", "Bu (B0 with)"),
    *("Au, reconstructed", "B0, reconstructed"),
)
# metric -> head of its column; shares are told in per cent, with their intervals.
SHARES = {
    SUCCESS: "success",
    f"{SUCCESS}_Bu": "given (Bu)",
    f"{SUCCESS}_A0": "removed (A0)",
    KEPT: "others kept",
}
LIKENESS = {"edit_psnr": "PSNR (dB)", "edit_identity": "identity"}
COSTS = {
    FID: "FID",
    "num_images": "FID: images",
    "iteration_sec": "time an iteration",
    "num_parameters": "parameters",
}
SHOWN = (*SHARES, *LIKENESS, *COSTS)


def is_of_edits(selection: Selection) -> bool:
    """Whether anybody's edits were judged."""
    return any(SUCCESS in v.candidate.metrics for v in selection.verdicts)


# --- numbers ------------------------------------------------------------------------------


def ends_of(candidate: Candidate, metric: str) -> tuple[float, float] | None:
    """The 95 % interval of a metric: a single run's own, Student's over several seeds; None where
    it is not known.
    """
    if metric not in candidate.metrics:
        return None
    count, value = candidate.num_seeds, candidate.metrics[metric]
    if count > 1:
        reach = candidate.deviations.get(metric, math.nan) / math.sqrt(count)
        reach *= float(special.stdtrit(count - 1, (1 + LEVEL) / 2))
        return (value - reach, value + reach) if math.isfinite(reach) else None
    low, high = (candidate.metrics.get(f"{metric}_{end}") for end in ("low", "high"))
    if low is not None and high is not None:
        return low, high
    error = candidate.metrics.get(f"{metric}_se")
    if error is None:
        return None
    reach = error * float(special.ndtri((1 + LEVEL) / 2))
    return value - reach, value + reach


def section(selection: Selection, labelled: Callable[[Verdict], str]) -> str:
    """Tables of what is known of every editor; empty where nobody's edits were judged.

    Args:
        labelled: an experiment's name, as HTML.
    """
    if not is_of_edits(selection):
        return ""
    parts = ["<h2>Edits in numbers</h2>"]
    for columns in ({**SHARES, **LIKENESS}, COSTS):
        rows = [
            (labelled(v), [_cell(v.candidate, metric) for metric in columns])
            for v in selection.verdicts
        ]
        parts.append(tables(list(columns.values()), rows))
    parts.append(
        '<p class="soft">Below a number and behind ±: its 95 % interval, over pairs of faces, of '
        "FID over images; over seeds where an experiment has several. Success is the share of "
        "edits that the judge sees as meant, of others kept the share of further attributes that "
        "it sees as in the input.</p>"
    )
    return "".join(parts)


def _cell(candidate: Candidate, metric: str) -> str:
    value = candidate.metrics.get(metric)
    if value is None:
        return UNKNOWN
    ends = ends_of(candidate, metric)
    if metric == FID and ends:
        return whole(f"{number(value)} ± {(ends[1] - ends[0]) / 2:.2g}")
    if metric in SHARES:
        told, between = f"{100 * value:.1f} %", [f"{100 * end:.1f}" for end in ends or ()]
    elif metric in LIKENESS:
        told, between = number(value), [number(end) for end in ends or ()]
    else:
        told, between = number(value, metric) + " s" * (metric == "iteration_sec"), []
    below = f'<br><span class="soft">{whole(" to ".join(between))}</span>' if between else ""
    return f"{whole(told)}{below}"


# --- figures ------------------------------------------------------------------------------


def figure_of_edits(selection: Selection, style: Style) -> Figure | None:
    """Success against preservation, with intervals of both."""
    points = [
        (v, v.candidate.metrics[SUCCESS], v.candidate.metrics[KEPT])
        for v in selection.verdicts
        if {SUCCESS, KEPT} <= v.candidate.metrics.keys()
    ]
    if not points:
        return None
    figure = new_figure(5.2)
    axes = figure.add_subplot()
    plain_axes(axes)
    judge = [v.candidate.metrics.get("edit_judge_accuracy") for v, _, _ in points]
    known = [value for value in judge if value is not None]
    for verdict, x, y in points:
        name = verdict.candidate.name
        look = style.of[name]
        colour = look.colour if verdict.is_eligible else GREY
        reach = [_reach(verdict.candidate, metric) for metric in (SUCCESS, KEPT)]
        axes.errorbar(x, y, xerr=reach[0], yerr=reach[1], color=colour, capsize=3, linewidth=1)
        axes.scatter(x, y, s=46, color=colour, marker=look.marker, edgecolors=RIM, zorder=3)
        if selection.winner is not None and selection.winner.candidate.name == name:
            ring(axes, x, y, 190)
    if known:
        line = sum(known) / len(known)
        axes.axvline(line, color="#555555", linewidth=0.9, linestyle=(0, (5, 4)), zorder=1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.margins(x=0.14, y=0.14)
    axes.set_xlabel("edits that the judge sees as meant")
    axes.set_ylabel("other attributes that are kept")
    label_points(figure, axes, [(style.drawn(v.candidate.name), x, y) for v, x, y in points])
    return figure


def _reach(candidate: Candidate, metric: str) -> list[list[float]]:
    value, ends = candidate.metrics[metric], ends_of(candidate, metric)
    low, high = ends or (value, value)
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def caption_of_edits(selection: Selection) -> str:
    """What the figure of edits shows."""
    has_judge = any("edit_judge_accuracy" in v.candidate.metrics for v in selection.verdicts)
    ring = " The ringed point is the winner." if selection.winner is not None else ""
    grey = " Grey ones are rejected." * any(not v.is_eligible for v in selection.verdicts)
    return (
        "Edits that succeed against other attributes that are kept; best is top right. Bars are "
        f"95 % intervals.{ring}{grey}"
        + " The dashes are the judge's own accuracy on the real faces."
        * has_judge
    )


def figure_of_fid(selection: Selection, style: Style) -> Figure | None:
    """FID of every editor that has one, lowest first."""
    if not is_of_edits(selection):
        return None
    rows = [(v, v.candidate.metrics[FID]) for v in selection.verdicts if FID in v.candidate.metrics]
    if not rows:
        return None
    rows = sorted(rows, key=lambda row: row[1])
    ends = [ends_of(v.candidate, FID) or (value, value) for v, value in rows]
    figure = new_figure(bars_height(len(rows)))
    axes = figure.add_subplot()
    draw_bars(axes, style, rows, FID, ends)
    axes.set_xlabel(label_of(FID), fontsize=9)
    return figure


def caption_of_fid(selection: Selection) -> str:
    """What the figure of FIDs shows, and whose is missing."""
    names = [v.candidate.name for v in selection.verdicts if FID not in v.candidate.metrics]
    lacking = f" Not measured: {len(names)} of {len(selection.verdicts)}." if names else ""
    return f"Lower is better; bars are 95 % intervals over images.{lacking}"


# --- the same faces -----------------------------------------------------------------------


def faces(selection: Selection, style: Style) -> bytes | None:
    """A PNG: a block an editor in the order of the ranking, a row a pair of faces that all of them
    have; None where there are none.
    """
    shown = [(v, strips) for v in selection.verdicts if (strips := _strips(v))][:MOST_BLOCKS]
    if not shown:
        return None
    common = [pair for pair in shown[0][1] if all(pair in strips for _, strips in shown)]
    num_rows = 6 if len(shown) <= FEW_BLOCKS else 4
    blocks = []
    for verdict, strips in shown:
        rows = [open_picture(strips[pair]) for pair in common[: 2 * num_rows]]
        blocks.append((verdict, rows))
    readable = [
        place
        for place in range(len(common[: 2 * num_rows]))
        if all((row := rows[place]) and row.width == 6 * row.height for _, rows in blocks)
    ][:num_rows]
    if not readable:
        return None
    chosen = [(v, [row for p in readable if (row := rows[p])]) for v, rows in blocks]
    return _sheet(chosen, style)


def caption_of_faces(selection: Selection) -> str:
    """What the sheet shows."""
    judged = [v for v in selection.verdicts if SUCCESS in v.candidate.metrics]
    num = sum(bool(_strips(v)) for v in judged)
    rest = f" {len(judged) - num} of {len(judged)} have no pictures." if num < len(judged) else ""
    return (
        "Pairs of faces that no editor and no judge was trained on, the same in every block: one "
        f"with the attribute (Au), one without (B0), and what becomes of them.{rest}"
    )


def _strips(verdict: Verdict) -> dict[tuple[str, str], Path]:
    """(Au, B0) -> the picture that `eval edit` left."""
    folder, found = verdict.candidate.runs[0].exp_dir, document_of(verdict, FILE)
    listed: Any = (found or {}).get("compared")
    if folder is None or not isinstance(listed, list):
        return {}
    strips = {}
    for one in listed:
        if isinstance(one, Mapping) and all(
            isinstance(one.get(k), str) for k in ("Au", "B0", "file")
        ):
            strips[one["Au"], one["B0"]] = folder / "samples" / Path(one["file"]).name
    return strips


def _sheet(blocks: Sequence[tuple[Verdict, Sequence[Image.Image]]], style: Style) -> bytes:
    step, line = TILE_PX + GAP_PX, TEXT_PX + 4
    head = 3 * line
    height = head + len(blocks[0][1]) * step + line
    sheet = Image.new("RGBA", (len(COLUMNS) * step, len(blocks) * height - line))
    draw = ImageDraw.Draw(sheet)
    for block, (verdict, rows) in enumerate(blocks):
        label, top = style.labels[verdict.candidate.name], block * height
        font = style.font(label, TEXT_PX + 2)
        draw.text((1, top), f"{label}   {_told(verdict.candidate)}", INK, font)
        for column, title in enumerate(COLUMNS):
            draw.text((column * step + 1, top + 2 * line - 4), title, INK, style.font("", TEXT_PX))
        for place, strip in enumerate(rows):
            side = strip.height
            for column in range(len(COLUMNS)):
                tile = strip.crop((column * side, 0, (column + 1) * side, side))
                sheet.paste(fitted_tile(tile), (column * step, top + head + place * step))
    return as_png(sheet)


def _told(candidate: Candidate) -> str:
    """In a line: what is known of it."""
    metrics = candidate.metrics
    words = [
        f"{name} {100 * metrics[key]:.1f} %"
        for key, name in ((SUCCESS, "success"), (KEPT, "kept"))
        if key in metrics
    ]
    words.append(f"FID {number(metrics[FID])}" if FID in metrics else "FID not measured")
    return ", ".join(words)
