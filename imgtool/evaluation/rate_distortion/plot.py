"""Rate-distortion curves as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from imgtool.evaluation.fid.plot import COLOURS, DPI, MARKERS
from imgtool.evaluation.rate_distortion.curves import Curve
from imgtool.files import write_bytes

LABELS = {"psnr": "PSNR (dB)", "ms-ssim": "MS-SSIM (dB: -10 log10(1 - MS-SSIM))"}


def plot_curves(curves: Sequence[Curve], path: Path) -> None:
    """Draw curves of one metric: bits a pixel against quality.

    Args:
        curves: at least one.
        path: PNG, written atomically; its folder is made.

    Raises:
        OSError: it cannot be written.
    """
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, curve in enumerate(curves):
        axes.plot(
            curve.bpp,
            curve.quality_db,
            label=curve.name,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            linestyle="--" if curve.dataset else "-",  # published: nobody measured it here
            markersize=5,
        )
    axes.set_xlabel("bits a pixel")
    axes.set_ylabel(LABELS[curves[0].metric])
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="lower right")
    buffer = io.BytesIO()
    canvas.figure.savefig(buffer, format="png", dpi=DPI)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())
