"""LPIPS: how different two images look (Zhang et al. 2018), version 0.1 with VGG16.

The weights of its five linear layers are shipped (lpips_vgg.safetensors, whose header has their
source and licence). The trunk is torchvision's vgg16-397923af.pth, 528 MB; `find_weights` has it
from a cache or from the file that IMGTOOL_LPIPS_WEIGHTS names.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from imgtool.errors import DataError
from imgtool.nn.blocks import he_init, without_autocast
from imgtool.nn.lpips_weights import SMALLEST, VGG16
from imgtool.published import Weights, cached, find_weights

_LAYERS = Path(__file__).with_name("lpips_vgg.safetensors")
_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# Within the root, so that the gradient of features that are all 0 is 0 and not NaN: flat images.
_EPS = 1e-8


class Lpips(nn.Module):
    """Distance of images (B, 3, H, W) on [-1, 1], at least 16 pixels a side, to (B,).

    Features of VGG16 after the last activation of each block, of unit length over channels;
    squared differences, weighted by channel, averaged over space, added up over blocks. Float32,
    also under autocast. Nothing of it is trained, and it has no other mode: there is no dropout.
    The trunk's names are torchvision's, without `features.`.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.ends: list[int] = []
        channels = 3
        for width, count in _BLOCKS:
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.ends.append(len(layers))
            layers.append(nn.MaxPool2d(2))
        self.trunk = nn.Sequential(*layers[:-1])
        weights = load_file(_LAYERS)
        for k in range(len(_BLOCKS)):
            self.register_buffer(f"lin{k}", weights[f"lin{k}"].view(1, -1, 1, 1))
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))
        self.requires_grad_(requires_grad=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if min(x.shape[-2:]) < SMALLEST:
            size = " x ".join(map(str, x.shape[-2:]))
            raise DataError(f"LPIPS needs {SMALLEST} pixels a side or more: {size} is too small")
        with without_autocast(x):
            # By themselves: an original needs no backward pass.
            first, second = ((z.float() - self.shift) / self.scale for z in (x, y))
            total = torch.zeros(len(x), device=x.device)
            begin = 0
            for k, end in enumerate(self.ends):
                block = self.trunk[begin:end]
                begin = end
                first, second = block(first), block(second)
                differ = (_of_unit_length(first) - _of_unit_length(second)).square()
                total = total + (differ * getattr(self, f"lin{k}")).sum(1).mean((1, 2))
            return total


def _of_unit_length(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True) + _EPS).sqrt()


def find_lpips(device: torch.device) -> Lpips | None:
    """LPIPS with its weights on a device; None where the trunk is not on this machine.

    On the meta device the trunk has no weights, and where IMGTOOL_LPIPS_WEIGHTS is `random` it has
    random ones, the same in every process.

    Raises:
        DataError: the file that IMGTOOL_LPIPS_WEIGHTS names is missing, or is no such file.
    """
    is_named = bool(os.environ.get(VGG16.variable))
    if device.type == "meta":
        return _made(Weights(None, "none", verified=False), device)
    if not is_named and not any(path.is_file() for path in cached(VGG16)):
        return None
    return _made(find_weights(VGG16, download=False), device)


def lpips_on(device: torch.device) -> Lpips:
    """As `find_lpips`, for those who cannot do without it.

    Raises:
        DataError: the trunk is not on this machine, and where it is to be had.
    """
    found = find_lpips(device)
    return _made(find_weights(VGG16, download=False), device) if found is None else found


@cache
def _made(weights: Weights, device: torch.device) -> Lpips:
    """One for all on a device, which draws nothing from a run's own random numbers."""
    if device.type == "meta":
        with device:
            return Lpips().eval().to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lpips = Lpips().apply(he_init)
    if weights.path is not None:
        try:
            loaded = torch.load(weights.path, map_location="cpu", weights_only=True)
        except OSError as error:
            raise DataError(f"cannot read {weights.path}: {error.strerror or error}") from error
        start = "features."
        trunk = {k.removeprefix(start): v for k, v in loaded.items() if k.startswith(start)}
        lpips.trunk.load_state_dict(trunk)
    return lpips.to(device).eval()


def perceptual_size(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) averaged down by a whole factor towards 256 pixels of the shorter side.

    As Karras et al. 2019 do before LPIPS, whose VGG was made for 224.
    """
    factor = min(images.shape[-2:]) // 256
    return F.avg_pool2d(images, factor) if factor > 1 else images
