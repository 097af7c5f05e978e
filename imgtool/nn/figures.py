"""Figures drawn by matplotlib, as tensors."""

from __future__ import annotations

import torch
from torch import Tensor

# Okabe & Ito 2008: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")


class Figure:
    """A figure of so many inches.

    Attributes:
        drawn: matplotlib's own.
    """

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Drawn

        self.drawn = Drawn(figsize=(width, height), dpi=110, layout="constrained")
        self._canvas = FigureCanvasAgg(self.drawn)

    def pixels(self) -> Tensor:
        """uint8 (3, H, W)."""
        self._canvas.draw()
        pixels = torch.frombuffer(bytearray(self._canvas.buffer_rgba()), dtype=torch.uint8)
        width, height = self._canvas.get_width_height()
        return pixels.view(height, width, 4)[..., :3].permute(2, 0, 1).contiguous()
