"""How the figures of a report look: colours, names, numbers, axes."""

from __future__ import annotations

import io
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
from imgtool.selection.records import Selection
from imgtool.units import format_bytes

# Okabe & Ito 2008: told apart by colour-blind readers too; the lightest left out, and the winner's
# kept for it alone.
COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
WINNER = "#D55E00"
GREY = "#9a9a9a"
DASHES = ("-", "--", ":", "-.")
MARKERS = ("s", "^", "D", "o")
DPI = 150
WIDTH = 8.0  # of every figure, inches: the page's, so that no letter shrinks
NAME_LENGTH = 28  # of a name in a figure; longer ones lose their middle
FONT = "DejaVu Sans"  # comes with matplotlib
# metric -> what it is called, and its unit.
LABELS = {
    "val_mse": ("val MSE", ""),
    "val_psnr": ("val PSNR", "dB"),
    "val_highpass_psnr": ("val high-pass PSNR", "dB"),
    "val_seg_boundary_miou": ("val boundary IoU", ""),
    "val_rd_loss": ("val RD loss", ""),
    "val_bpp": ("val rate", "bpp"),
    "bd_rate_percent": ("BD-rate", "%"),
    "fid": ("FID", ""),
    "latent_dims": ("latent dims", ""),
    "latent_positions": ("latent positions", ""),
    "num_parameters": ("parameters", ""),
    "macs_per_image": ("MACs an image", ""),
    "images_per_sec": ("training", "images/s"),
    "peak_memory_bytes": ("peak memory", ""),
    "convergence_epochs": ("convergence", "epochs"),
    "kld": ("KL divergence", "nats"),
}
COUNTS = ("latent_dims", "latent_positions")  # told to the last digit


def name_of(metric: str) -> str:
    """What a metric is called."""
    return LABELS.get(metric, (metric.replace("_", " "), ""))[0]


def unit_of(metric: str) -> str:
    """Its unit; empty without one, and of bytes, which `number` tells with theirs."""
    return LABELS.get(metric, ("", "dB" if "psnr" in metric else ""))[1]


def label_of(metric: str) -> str:
    """A metric with its unit."""
    unit = unit_of(metric)
    return f"{name_of(metric)} ({unit})" if unit else name_of(metric)


def number(value: float, metric: str = "") -> str:
    """In four digits at most: 0.01234, 1,234, 44.5 M; 16,384 latent dims in full."""
    if metric.endswith("_bytes"):
        return format_bytes(value)
    if metric in COUNTS and value == int(value):
        return f"{value:,.0f}"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * size and abs(value) >= 10_000:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


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
