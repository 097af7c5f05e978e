"""Reconstructions side by side, and what latents.json tells, from the folders of experiments."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from imgtool.selection.numbers import number
from imgtool.selection.records import Selection, Verdict
from imgtool.selection.style import (
    GREY,
    Style,
    legend_below,
    new_figure,
    plain_axes,
    png,
    whole_ticks,
)

MAX_PIXELS = 40_000_000
MAX_BYTES = 10_000_000
NUM_ROWS, NUM_COLUMNS, NUM_STRIPS = 6, 13, 3
TILE_PX, GAP_PX, HEAD_PX, TEXT_PX = 144, 4, 36, 14
BAND = 6  # experiments side by side, so that a page shows their names as large as they are
INK = "#7a7a7a"  # read on a white page and on a dark one
STRIP_HEIGHT_PX, STRIP_WIDTH_PX = 96, 1040


def reconstructions(selection: Selection, style: Style) -> bytes | None:
    """A PNG: the originals, then every experiment's reconstruction of them; None without any.

    Only validation images that all shown experiments have are shown.
    """
    shown = [v for v in selection.verdicts if _numbers(v)][: NUM_COLUMNS - 1]
    if not shown:
        return None
    common = set.intersection(*(set(_numbers(v)) for v in shown))
    rows = []
    for name in sorted(common)[: 2 * NUM_ROWS]:
        halves = [_halves(_samples(v) / name) for v in shown]
        if all(halves):
            rows.append([halves[0][0], *(pair[1] for pair in halves if pair)])  # type: ignore[index]
        if len(rows) == NUM_ROWS:
            break
    if not rows:
        return None
    heads = [("original", "")]
    heads += [(style.labels[v.candidate.name], _quality_of(v)) for v in shown]
    return _sheet(heads, rows, style)


def _samples(verdict: Verdict) -> Path:
    folder = verdict.candidate.runs[0].exp_dir
    return (folder or Path("/nonexistent")) / "samples"


def _numbers(verdict: Verdict) -> list[str]:
    return sorted(path.name for path in _samples(verdict).glob("val_*.png"))


def _quality_of(verdict: Verdict) -> str:
    metrics = verdict.candidate.metrics
    if "val_psnr" in metrics:
        return f"{metrics['val_psnr']:.2f} dB"
    return f"MSE {number(metrics['val_mse'])}" if "val_mse" in metrics else ""


def open_picture(path: Path) -> Image.Image | None:
    """A picture of sane size; None for anything else."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        return None


def _halves(path: Path) -> tuple[Image.Image, Image.Image] | None:
    image = open_picture(path)
    if image is None or image.width < 2:
        return None
    middle, height = image.width // 2, image.height
    left = image.crop((0, 0, middle, height))
    return left, image.crop((middle, 0, 2 * middle, height))


def fitted_tile(image: Image.Image) -> Image.Image:
    """Fitted into a square; small ones enlarged without smoothing, to show their pixels."""
    factor = TILE_PX / max(image.size)
    size = tuple(max(1, round(side * factor)) for side in image.size)
    how = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    tile = Image.new("RGB", (TILE_PX, TILE_PX), "white")
    tile.paste(image.resize((size[0], size[1]), how))
    return tile


def _sheet(
    heads: Sequence[tuple[str, str]], rows: Sequence[Sequence[Image.Image]], style: Style
) -> bytes:
    """Bands of a few experiments, each beside the originals."""
    others = len(heads) - 1
    each = math.ceil(others / math.ceil(others / BAND))
    bands = [
        [0, *range(start, min(start + each, len(heads)))] for start in range(1, len(heads), each)
    ]
    step, height = TILE_PX + GAP_PX, HEAD_PX + len(rows) * (TILE_PX + GAP_PX)
    sheet = Image.new("RGBA", (max(map(len, bands)) * step, len(bands) * height))
    draw = ImageDraw.Draw(sheet)
    for band, columns in enumerate(bands):
        for place, column in enumerate(columns):
            left, top = place * step, band * height
            for line, text in enumerate(heads[column]):
                font = style.font(heads[column][0], TEXT_PX)
                while len(text) > 4 and draw.textlength(text, font) > TILE_PX - GAP_PX:
                    text = text[:-2] + "…"
                draw.text((left + 1, top + 2 + (TEXT_PX + 3) * line), text, INK, font)
            for line, row in enumerate(rows):
                sheet.paste(fitted_tile(row[column]), (left, top + HEAD_PX + line * step))
    return as_png(sheet)


def as_png(image: Image.Image) -> bytes:
    """The picture as a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def interpolations(selection: Selection, style: Style) -> bytes | None:
    """Strips from one validation image to another through the latent; None without any."""
    rows = []
    shown = selection.verdicts[:8]
    for verdict in shown:
        for strip_number in range(NUM_STRIPS if len(shown) <= NUM_STRIPS else 1):
            strip = open_picture(_samples(verdict) / f"interpolation_{strip_number:02d}.png")
            if strip is not None:
                factor = min(STRIP_HEIGHT_PX / strip.height, STRIP_WIDTH_PX / strip.width)
                size = [max(1, round(side * factor)) for side in strip.size]
                rows.append((style.labels[verdict.candidate.name], strip.resize(size)))
    if not rows:
        return None
    head = TEXT_PX + 2 * GAP_PX
    heights = [head + tile.height for _, tile in rows]
    sheet = Image.new("RGBA", (STRIP_WIDTH_PX, sum(heights)))
    draw, top = ImageDraw.Draw(sheet), 0
    for (name, tile), height in zip(rows, heights, strict=True):
        draw.text((1, top + GAP_PX), name, INK, style.font(name, TEXT_PX))
        sheet.paste(tile, (0, top + head))
        top += height
    return as_png(sheet)


def latents_of(verdict: Verdict) -> dict[str, Any] | None:
    """latents.json of a candidate's best run; None when it has none that can be read."""
    return document_of(verdict, "latents.json")


def tested_of(verdict: Verdict) -> dict[str, Any] | None:
    """test_metrics.json of a candidate's best run, which `eval metrics --split test` leaves."""
    return document_of(verdict, "test_metrics.json")


def document_of(verdict: Verdict, name: str) -> dict[str, Any] | None:
    """A JSON file of a candidate's best run; None when it has none that can be read."""
    folder = verdict.candidate.runs[0].exp_dir
    path = (folder or Path("/nonexistent")) / name
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def latent_figure(selection: Selection, style: Style) -> bytes | None:
    """Spread and KL divergence of every channel, spectra beside that of the images at each latent's
    size (thin and grey), and the images on two principal axes.
    """
    known = [(v, found) for v in selection.verdicts if (found := latents_of(v))][:8]
    panels = [
        (title, draw)
        for key, title, draw in (
            ("channel_std", "standard deviation a channel", _channels),
            ("kld_per_channel", "KL divergence a channel (nats an element)", _channels),
            ("spectrum_power", "power by frequency", _spectra),
            ("pca", "mean latents of images, principal axes", _scatter),
        )
        if any(_floats(found.get(key)) for _, found in known)
        for key in [key]
        for draw in [_bound(draw, key)]
    ]
    if not panels:
        return None
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = new_figure(3.3 * lines + 0.6)
    for place, (title, draw) in enumerate(panels, 1):
        axes = figure.add_subplot(lines, columns, place)
        plain_axes(axes)
        draw(axes, known, style)
        axes.set_title(title, fontsize=9)
    legend_below(figure, *figure.axes[0].get_legend_handles_labels())
    return png(figure)


def _bound(draw: Any, key: str) -> Any:
    return lambda axes, known, style: draw(axes, known, style, key)


def _floats(value: Any) -> list[float]:
    """The finite numbers of a list, flattened by one level."""
    if not isinstance(value, list):
        return []
    flat = [x for item in value for x in (item if isinstance(item, list) else [item])]
    return [float(x) for x in flat if isinstance(x, int | float) and math.isfinite(x)]


def _channels(axes: Any, known: Any, style: Style, key: str) -> None:
    """Sorted, since the order of channels means nothing."""
    for verdict, found in known:
        values = sorted(_floats(found.get(key)), reverse=True)
        if values:
            look, name = style.of[verdict.candidate.name], style.drawn(verdict.candidate.name)
            axes.plot(
                range(1, len(values) + 1),
                values,
                look.dash,
                marker=look.marker,
                ms=3.5,
                lw=1.2,
                color=look.colour,
                label=name,
            )
    whole_ticks(axes)
    axes.set_xlabel("channel, largest first")
    axes.set_ylim(bottom=0)


def _spectra(axes: Any, known: Any, style: Style, key: str) -> None:
    for verdict, found in known:
        look, name = style.of[verdict.candidate.name], style.drawn(verdict.candidate.name)
        for power, is_own in ((f"picture_{key}", False), (key, True)):
            points = _points(found.get("spectrum_frequencies"), found.get(power))
            if points:
                drawn = {"lw": 1.2, "marker": look.marker, "ms": 3.5, "label": name}
                axes.plot(
                    *zip(*points, strict=True),
                    look.dash,
                    color=look.colour if is_own else GREY,
                    **(drawn if is_own else {"lw": 0.8, "zorder": 1}),
                )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("cycles a latent position; grey: the images")
    axes.set_ylabel("mean power a mode")


def _points(across: Any, up: Any) -> list[tuple[float, float]]:
    """Pairs of positive finite numbers of two lists that are equally long."""
    if not (isinstance(across, list) and isinstance(up, list) and len(across) == len(up)):
        return []
    pairs = [(x, y) for x, y in zip(across, up, strict=True) if len(_floats([x, y])) == 2]
    return [(x, y) for x, y in pairs if x > 0 and y > 0]


def _scatter(axes: Any, known: Any, style: Style, key: str) -> None:
    for verdict, found in known:
        values = _floats(found.get(key))
        points = list(zip(values[::2], values[1::2], strict=False))
        if points:
            look, name = style.of[verdict.candidate.name], style.drawn(verdict.candidate.name)
            axes.scatter(
                *zip(*points, strict=True),
                s=14,
                color=look.colour,
                marker=look.marker,
                alpha=0.7,
                label=name,
            )
