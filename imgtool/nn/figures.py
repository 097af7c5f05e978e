"""Figures drawn by matplotlib, as tensors."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

# Okabe & Ito 2008: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")


class Figure:
    """A figure of so many inches, with margins for ticks and labels of one line.

    Every training draws some, so it is quick: margins are not searched for, and ticks of
    logarithmic axes are plain numbers.

    Attributes:
        drawn: matplotlib's own.
    """

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Drawn

        self.drawn = Drawn(figsize=(width, height), dpi=110)
        across, up = 0.95 / width, 0.55 / height
        self.drawn.subplots_adjust(
            left=across, right=1 - 0.15 / width, bottom=up, top=1 - 0.3 / height, wspace=0.3
        )
        self._canvas = FigureCanvasAgg(self.drawn)

    def pixels(self) -> Tensor:
        """uint8 (3, H, W)."""
        self._canvas.draw()
        pixels = torch.frombuffer(bytearray(self._canvas.buffer_rgba()), dtype=torch.uint8)
        width, height = self._canvas.get_width_height()
        return pixels.view(height, width, 4)[..., :3].permute(2, 0, 1).contiguous()


def logarithmic(axes: Any, which: Literal["x", "y"], base: float = 10.0) -> None:
    """Make an axis of matplotlib's axes logarithmic; its ticks are plain numbers, 1/8 with base 2."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    getattr(axes, f"set_{which}scale")("log", base=base)
    axis = getattr(axes, f"{which}axis")
    axis.set_major_formatter(
        FuncFormatter(lambda v, _: f"1/{1 / v:g}" if base == 2 and v < 1 else f"{v:g}")
    )
    axis.set_minor_locator(NullLocator())
