"""Splitter, joiner and critic (GeneGAN, arXiv 1705.04932, for several sizes).

    splitter  face (B, 3, S, S) on 0..255 -> background (B, 3C, h, h), object (B, C, h, h)
    joiner    background, object          -> face (B, 3, S, S) on 0..255
    critic    face                        -> (B,), unbounded

h is 16, 12, 16 for S = 64, 96, 128. Convolutions are shared by all sizes and have no bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from imgtool.models.genegan.layers import (
    At,
    BlockConv,
    Layer,
    ResizedConv2d,
    average_pool,
    bilinear,
    initialise,
    make_norm,
)
from imgtool.models.genegan.schema import SHALLOW, Model, bottleneck_side
from imgtool.nn.blocks import he_init
from imgtool.nn.convolution import Conv2d, ConvTranspose2d, conv_transpose2d

CRITIC_POOL = 4


def _down(channels: int, width: int) -> Conv2d:
    return Conv2d(channels, width, 4, stride=2, padding=1, bias=False)


def _up(channels: int, width: int, upsampling: str) -> ConvTranspose2d | ResizedConv2d:
    if upsampling == "resize":
        return ResizedConv2d(channels, width)
    return ConvTranspose2d(channels, width, 4, stride=2, padding=1, bias=False)


def object_channels(model: Model) -> int:
    """Channels of the bottleneck that are the object, of 4 * base_channels."""
    return round(4 * model.base_channels * model.second_ratio)


class Splitter(nn.Module):
    """Halves a face two or three times and parts its features by channel."""

    def __init__(self, model: Model, sizes: Sequence[int]) -> None:
        super().__init__()
        width, large = model.base_channels, [size for size in sizes if size > SHALLOW]
        self.num_object = object_channels(model)
        self.num_background = 4 * width - self.num_object
        self.layers = nn.ModuleList(
            [
                Layer(_down(3, width), None, 0.2),
                Layer(_down(width, 2 * width), make_norm(2 * width, model, sizes), 0.2),
                Layer(
                    Conv2d(2 * width, 4 * width, 3, padding=1, bias=False),
                    make_norm(4 * width, model, sizes),
                    0.2,
                ),
            ]
        )
        if large:
            norm = make_norm(4 * width, model, sizes, large)
            self.layers.append(Layer(_down(4 * width, 4 * width), norm, 0.2))
        sides = {size: bottleneck_side(size) for size in sizes}
        self.object_blocks = self.background_blocks = None
        if model.obj_blockconv:
            norm = make_norm(self.num_object, _fitting(model, self.num_object), sizes)
            self.object_blocks = BlockConv(self.num_object, model.obj_block_size, sides, norm)
        if model.bg_blockconv:
            norm = make_norm(self.num_background, _fitting(model, self.num_background), sizes)
            self.background_blocks = BlockConv(
                self.num_background, model.bg_block_size, sides, norm
            )
        initialise(self)

    def forward(self, face: Tensor, at: At) -> tuple[Tensor, Tensor]:
        """Background and object of faces (B, 3, S, S), float32 on 0..255."""
        x = face / 255
        for layer in self.layers[: 3 if at.size <= SHALLOW else 4]:
            x = layer(x, at)
        background, thing = x.split([self.num_background, self.num_object], dim=1)
        if self.background_blocks is not None:
            background = self.background_blocks(background, at)
        if self.object_blocks is not None:
            thing = self.object_blocks(thing, at)
        return background, thing


class Joiner(nn.Module):
    """Makes faces of backgrounds and objects.

    Pairs that share a part share its part of the first layer, which is linear: four faces of two
    backgrounds and one object cost 2 * 3/4 + 1/4 of a first layer and not 4.
    """

    def __init__(self, model: Model, sizes: Sequence[int], heads: Sequence[int] = ()) -> None:
        super().__init__()
        width, large = 2 * model.base_channels, [size for size in sizes if size > SHALLOW]
        self.num_background = 4 * model.base_channels - object_channels(model)
        ways: list[tuple[int, list[int] | None]] = [(4 * model.base_channels, None), (width, None)]
        if large:
            ways.append((width, large))
        self.layers = nn.ModuleList(
            [
                Layer(_up(channels, width, model.upsampling), norm, 0.0)
                for channels, used in ways
                for norm in [make_norm(width, model, sizes, used)]
            ]
        )
        self.to_rgb = Conv2d(width, 3, 3, padding=1, bias=False)
        self.bias = nn.Parameter(torch.zeros(3))
        initialise(self)
        self.heads = nn.ModuleDict()
        self.resize = nn.ModuleDict()
        for size in heads:
            self.heads[str(size)] = head = nn.Conv2d(3, 3, 1, bias=False)
            nn.init.dirac_(head.weight)  # begins as the resized face
            self.resize[str(size)] = bilinear(max(sizes), size)

    def forward(
        self,
        backgrounds: Sequence[Tensor],
        objects: Sequence[Tensor],
        pairs: Sequence[tuple[int, int | None]],
        at: At,
    ) -> dict[int, Tensor]:
        """Faces on 0..255, float32, by size S: (len(pairs) * B, 3, S, S), pair by pair.

        They are of the size that `at` says, and of each smaller one that has a head.

        Args:
            backgrounds, objects: (B, C, h, h) each.
            pairs: (number of the background, number of the object or None for zeros).
        """
        logits = self.logits(backgrounds, objects, pairs, at)
        faces = {at.size: to_face(logits)}
        for name, head in self.heads.items():
            faces[int(name)] = to_face(head(self.resize[name](logits)))
        return faces

    def logits(
        self,
        backgrounds: Sequence[Tensor],
        objects: Sequence[Tensor],
        pairs: Sequence[tuple[int, int | None]],
        at: At,
    ) -> Tensor:
        """Faces before tanh; arguments as of forward().

        Each face goes its way alone: features are normalised by face, so that together they would
        be copied apart and back, and a backward pass has gradients of one face at a time.
        """
        first, *rest = (layer for layer in self.layers if isinstance(layer, Layer))
        conv = first.conv
        weight = conv.spread() if isinstance(conv, ResizedConv2d) else conv.weight
        of_background, of_object = weight.split(
            [self.num_background, conv.in_channels - self.num_background]
        )
        grounds = _apart(backgrounds, of_background)
        things = _apart(objects, of_object)
        faces = []
        for a, b in pairs:
            x = grounds[a] if b is None else grounds[a] + things[b]
            x = first.finish(x, at)
            for layer in rest[: 1 if at.size <= SHALLOW else 2]:
                x = layer(x, at)
            faces.append(self.to_rgb(x))
        return torch.cat(faces) + self.bias.view(3, 1, 1)


class Critic(nn.Module):
    """Judges faces of any size: no sigmoid."""

    def __init__(self, model: Model, sizes: Sequence[int]) -> None:
        super().__init__()
        width, kind = model.base_channels, model.norm_of_critics
        shifts = kind == "none"
        self.layers = nn.ModuleList([Layer(_down(3, width), None, 0.2, shifts=shifts)])
        for before, after in ((1, 2), (2, 4), (4, 4)):
            conv = _down(before * width, after * width)
            norm = None
            if kind != "none":
                norm = make_norm(after * width, replace(model, norm=kind), sizes)
            self.layers.append(Layer(conv, norm, 0.2, shifts=shifts))
        self.pools = nn.ModuleDict(
            {str(size): average_pool(size // 16, CRITIC_POOL) for size in sizes}
        )
        self.judge = nn.Linear(4 * width * CRITIC_POOL**2, 1)
        initialise(self)
        if kind == "none":
            self.layers.apply(he_init)
        if model.critic_spectral_norm:
            bounded = (nn.Conv2d, nn.Linear)
            for part in [part for part in self.modules() if isinstance(part, bounded)]:
                spectral_norm(part)

    def forward(self, face: Tensor, at: At) -> Tensor:
        """Judgements (B,) of faces (B, 3, S, S) on 0..255."""
        x = face / 255
        for layer in self.layers:
            x = layer(x, at)
        x = self.pools[str(at.size)](x)
        judged: Tensor = self.judge(x.flatten(1))
        return judged.squeeze(1)


def to_face(logits: Tensor) -> Tensor:
    """Any real numbers to 0..255, float32: bfloat16 has too few levels near the ends."""
    return (torch.tanh(logits.float()) + 1) * 127.5


def _apart(parts: Sequence[Tensor], weight: Tensor) -> list[Tensor]:
    if not parts:
        return []
    done = conv_transpose2d(torch.cat(list(parts)), weight, stride=2, padding=1)
    return list(done.chunk(len(parts)))


def _fitting(model: Model, channels: int) -> Model:
    """The config with as many groups as divide `channels`."""
    from math import gcd

    return replace(model, norm_groups=gcd(model.norm_groups, channels))
