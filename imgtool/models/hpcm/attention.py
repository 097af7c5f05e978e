"""Cross-attention in windows, between what was known and what the last step told."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgtool.nn.convolution import Pointwise


class CrossAttention(nn.Module):
    """Window-wise softmax(q k^T / sqrt(d)) v + W psi, any number of rows and columns.

    q is of psi, k and v of the context; windows do not overlap. Windows at the lower and right
    edge see fewer positions where the grid is no multiple of their side. Source: HPCM, section
    3.2; as in its code, the output convolution takes psi and not the attention's result.

    Args:
        channels: of psi and context, both (B, C, H, W).
        window: side of the windows.
        num_heads: divides channels.
    """

    def __init__(self, channels: int, window: int, num_heads: int) -> None:
        super().__init__()
        self.window, self.num_heads = window, num_heads
        self.query_out = Pointwise(channels, 2 * channels)
        self.key_value = Pointwise(channels, 2 * channels)

    def forward(self, psi: Tensor, context: Tensor) -> Tensor:
        """The new context (B, C, H, W)."""
        height, width = psi.shape[2:]
        # A grid smaller than a window is one window of the grid's own size.
        sides = min(self.window, height), min(self.window, width)
        query, out = self.query_out(psi).chunk(2, dim=1)
        key, value = self.key_value(context).chunk(2, dim=1)
        found = F.scaled_dot_product_attention(
            self._windows(query, sides),
            self._windows(key, sides),
            self._windows(value, sides),
            attn_mask=self._mask(psi, sides),
        )
        return out + self._grid(found, sides, psi.shape)

    def _windows(self, x: Tensor, sides: tuple[int, int]) -> Tensor:
        """(B, C, H, W) to (B windows, heads, positions, C / heads), zeros beyond the edges."""
        bottom, right = -x.shape[2] % sides[0], -x.shape[3] % sides[1]
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        x = x.unflatten(3, (-1, sides[1])).unflatten(2, (-1, sides[0]))
        x = x.unflatten(1, (self.num_heads, -1))  # (B, heads, d, down, rows, across, columns)
        return x.permute(0, 3, 5, 1, 4, 6, 2).flatten(4, 5).flatten(0, 2)

    def _grid(self, x: Tensor, sides: tuple[int, int], size: torch.Size) -> Tensor:
        """`_windows` undone: back to `size`."""
        batch, channels, height, width = size
        down, across = -(-height // sides[0]), -(-width // sides[1])
        x = x.view(batch, down, across, self.num_heads, *sides, channels // self.num_heads)
        x = x.permute(0, 3, 6, 1, 4, 2, 5).reshape(batch, channels, down * sides[0], -1)
        return x[:, :, :height, :width]

    def _mask(self, x: Tensor, sides: tuple[int, int]) -> Tensor | None:
        """Which keys are positions of the grid; None where all are."""
        batch, _, height, width = x.shape
        if not (height % sides[0] or width % sides[1]):
            return None
        down, across = -(-height // sides[0]), -(-width // sides[1])
        rows = torch.arange(down * sides[0], device=x.device) < height
        columns = torch.arange(across * sides[1], device=x.device) < width
        inside = rows.view(down, 1, sides[0], 1) & columns.view(1, across, 1, sides[1])
        return inside.view(1, down * across, 1, 1, -1).expand(batch, -1, -1, -1, -1).flatten(0, 1)
