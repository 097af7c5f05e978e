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
        query, out = self.query_out(psi).chunk(2, dim=1)
        key, value = self.key_value(context).chunk(2, dim=1)
        windows = Windows(psi, self.window, self.num_heads)
        found = F.scaled_dot_product_attention(
            windows.cut(query), windows.cut(key), windows.cut(value), attn_mask=windows.inside()
        )
        return out + windows.join(found)


class Windows:
    """Tensors cut into windows and heads, and put together again: nothing is computed.

    Args:
        like: (B, C, H, W), what is cut has this size.
        window, num_heads: as in CrossAttention.
    """

    def __init__(self, like: Tensor, window: int, num_heads: int) -> None:
        self._size, self._device, self._num_heads = like.shape, like.device, num_heads
        # A grid smaller than a window is one window of the grid's own size.
        self._sides = min(window, like.shape[2]), min(window, like.shape[3])

    @property
    def _num(self) -> tuple[int, int]:
        """Windows down and across."""
        _, _, height, width = self._size
        return -(-height // self._sides[0]), -(-width // self._sides[1])

    def cut(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B windows, heads, positions, C / heads), zeros beyond the edges."""
        sides = self._sides
        bottom, right = -x.shape[2] % sides[0], -x.shape[3] % sides[1]
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        x = x.unflatten(3, (-1, sides[1])).unflatten(2, (-1, sides[0]))
        x = x.unflatten(1, (self._num_heads, -1))  # (B, heads, d, down, rows, across, columns)
        return x.permute(0, 3, 5, 1, 4, 6, 2).flatten(4, 5).flatten(0, 2)

    def join(self, x: Tensor) -> Tensor:
        """`cut` undone: back to (B, C, H, W)."""
        (batch, channels, height, width), (down, across) = self._size, self._num
        x = x.view(batch, down, across, self._num_heads, *self._sides, channels // self._num_heads)
        x = x.permute(0, 3, 6, 1, 4, 2, 5).reshape(batch, channels, down * self._sides[0], -1)
        return x[:, :, :height, :width]

    def inside(self) -> Tensor | None:
        """Which keys are positions of the grid (B windows, 1, 1, positions); None where all are."""
        (batch, _, height, width), sides = self._size, self._sides
        if not (height % sides[0] or width % sides[1]):
            return None
        down, across = self._num
        rows = torch.arange(down * sides[0], device=self._device) < height
        columns = torch.arange(across * sides[1], device=self._device) < width
        inside = rows.view(down, 1, sides[0], 1) & columns.view(1, across, 1, sides[1])
        return inside.view(1, down * across, 1, 1, -1).expand(batch, -1, -1, -1, -1).flatten(0, 1)
