"""How the figures of a report look: colours, names, axes."""

from __future__ import annotations

import io
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imgtool.selection.candidates import natural, short_names
from imgtool.selection.records import Selection

# Okabe & Ito 2008: told apart by colour-blind readers too; the lightest left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
GREY = "#9a9a9a"
WINNER = "#D55E00"
DPI = 130
UNITS = {
    "val_mse": "val MSE on [0,1]",
    "val_psnr": "val PSNR (dB)",
    "latent_dims": "latent dims (elements)",
    "num_parameters": "parameters",
    "macs_per_image": "multiply-accumulates an image",
    "images_per_sec": "training images a second",
    "peak_memory_bytes": "peak memory (bytes)",
}


def label_of(metric: str) -> str:
    """A metric with its unit."""
    return UNITS.get(metric, metric.replace("_", " "))


@dataclass(frozen=True)
class Look:
    """How an experiment is drawn."""

    colour: str
    dash: str
    marker: str


class Style:
    """Every experiment looks the same in all figures."""

    def __init__(self, selection: Selection) -> None:
        names = sorted((v.candidate.name for v in selection.verdicts), key=natural)
        self.short = short_names(names)
        self.of = {name: self._look(number) for number, name in enumerate(names)}

    @staticmethod
    def _look(number: int) -> Look:
        turn = number // len(COLOURS) % len(DASHES)
        return Look(COLOURS[number % len(COLOURS)], DASHES[turn], MARKERS[turn])


def png(figure: Figure) -> bytes:
    """The figure as a PNG."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def plain_axes(axes: Axes) -> None:
    """No frame above and at the right, a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)


def whole_ticks(axes: Axes) -> None:
    """What is counted has no ticks between whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
