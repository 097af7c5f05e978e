"""The Inception v3 of FID, on torchvision's blocks, and torchvision's own.

FID's network (TensorFlow's of 2015) differs from torchvision's: average pools leave the padding
out of their count, the last block pools the maximum, and there are 1008 classes. The feature is
the mean of the last block over its 8 x 8 positions: 2048 numbers, none negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
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

from imgtool.errors import DataError
from imgtool.evaluation.fid.options import FID_RESIZES, IMAGENET_RESIZE
from imgtool.evaluation.fid.resize import SIDE, prepare
from imgtool.published import Weights

NUM_FEATURES = 2048
FEATURE_SETS = ("inception-fid", "inception-imagenet")
BATCH = 8  # images that go through the network together, always: sums depend on it at 1e-5
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
        self.is_last = in_channels == NUM_FEATURES  # Mixed_7c follows Mixed_7b's 2048 channels

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


class Extractor:
    """Features of images: fp32 without TF32, channels_last, no gradients.

    `side` is what images are resized to, pixels: another gives features that compare with none.

    Args:
        features: one of FEATURE_SETS.
        weights: as `find_weights` gives them.
        resize: as `prepare`; `imagenet` goes with inception-imagenet alone.

    Raises:
        DataError: the file is no Inception of this kind.
    """

    side = SIDE

    def __init__(
        self, features: str, weights: Weights, *, resize: str, device: torch.device
    ) -> None:
        allowed = FID_RESIZES if features == "inception-fid" else (IMAGENET_RESIZE,)
        if resize not in allowed:
            raise ValueError(f"{features} with resize {resize}")
        self.features, self.weights, self.resize, self.device = features, weights, resize, device
        network = make_network(features)
        if weights.path is None:
            _fill_at_random(network)
        else:
            _load(network, weights.path)
        network.fc = nn.Identity()  # type: ignore[assignment]
        network.AuxLogits = None
        network = network.eval().requires_grad_(False).to(device)
        self.network = network.to(memory_format=torch.channels_last)

    @property
    def settings(self) -> dict[str, Any]:
        """What has to agree before features are compared."""
        return {
            "features": self.features,
            "weights": self.weights.identity,
            "resize": self.resize,
            "dtype": "float32",
            "tf32": False,
            "layout": "channels_last",
        }

    def prepare(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 on any device to what the network takes, on the extractor's."""
        with torch.inference_mode():
            return prepare(images.to(self.device), self.resize, self.side)

    def features_of(self, prepared: Tensor) -> Tensor:
        """At most BATCH prepared images, of which the rest is filled up, to (B, 2048) float32."""
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False),
        ):
            x = prepared.new_zeros((BATCH, *prepared.shape[1:]))
            x = x.contiguous(memory_format=torch.channels_last)
            x[: len(prepared)] = prepared
            return self.network(x)[: len(prepared)].float().cpu()

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 on any device to (B, 2048) float32 on the CPU."""
        pieces = self.prepare(images).split(BATCH)
        return torch.cat([self.features_of(piece) for piece in pieces])


class Gathering:
    """Features of images that come in pieces of any length, in batches that are always whole.

    What an image's features are depends on the order of the images alone.

    Args:
        count: images that will come.
    """

    def __init__(self, extractor: Extractor, count: int) -> None:
        self._extractor = extractor
        self._found = np.empty((count, NUM_FEATURES), np.float32)
        self._waiting: list[Tensor] = []
        self._places: list[int] = []

    def add(self, images: Tensor, places: Sequence[int]) -> None:
        """Take images (B, 3, H, W) uint8 whose features belong into these rows."""
        self._waiting += list(self._extractor.prepare(images))
        self._places += places
        while len(self._waiting) >= BATCH:
            self._flush()

    def finish(self) -> NDArray[np.float32]:
        """(count, 2048) float32."""
        if self._waiting:
            self._flush()
        return self._found

    def _flush(self) -> None:
        batch, places = torch.stack(self._waiting[:BATCH]), self._places[:BATCH]
        self._found[places] = self._extractor.features_of(batch).numpy()
        del self._waiting[:BATCH], self._places[:BATCH]


def _load(network: Inception3, path: Path) -> None:
    try:
        # mmap would need the newer zip form, which the published file does not have.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
        _refuse_odd(state)
        network.load_state_dict(state, strict=True, assign=True)
    except Exception as error:  # a damaged file makes torch raise nearly anything
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path} holds no weights that fit: {reason}", hint="give the published file"
        ) from error


def _refuse_odd(state: dict[str, Tensor]) -> None:
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        if tensor.dtype != torch.float32:
            raise ValueError(
                f"{name} is of {str(tensor.dtype).removeprefix('torch.')}, not float32"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} has values that are not finite")


def _smooth_image(grid: int, generator: torch.Generator) -> Tensor:
    """(1, 3, SIDE, SIDE), 0..255: a few random colours, of a brightness and contrast of its own."""
    mean, contrast = torch.rand(2, generator=generator).tolist()
    coarse = mean + contrast * (torch.rand(1, 3, grid, grid, generator=generator) - 0.5)
    return (F.interpolate(coarse, (SIDE, SIDE), mode="bilinear") * 255).clamp(0, 255)


def _fill_at_random(network: Inception3, seed: int = RANDOM_SEED) -> None:
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
