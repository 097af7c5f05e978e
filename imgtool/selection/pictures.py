"""Reconstructions side by side, and what latents.json tells, from the folders of experiments."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from imgtool.selection.records import Selection, Verdict
from imgtool.selection.style import Style, new_figure, plain_axes, png, whole_ticks

MAX_PIXELS = 40_000_000
MAX_BYTES = 10_000_000
NUM_ROWS, NUM_COLUMNS, NUM_STRIPS = 6, 13, 3
TILE_PX, GAP_PX, HEAD_PX = 128, 4, 34
STRIP_HEIGHT_PX = 96


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
    heads += [(style.short[v.candidate.name], _quality_of(v)) for v in shown]
    return _sheet(heads, rows)


def _samples(verdict: Verdict) -> Path:
    folder = verdict.candidate.runs[0].exp_dir
    return (folder or Path("/nonexistent")) / "samples"


def _numbers(verdict: Verdict) -> list[str]:
    return sorted(path.name for path in _samples(verdict).glob("val_*.png"))


def _quality_of(verdict: Verdict) -> str:
    metrics = verdict.candidate.metrics
    if "val_psnr" in metrics:
        return f"{metrics['val_psnr']:.2f} dB"
    return f"mse {metrics['val_mse']:.4g}" if "val_mse" in metrics else ""


def _open(path: Path) -> Image.Image | None:
    """A picture of sane size; None for anything else."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        return None


def _halves(path: Path) -> tuple[Image.Image, Image.Image] | None:
    image = _open(path)
    if image is None or image.width < 2:
        return None
    middle, height = image.width // 2, image.height
    left = image.crop((0, 0, middle, height))
    return left, image.crop((middle, 0, 2 * middle, height))


def _tile(image: Image.Image) -> Image.Image:
    """Fitted into a square; small ones enlarged without smoothing, to show their pixels."""
    factor = TILE_PX / max(image.size)
    size = tuple(max(1, round(side * factor)) for side in image.size)
    how = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    tile = Image.new("RGB", (TILE_PX, TILE_PX), "white")
    tile.paste(image.resize((size[0], size[1]), how))
    return tile


def _sheet(heads: Sequence[tuple[str, str]], rows: Sequence[Sequence[Image.Image]]) -> bytes:
    step = TILE_PX + GAP_PX
    sheet = Image.new("RGB", (len(heads) * step, HEAD_PX + len(rows) * step), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for column, lines in enumerate(heads):
        for number, line in enumerate(lines):
            colour = "black" if number == 0 else "#666666"
            while len(line) > 4 and draw.textlength(line, font) > TILE_PX:
                line = line[:-2] + "…"
            draw.text((column * step + 1, 2 + 15 * number), line, colour, font)
    for number, row in enumerate(rows):
        for column, image in enumerate(row):
            sheet.paste(_tile(image), (column * step, HEAD_PX + number * step))
    return _as_png(sheet)


def _as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def interpolations(selection: Selection, style: Style) -> bytes | None:
    """Strips from one validation image to another through the latent; None without any."""
    rows = []
    shown = selection.verdicts[:8]
    for verdict in shown:
        for number in range(NUM_STRIPS if len(shown) <= NUM_STRIPS else 1):
            strip = _open(_samples(verdict) / f"interpolation_{number:02d}.png")
            if strip is not None:
                rows.append((style.short[verdict.candidate.name], strip))
    if not rows:
        return None
    tiles = []
    for name, strip in rows:
        width = max(1, round(strip.width * STRIP_HEIGHT_PX / strip.height))
        tiles.append((name, strip.resize((min(width, 2000), STRIP_HEIGHT_PX))))
    margin = 170
    sheet = Image.new(
        "RGB",
        (margin + max(t.width for _, t in tiles), len(tiles) * (STRIP_HEIGHT_PX + GAP_PX)),
        "white",
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, (name, tile) in enumerate(tiles):
        top = number * (STRIP_HEIGHT_PX + GAP_PX)
        draw.text((4, top + STRIP_HEIGHT_PX // 2 - 8), name[:26], "black", font)
        sheet.paste(tile, (margin, top))
    return _as_png(sheet)


def latents_of(verdict: Verdict) -> dict[str, Any] | None:
    """latents.json of a candidate's best run; None when it has none that can be read."""
    return _document(verdict, "latents.json")


def tested_of(verdict: Verdict) -> dict[str, Any] | None:
    """test_metrics.json of a candidate's best run, which `eval metrics --split test` leaves."""
    return _document(verdict, "test_metrics.json")


def _document(verdict: Verdict, name: str) -> dict[str, Any] | None:
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
    """Spread and KL divergence of every channel, and the images on two principal axes."""
    known = [(v, found) for v in selection.verdicts if (found := latents_of(v))][:8]
    panels = [
        (title, draw)
        for key, title, draw in (
            ("channel_std", "standard deviation a channel", _channels),
            ("kld_per_channel", "KL divergence a channel (nats an element)", _channels),
            ("pca", "mean latents of images, principal axes", _scatter),
        )
        if any(_floats(found.get(key)) for _, found in known)
        for key in [key]
        for draw in [_bound(draw, key)]
    ]
    if not panels:
        return None
    figure = new_figure(4.4 * len(panels), 3.8)
    for number, (title, draw) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        plain_axes(axes)
        draw(axes, known, style)
        axes.set_title(title, fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7, frameon=False)
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
            look, name = style.of[verdict.candidate.name], style.short[verdict.candidate.name]
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


def _scatter(axes: Any, known: Any, style: Style, key: str) -> None:
    for verdict, found in known:
        values = _floats(found.get(key))
        points = list(zip(values[::2], values[1::2], strict=False))
        if points:
            look, name = style.of[verdict.candidate.name], style.short[verdict.candidate.name]
            axes.scatter(
                *zip(*points, strict=True),
                s=14,
                color=look.colour,
                marker=look.marker,
                alpha=0.7,
                label=name,
            )
