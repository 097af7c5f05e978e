"""LPIPS: how different two images look (Zhang et al. 2018), version 0.1 with VGG16.

The weights of its five linear layers are shipped (lpips_vgg.safetensors, whose header has their
source and licence). The trunk is torchvision's vgg16-397923af.pth, 528 MB; it is taken from
torch hub's cache or from the file that IMGTOOL_LPIPS_WEIGHTS names, and never downloaded.
"""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from imgtool.errors import DataError

VARIABLE = "IMGTOOL_LPIPS_WEIGHTS"
TRUNK = "vgg16-397923af.pth"
TRUNK_SHA256 = "397923af"  # it begins so, as the file's name says
SMALLEST = 16  # pixels of a side: four halvings
_LAYERS = Path(__file__).with_name("lpips_vgg.safetensors")
_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPS = 1e-10


class Lpips(nn.Module):
    """Distance of images (B, 3, H, W) on [-1, 1], at least SMALLEST pixels a side, to (B,).

    Features of VGG16 after the last activation of each block, of unit length over channels;
    squared differences, weighted by channel, averaged over space, added up over blocks.
    Nothing of it is trained. The trunk's names are torchvision's, without `features.`.
    """

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
            self.register_buffer(f"lin{k}", weights[f"lin{k}"])
        self.requires_grad_(requires_grad=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale = (x.new_tensor(v).view(1, 3, 1, 1) for v in (_SHIFT, _SCALE))
        both = (torch.cat([x, y]) - shift) / scale
        total = torch.zeros(len(x), device=x.device)
        begin = 0
        for k, end in enumerate(self.ends):
            both = self.trunk[begin:end](both)
            begin = end
            unit = both / (both.norm(dim=1, keepdim=True) + _EPS)
            first, second = unit.chunk(2)
            weighted = (first - second).square() * getattr(self, f"lin{k}").view(1, -1, 1, 1)
            total = total + weighted.sum(1).mean((1, 2))
        return total


@cache
def find_lpips(device: torch.device) -> Lpips | None:
    """LPIPS with its weights on a device; None where the trunk is not on this machine.

    Raises:
        DataError: the file that IMGTOOL_LPIPS_WEIGHTS names is missing, or is no such file.
    """
    given = os.environ.get(VARIABLE)
    path = Path(given) if given else Path(torch.hub.get_dir()) / "checkpoints" / TRUNK
    if not given and not path.is_file():
        return None
    hint = f"{VARIABLE} names torchvision's {TRUNK}"
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(TRUNK_SHA256):
            raise DataError(f"{path}: its SHA-256 is not that of {TRUNK}", hint=hint)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", hint=hint) from error
    lpips = Lpips()
    prefix = "features."
    trunk = {k.removeprefix(prefix): v for k, v in loaded.items() if k.startswith(prefix)}
    lpips.trunk.load_state_dict(trunk)
    return lpips.to(device).eval()


def perceptual_size(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) averaged down by a whole factor towards 256 pixels of the shorter side.

    As Karras et al. 2019 do before LPIPS, whose VGG was made for 224.
    """
    factor = min(images.shape[-2:]) // 256
    return F.avg_pool2d(images, factor) if factor > 1 else images
