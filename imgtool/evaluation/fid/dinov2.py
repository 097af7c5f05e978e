"""The vision transformer of DINOv2 (Oquab et al. 2023), ViT-L/14 at 224 pixels.

FD-DINOv2 (Stein et al. 2023; Karras et al. 2024) takes the class token behind the last norm. The
positions were learnt on 37 x 37 patches, and the published code resamples them to 16 x 16 by a
scale of 16.1 / 37 without antialiasing; other ways (timm's) give other features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 14  # pixels
_OFFSET = 0.1  # of patches, in the scale by which positions are resampled
_EPS = 1e-6
_RANDOM_SEED = 0
_GAIN = 0.1  # of random LayerScales: 24 blocks leave their input visible


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; those of ViT-L/14 by default.

    Attributes:
        grid: patches a side of the positions that were learnt.
    """

    width: int = 1024
    depth: int = 24
    heads: int = 16
    grid: int = 37


SHAPE = Shape()


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, tokens, width = x.shape
        parts = self.qkv(x).view(b, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        # Spelt out: fused kernels choose their own precision and order of sums by the device.
        share = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((share @ v).transpose(1, 2).reshape(b, tokens, width))


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=_EPS), nn.LayerNorm(width, eps=_EPS)
        self.attn, self.mlp = _Attention(width, heads), _Mlp(width)
        self.ls1, self.ls2 = _Scale(width), _Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _Patches(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, stride=PATCH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class DinoV2(nn.Module):
    """Its parameters have the names of the published file.

    Args:
        shape: sizes.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.grid = shape.grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + shape.grid**2, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of its training alone
        self.patch_embed = _Patches(width)
        self.blocks = nn.ModuleList(_Block(width, shape.heads) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(width, eps=_EPS)

    def positions(self, height: int, width: int) -> Tensor:
        """(1, 1 + height width, C) for so many patches."""
        own = self.pos_embed
        if height == width == self.grid:
            return own
        maps = own[:, 1:].transpose(1, 2).unflatten(2, (self.grid, self.grid))
        scale = tuple((side + _OFFSET) / self.grid for side in (height, width))
        maps = F.interpolate(maps, scale_factor=scale, mode="bicubic")
        return torch.cat([own[:, :1], maps.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) standardised, H and W multiples of 14, to (B, C)."""
        height, width = (side // PATCH for side in x.shape[2:])
        tokens = self.patch_embed(x)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1)
        tokens = tokens + self.positions(height, width)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens[:, 0])


def make_network() -> DinoV2:
    """ViT-L/14, its parameters not yet in memory."""
    with torch.device("meta"):
        return DinoV2(SHAPE)


def fill_at_random(network: DinoV2) -> None:
    """Weights for tests: every parameter takes part, and images stay apart."""
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(_RANDOM_SEED)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            kind = name.rpartition(".")[2]
            if kind == "gamma":
                parameter.fill_(_GAIN)
            elif "norm" in name:
                parameter.fill_(1.0 if kind == "weight" else 0.0)
            elif kind == "bias":
                parameter.zero_()
            else:
                deviation = parameter[0].numel() ** -0.5 if kind == "weight" else 0.5
                parameter.normal_(0, deviation, generator=generator)
