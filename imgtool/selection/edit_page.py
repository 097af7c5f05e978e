"""What `imgtool eval edit` found, as a page for people: numbers, and edits to look at."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from imgtool.errors import UsageError
from imgtool.files import write_text
from imgtool.selection.markup import Shown, breakable, figure, table, whole
from imgtool.selection.markup import row as line
from imgtool.selection.numbers import number
from imgtool.selection.pictures import GAP_PX, INK, TEXT_PX
from imgtool.selection.style import (
    COLOURS,
    GREY,
    MARKERS,
    _path_of_font,
    new_figure,
    plain_axes,
    png,
)
from imgtool.selection.words import CSS

TILE_PX, HEAD_PX, LEFT_PX = 128, 22, 150
FEWEST = 5  # faces of which a share is drawn
EDITS = {
    "Bu": "Given the attribute (Bu): the input had none, the object is another face's",
    "A0": "Without the attribute (A0): the input had it",
}
KINDS = (
    ("judged as meant", "success_Bu", "success_A0"),
    ("real faces (the judge itself)", "judge_Au", "judge_B0"),
    ("reconstructions (the most to be had)", "ceiling_Bu", "ceiling_A0"),
    ("not edited (the least)", "floor_Bu", "floor_A0"),
    ("other attributes as in the input", "preservation_Bu", "preservation_A0"),
    (
        "other attributes as in the reconstruction",
        "preservation_Bu_of_reconstruction",
        "preservation_A0_of_reconstruction",
    ),
)
MEASURES = (
    ("psnr_{back}", "reconstruction, dB"),
    ("agreement_{back}", "attributes kept by the reconstruction"),
    ("background_l1_{edit}", "background, mean difference on [0, 1]"),
    ("background_l1_{edit}_excess", "of that, more than the reconstruction's"),
    ("background_lpips_{edit}", "background, LPIPS"),
    ("background_lpips_{edit}_excess", "of that, more than the reconstruction's"),
    ("change_area_{edit}", "part of the picture that holds 90 % of the change"),
    ("identity_{edit}", "identity: cosine of edit and input"),
    ("identity_{back}", "identity: cosine of reconstruction and input"),
)
BACKS = {"Bu": "B0_hat", "A0": "Au_hat"}


class Row(Protocol):
    """An edit to look at (`imgtool.evaluation.edits.measure.Row`)."""

    edit: str
    place: str
    score: float
    name: str
    faces: dict[str, np.ndarray]


def write_page(
    records: Sequence[Mapping[str, Any]], rows: Sequence[Sequence[Row]], folder: Path
) -> Path:
    """Write index.html, which holds everything.

    Args:
        records: of one editor each.
        rows: of each, edits to look at.

    Raises:
        UsageError: the folder cannot be written to.
    """
    title = f"Edits of {records[0]['attribute']}"
    parts = [f"<h1>{escape(title)}</h1>"]
    for record, shown in zip(records, rows, strict=True):
        parts += _of_editor(record, shown)
    parts.append(_method(records[0]))
    body = "\n".join(parts)
    text = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n<body>\n{body}\n"
        "</body></html>\n"
    )
    page = folder / "index.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(page, text.encode("utf-8", "replace").decode("utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot write the report to {folder}: {error.strerror or error}",
            hint="give another folder to --report",
        ) from error
    return page


def _of_editor(record: Mapping[str, Any], rows: Sequence[Row]) -> Iterator[str]:
    seen = record["num_seen_by_name"] + record["num_seen_by_content"]
    yield (
        f'<div class="winner"><b>{breakable(record["name"])}</b>'
        f"<p>{escape(_percent(record, 'success'))} of the edits are judged as meant, and "
        f"{escape(_percent(record, 'preservation'))} of the other attributes are kept.</p>"
        f'<p class="soft">Iteration {record["iteration"]}, {record["image_size"]} px, '
        f"{record['num_pairs']} pairs of faces that neither network was trained on (of "
        f"{record['num_held_out']} held out; {seen} left out)</p></div>"
    )
    yield "<h2>Success and preservation</h2>"
    yield _table(record, ("Bu", "A0"), KINDS, _percent)
    yield "<h2>What else changed</h2>"
    yield _table(
        record,
        ("Bu", "A0"),
        (
            (name, *(key.format(edit=edit, back=back) for edit, back in BACKS.items()))
            for key, name in MEASURES
        ),
        _plain,
    )
    kept = [*record["others"], *record["related"]]
    if kept:
        yield "<h3>Each other attribute, as in the input</h3>"
        related = record["related"]
        named = [(n + (" (comes with it)" if n in related else ""), n) for n in kept]
        yield _table(
            record, ("Bu", "A0"), ((t, f"kept_Bu_{n}", f"kept_A0_{n}") for t, n in named), _percent
        )
    if record["judge"]["attributes"]:
        yield "<h2>The judge on these faces</h2>"
        yield _judge(record)
    for shown in _pictures(record, rows):
        yield figure(shown)


def _table(record: Mapping[str, Any], heads: Sequence[str], rows: Any, told: Any) -> str:
    lines = [
        line("", ["", escape(name), *(whole(escape(told(record, key))) for key in keys)])
        for name, *keys in rows
        if any(record.get(key) is not None for key in keys)
    ]
    return table(["", "", *heads], lines)


def _percent(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if value is None:
        return "-"
    low, high = record.get(f"{key}_low"), record.get(f"{key}_high")
    ends = f" ({100 * low:.1f} to {100 * high:.1f})" if low is not None and high is not None else ""
    return f"{100 * value:.1f} %{ends}"


def _plain(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if value is None:
        return "-"
    low, high = record.get(f"{key}_low"), record.get(f"{key}_high")
    ends = f" ({number(low)} to {number(high)})" if low is not None and high is not None else ""
    return f"{number(value)}{ends}"


def _judge(record: Mapping[str, Any]) -> str:
    names = {"balanced_accuracy": "balanced accuracy", "sensitivity": "of those with it"}
    names["specificity"] = "of those without"
    lines = [
        line("", ["", escape(found["attribute"]), *(_percent(found, key) for key in names)])
        for found in record["judge"]["attributes"]
        if found["balanced_accuracy"] is not None
    ]
    return table(["", "attribute", *names.values()], lines)


# --- pictures -------------------------------------------------------------------------------


def _pictures(record: Mapping[str, Any], rows: Sequence[Row]) -> Iterator[Shown]:
    for edit, caption in EDITS.items():
        own = [row for row in rows if row.edit == edit]
        if own:
            yield Shown(
                title=f"{edit}: best, median and worst", caption=f"{caption}.",
                data=_sheet(own), is_drawn=False,
            )  # fmt: skip
    yield Shown(
        title="Strength on the way",
        caption="The judge's score of faces with objects from their own to another face's, mean "
        f"and 95 %. On {_percent(record, 'monotone')} of the ways no step lowers it by more than 0.02.",
        data=png(_strength(record)),
        is_drawn=True,
    )
    attributes = [a for a in record["judge"]["attributes"] if a["balanced_accuracy"] is not None]
    if attributes:
        own = [a for a in attributes if a["attribute"] == record["attribute"]]
        rest = [a for a in attributes if a["attribute"] != record["attribute"]]
        yield Shown(
            title="Calibration of the judge",
            caption="Share of the real faces that have an attribute, by the judge's probability; "
            f"on the dashes they agree, and tenths of fewer than {FEWEST} faces are left out. It was "
            "asked of as many with as without "
            f"{record['attribute']}, which moves what comes with it. Large marks are many faces.",
            data=png(_calibration([*own, *rest][: len(COLOURS)])),
            is_drawn=True,
        )


def _sheet(rows: Sequence[Row]) -> bytes:
    titles = list(rows[0].faces)
    step = TILE_PX + GAP_PX
    sheet = Image.new("RGBA", (LEFT_PX + len(titles) * step, HEAD_PX + len(rows) * step))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(_path_of_font(), TEXT_PX)
    for column, title in enumerate(titles):
        draw.text((LEFT_PX + column * step + 1, 2), title, INK, font)
    for place, row in enumerate(rows):
        top = HEAD_PX + place * step
        for number_of_line, text in enumerate((row.place, f"score {row.score:.3f}", row.name)):
            draw.text((1, top + 2 + (TEXT_PX + 3) * number_of_line), text, INK, font)
        for column, title in enumerate(titles):
            tile = Image.fromarray(row.faces[title])
            tile = tile.resize((TILE_PX, TILE_PX), Image.Resampling.NEAREST)
            sheet.paste(tile, (LEFT_PX + column * step, top))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def _strength(record: Mapping[str, Any]) -> Figure:
    drawn = new_figure(2.8)
    axes = drawn.add_subplot()
    plain_axes(axes)
    steps = range(record["num_steps"])
    mean = [record[f"strength_{step}"] for step in steps]
    across = [step / (record["num_steps"] - 1) for step in steps]
    axes.plot(across, mean, "o-", color=COLOURS[0], lw=1.5, ms=5)
    ends = [[record[f"strength_{step}{end}"] for step in steps] for end in ("_low", "_high")]
    if all(value is not None for values in ends for value in values):
        axes.fill_between(across, ends[0], ends[1], color=COLOURS[0], alpha=0.2, lw=0)
    axes.set_ylim(0, 1)
    axes.set_xlabel("part of the other face's object")
    axes.set_ylabel(f"score of {record['attribute']}")
    return drawn


def _calibration(attributes: Sequence[Mapping[str, Any]]) -> Figure:
    drawn = new_figure(3.6)
    axes: Axes = drawn.add_subplot()
    plain_axes(axes)
    axes.plot([0, 1], [0, 1], "--", color=GREY, lw=1)
    for place, found in enumerate(attributes):
        total = sum(one["num_faces"] for one in found["bins"])
        bins = [one for one in found["bins"] if one["num_faces"] >= FEWEST]
        across = [one["probability"] for one in bins]
        up = [one["share"] for one in bins]
        sizes = [12 + 180 * one["num_faces"] / total for one in bins]
        colour, marker = COLOURS[place], MARKERS[place % len(MARKERS)]
        axes.plot(across, up, "-", color=colour, lw=0.8)
        axes.scatter(across, up, s=sizes, color=colour, marker=marker, label=found["attribute"])
    axes.set_xlabel("probability that the judge gives")
    axes.set_ylabel("share with it")
    legend: Any = axes.legend(fontsize=8, frameon=False)
    for handle in legend.legend_handles:
        handle.set_sizes([30])
    return drawn


def _method(record: Mapping[str, Any]) -> str:
    region = {
        "landmarks": "outside an ellipse about the face, by its landmarks",
        "change": "outside the pixels that hold 90 % of an edit's change",
    }[record["background_region"]]
    network = record["identity_network"]
    lines = [
        f"The judge is {record['judge']['path']}, iteration {record['judge']['iteration']}; its "
        "decision is as if each attribute held of half of the faces.",
        "The score that sorts edits is the judge's own of the attribute, times one less the mean "
        "change of its scores of the others against the input.",
        f"Backgrounds are compared {region}.",
        f"Left out of what should be kept: {', '.join(record['left_out']) or 'nothing'}.",
        "No network to tell identities was given."
        if network is None
        else f"Identity is told by {network['path']} ({network['of']}).",
        f"Intervals are of {record['num_resamples']} draws of the pairs.",
    ]
    return "<h2>How it was measured</h2>" + "".join(f"<p>{escape(text)}</p>" for text in lines)
