"""The Inception v3 of FID, on torchvision's blocks, and torchvision's own.

FID's network (TensorFlow's of 2015) differs from torchvision's: average pools leave the padding
out of their count, the last block pools the maximum, and there are 1008 classes. The feature is
the mean of the last block over its 8 x 8 positions: 2048 numbers, none negative.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.inception import (
    BasicConv2d,
    Inception3,
    InceptionA,
    InceptionAux,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
)

from imgtool.evaluation.fid.resize import SIDE, prepare

RANDOM_SEED = 0
_GRIDS = (1, 2, 4, 8, 16, 32, 64, 128)  # pixels of the images that calibrate random weights


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _FidA(InceptionA):
    def _forward(self, x: Tensor) -> list[Tensor]:
        return [
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(_average(x)),
        ]


class _FidC(InceptionC):
    def _forward(self, x: Tensor) -> list[Tensor]:
        double = self.branch7x7dbl_2(self.branch7x7dbl_1(x))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(self.branch7x7dbl_3(double)))
        return [
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            double,
            self.branch_pool(_average(x)),
        ]


class _FidE(InceptionE):
    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.is_last = in_channels == 2048  # Mixed_7c follows Mixed_7b's 2048 channels

    def _forward(self, x: Tensor) -> list[Tensor]:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.is_last else _average(x)
        return [
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(pooled),
        ]


_FID_BLOCKS: list[Any] = [BasicConv2d, _FidA, InceptionB, _FidC, InceptionD, _FidE, InceptionAux]


def make_network(features: str) -> Inception3:
    """A feature set's network, classes and all, its parameters not yet in memory.

    Args:
        features: `inception-fid`, or `inception-imagenet` as torchvision builds it for its own
            weights (it turns ImageNet's normalisation into one to [-1, 1] itself).
    """
    with torch.device("meta"):
        if features == "inception-fid":
            return Inception3(
                num_classes=1008,
                aux_logits=False,
                init_weights=False,
                inception_blocks=_FID_BLOCKS,
            )
        return Inception3(init_weights=False, transform_input=True)


def _smooth_image(grid: int, generator: torch.Generator) -> Tensor:
    """(1, 3, SIDE, SIDE), 0..255: a few random colours, of a brightness and contrast of its own."""
    mean, contrast = torch.rand(2, generator=generator).tolist()
    coarse = mean + contrast * (torch.rand(1, 3, grid, grid, generator=generator) - 0.5)
    return (F.interpolate(coarse, (SIDE, SIDE), mode="bilinear") * 255).clamp(0, 255)


def fill_at_random(network: Inception3, seed: int = RANDOM_SEED) -> None:
    """Weights for tests: kept in scale by batch norms that have seen flat and busy images."""
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
                module.momentum = None  # one pass, and its mean is the running mean
        images = torch.cat([_smooth_image(side, generator) for side in _GRIDS])
        aux, network.AuxLogits = network.AuxLogits, None
        network.train()
        network.dropout.p = 0.0
        network(prepare(images.to(torch.uint8), "pytorch-fid"))
        network.AuxLogits = aux
