"""Architecture kl: the encoder and decoder of latent diffusion, in the shape of AutoencoderKL.

Rombach et al. 2022, appendix G; the modules have the names of diffusers' AutoencoderKL, so that
weights travel both ways (`imgtool.models.autoencoder.diffusers`). Its last convolutions belong to
the parts that they make: the encoder's to the bottleneck, the decoder's to the rgb head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgtool.models.autoencoder.schema import Model
from imgtool.nn.blocks import ACTIVATIONS, he_init

EPS = 1e-6  # of every GroupNorm; torch's own default is 1e-5
BRANCH = 0.1  # size of a residual block's last weights at the start, of their usual one


class Residual(nn.Module):
    """(B, inner, H, W) to (B, outer, H, W): norm, activation, convolution, twice, and the input."""

    def __init__(self, inner: int, outer: int, model: Model) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(model.norm_groups, inner, EPS)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.norm2 = nn.GroupNorm(model.norm_groups, outer, EPS)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        self.act = ACTIVATIONS[model.activation]()
        self.conv_shortcut = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(self.act(self.norm1(x)))
        shortcut: Tensor = self.conv_shortcut(x)
        return shortcut + self.conv2(self.act(self.norm2(inner)))


class Attention(nn.Module):
    """Every position of (B, C, H, W) looks at every other, with one head; the input is added."""

    def __init__(self, channels: int, model: Model) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(model.norm_groups, channels, EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        places = self.group_norm(x).flatten(2).transpose(1, 2).unsqueeze(1)  # (B, 1, H W, C)
        found = F.scaled_dot_product_attention(
            self.to_q(places), self.to_k(places), self.to_v(places)
        )
        (out,) = self.to_out
        return x + out(found).squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:])


class Halved(nn.Module):
    """(B, C, H, W) to (B, C, H/2, W/2). The padding is right and below alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        halved: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return halved


class Doubled(nn.Module):
    """(B, C, H, W) to (B, C, 2H, 2W): nearest neighbours and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        doubled: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return doubled


class Level(nn.Module):
    """Residual blocks of one resolution, an attention after each where it is asked for."""

    def __init__(
        self, inner: int, outer: int, num_blocks: int, model: Model, *, attends: bool
    ) -> None:
        super().__init__()
        widths = [inner] + [outer] * (num_blocks - 1)
        self.resnets = nn.ModuleList(Residual(width, outer, model) for width in widths)
        self.attentions = nn.ModuleList(Attention(outer, model) for _ in widths if attends)

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.resnets):
            x = block(x)
            if len(self.attentions):
                x = self.attentions[number](x)
        return x


class DownLevel(Level):
    """A level of the encoder; all but the last are halved at their end."""

    def __init__(self, inner: int, outer: int, model: Model, *, is_last: bool) -> None:
        attends = is_last and model.coarsest_attention
        super().__init__(inner, outer, model.layers_per_block, model, attends=attends)
        self.downsamplers = nn.ModuleList([] if is_last else [Halved(outer)])

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        for layer in self.downsamplers:
            x = layer(x)
        return x


class UpLevel(Level):
    """A level of the decoder; all but the last are doubled at their end."""

    def __init__(
        self, inner: int, outer: int, model: Model, *, is_first: bool, is_last: bool
    ) -> None:
        attends = is_first and model.coarsest_attention
        super().__init__(inner, outer, model.layers_per_block + 1, model, attends=attends)
        self.upsamplers = nn.ModuleList([] if is_last else [Doubled(outer)])

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        for layer in self.upsamplers:
            x = layer(x)
        return x


class Middle(nn.Module):
    """A residual block, attention where the model has it, and another block."""

    def __init__(self, channels: int, model: Model) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Residual(channels, channels, model) for _ in range(2))
        attends = model.mid_block_attention
        self.attentions = nn.ModuleList(Attention(channels, model) for _ in range(attends))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.resnets
        x = first(x)
        for attention in self.attentions:
            x = attention(x)
        last: Tensor = second(x)
        return last


class KlEncoder(nn.Module):
    """(B, 3, H, W) on [-1, 1] to features (B, last width, H/f, W/f), f = 2^downsampling_steps."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        widths = model.levels
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownLevel(widths[max(0, number - 1)], width, model, is_last=number == last)
            for number, width in enumerate(widths)
        )
        self.mid_block = Middle(widths[-1], model)
        self.conv_norm_out = nn.GroupNorm(model.norm_groups, widths[-1], EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return F.silu(self.conv_norm_out(self.mid_block(x)))


class KlTrunk(nn.Module):
    """z (B, C, h, w) to the features (B, first width, f h, f w) that all heads read."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        widths, channels = model.levels[::-1], model.latent_channels
        last = len(widths) - 1
        self.post_quant_conv = (
            nn.Conv2d(channels, channels, 1) if model.quant_convs else nn.Identity()
        )
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0], model)
        self.up_blocks = nn.ModuleList(
            UpLevel(
                widths[max(0, number - 1)],
                width,
                model,
                is_first=number == 0,
                is_last=number == last,
            )
            for number, width in enumerate(widths)
        )

    def forward(self, z: Tensor) -> Tensor:
        x: Tensor = self.mid_block(self.conv_in(self.post_quant_conv(z)))
        for level in self.up_blocks:
            x = level(x)
        return x


class KlHead(nn.Module):
    """Features (B, F, H, W) to (B, channels, H, W), float32 and without bounds."""

    def __init__(self, channels: int, model: Model) -> None:
        super().__init__()
        features = model.levels[0]
        self.conv_norm_out = nn.GroupNorm(model.norm_groups, features, EPS)
        self.conv_out = nn.Conv2d(features, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        said: Tensor = self.conv_out(F.silu(self.conv_norm_out(features)))
        return said.float()


class KlClassificationHead(nn.Sequential):
    """Features (B, F, H, W), averaged over the image, to logits (B, L)."""

    def __init__(self, num_classes: int, model: Model) -> None:
        features = model.levels[0]
        super().__init__(
            nn.GroupNorm(model.norm_groups, features, EPS),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(features, num_classes),
        )


def kl_init(module: nn.Module) -> None:
    """Weights with which the network begins as little more than its chain of resizing convolutions.

    That chain keeps the size of what goes through it, and each residual block adds about a tenth
    (Zhang et al. 2019, Fixup, begins with nothing). With PyTorch's own weights each convolution of
    the chain takes two thirds of the variance, and photographs were learnt more slowly
    (docs/measurements.md). To be applied.
    """
    match module:
        case Residual():
            he_init(module.conv1)
            _keep_size(module.conv2, BRANCH)
            if isinstance(module.conv_shortcut, nn.Conv2d):
                _keep_size(module.conv_shortcut)
        case Halved() | Doubled():
            _keep_size(module.conv)
        case KlEncoder() | KlTrunk():
            _keep_size(module.conv_in)


def _keep_size(conv: nn.Conv2d, share: float = 1.0) -> None:
    """As `he_init`, where no activation follows: variance 1 / (inputs of an output)."""
    nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
    with torch.no_grad():
        conv.weight.mul_(share)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
