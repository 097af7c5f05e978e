"""A transformer that says where a noisy latent is going.

The blocks are DiT's (Peebles and Xie 2023, section 3.2, adaLN-zero); the time is that of SiT
(Ma et al. 2024): 0 is noise, 1 is data.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgtool.models.flow.schema import MLP_RATIO, Model

TIME_FEATURES = 256
MAX_PERIOD = 10_000.0
TIME_SCALE = 1000.0  # of times 0..1, so that the features tell near ones apart, as DiT's steps do
EPS = 1e-6
INIT_STD = 0.02


class FlowTransformer(nn.Module):
    """x_t (B, C, h, w) and t (B,) to the velocity (B, C, h, w), 0 with fresh weights.

    Args:
        model: the config's section.
        shape: (C, h, w) of the latents.
        patch: side of a patch; divides h and w.
        num_labels: classes of the condition `label`; else 0.
        num_mask_classes: classes of the condition `mask`; else 0.
    """

    def __init__(
        self,
        model: Model,
        shape: tuple[int, int, int],
        patch: int,
        *,
        num_labels: int = 0,
        num_mask_classes: int = 0,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        if height % patch or width % patch:
            raise ValueError(f"patches of {patch} do not cover {height} x {width}")
        self.patch, self.num_labels, self.num_mask_classes = patch, num_labels, num_mask_classes
        self.embed = nn.Conv2d(channels, model.width, patch, stride=patch)
        grid = height // patch, width // patch
        positions = sincos_positions(*grid, model.width)
        self.register_buffer("positions", positions, persistent=False)  # follow from the shape
        self.time = nn.Sequential(
            nn.Linear(TIME_FEATURES, model.width), nn.SiLU(), nn.Linear(model.width, model.width)
        )
        # One more than the classes: of an image whose label was left out.
        self.label = nn.Embedding(num_labels + 1, model.width) if num_labels else None
        self.mask = (
            nn.Conv2d(num_mask_classes, model.width, patch, stride=patch, bias=False)
            if num_mask_classes
            else None
        )
        self.blocks = nn.ModuleList(Block(model) for _ in range(model.depth))
        self.modulation = nn.Linear(model.width, 2 * model.width)
        self.out = nn.Linear(model.width, patch * patch * channels)
        self._initialise()

    def forward(
        self, x_t: Tensor, t: Tensor, label: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """The velocity.

        Args:
            x_t: (B, C, h, w).
            t: (B,) float32, 0..1.
            label: (B,) int64; `num_labels` where it is left out.
            mask: (B, h, w) class numbers; where they are none, such as 255, nothing is known.
        """
        tokens = self.embed(x_t).flatten(2).transpose(1, 2) + self.positions
        if self.mask is not None and mask is not None:
            planes = one_hot(mask, self.num_mask_classes)
            tokens = tokens + self.mask(planes).flatten(2).transpose(1, 2)
        condition = self.time(time_features(t))
        if self.label is not None and label is not None:
            condition = condition + self.label(label)
        condition = F.silu(condition)
        for block in self.blocks:
            tokens = block(tokens, condition)
        shift, scale = self.modulation(condition).unsqueeze(1).chunk(2, dim=-1)
        height, width = x_t.shape[-2:]
        return unpatchify(self.out(modulated(tokens, shift, scale)), self.patch, height, width)

    def _initialise(self) -> None:
        """DiT's initialisation: every block is the identity and the output 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.embed.weight.view(self.embed.out_channels, -1))
        nn.init.zeros_(self.embed.bias)  # type: ignore[arg-type]
        for number in (0, 2):
            nn.init.normal_(self.time[number].weight, std=INIT_STD)  # type: ignore[arg-type]
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=INIT_STD)
        if self.mask is not None:  # as ControlNet's: the first step is that of no condition
            nn.init.zeros_(self.mask.weight)
        modulations = [block.modulation for block in self.blocks if isinstance(block, Block)]
        for linear in (self.modulation, self.out, *modulations):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)


class Block(nn.Module):
    """Attention and MLP, each between a modulated norm and a gate: (B, T, d) to the same."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        width = model.width
        self.heads = model.heads
        self.qkv = nn.Linear(width, 3 * width)
        self.norms = (
            nn.ModuleList(nn.RMSNorm(width // model.heads, eps=EPS) for _ in range(2))
            if model.qk_norm
            else None
        )
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, MLP_RATIO * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(MLP_RATIO * width, width),
        )
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """`condition` (B, d), after its SiLU."""
        parts = self.modulation(condition).unsqueeze(1).chunk(6, dim=-1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        tokens = tokens + gate * self._attend(modulated(tokens, shift, scale))
        moved: Tensor = tokens + mlp_gate * self.mlp(modulated(tokens, mlp_shift, mlp_scale))
        return moved

    def _attend(self, tokens: Tensor) -> Tensor:
        count, length, width = tokens.shape
        parts = self.qkv(tokens).view(count, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        if self.norms is not None:
            query, key = self.norms[0](query).to(value.dtype), self.norms[1](key).to(value.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.project(mixed.transpose(1, 2).reshape(count, length, width))
        return projected


def modulated(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Tokens normalised over their width, without weights of its own, then scaled and shifted."""
    return F.layer_norm(tokens, tokens.shape[-1:], eps=EPS) * (1 + scale) + shift


def time_features(t: Tensor) -> Tensor:
    """(B,) times 0..1 to (B, 256): cosines, then sines, of falling frequency."""
    half = TIME_FEATURES // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = TIME_SCALE * t.float()[:, None] * torch.exp(-math.log(MAX_PERIOD) / half * steps)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def sincos_positions(height: int, width: int, features: int) -> Tensor:
    """(height * width, features) float32 of a grid, row by row: half of an axis each.

    Args:
        features: a multiple of 4.
    """
    quarter = features // 4
    frequencies = MAX_PERIOD ** (-torch.arange(quarter, dtype=torch.float64) / quarter)

    def of_axis(length: int) -> Tensor:
        angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    rows = of_axis(height)[:, None].expand(height, width, 2 * quarter)
    columns = of_axis(width)[None].expand(height, width, 2 * quarter)
    return torch.cat([rows, columns], dim=2).reshape(height * width, features).float()


def unpatchify(tokens: Tensor, patch: int, height: int, width: int) -> Tensor:
    """(B, T, C * patch * patch), patches row by row, to (B, C, height, width)."""
    count, _, features = tokens.shape
    planes = tokens.transpose(1, 2).reshape(count, features, height // patch, width // patch)
    return F.pixel_shuffle(planes, patch)


def one_hot(mask: Tensor, num_classes: int) -> Tensor:
    """(B, h, w) class numbers to (B, num_classes, h, w) float32; 0 where they are none."""
    classes = torch.arange(num_classes, device=mask.device)[:, None, None]
    return (mask[:, None].long() == classes).float()
