"""Images to features, by the network of any feature set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from imgtool.errors import DataError
from imgtool.evaluation.fid import dinov2, inception
from imgtool.evaluation.fid.features import FEATURE_SETS
from imgtool.evaluation.fid.resize import prepare
from imgtool.published import Weights

BATCH = 8  # images that go through the network together, always: sums depend on it at 1e-5


class Extractor:
    """Features of images: fp32 without TF32, no gradients.

    `side` is what images are resized to, pixels: another gives features that compare with none.

    Args:
        features: one of FEATURE_SETS.
        weights: as `find_weights` gives them.
        resize: one of the feature set's.

    Raises:
        DataError: the file holds no network of this kind.
    """

    def __init__(
        self, features: str, weights: Weights, *, resize: str, device: torch.device
    ) -> None:
        self.set = FEATURE_SETS[features]
        if resize not in self.set.resizes:
            raise ValueError(f"{features} with resize {resize}")
        self.features, self.weights, self.resize, self.device = features, weights, resize, device
        self.side, self.width = self.set.side, self.set.width
        self.network = self._made().eval().requires_grad_(False).to(device)
        if self._is_channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)

    def _made(self) -> nn.Module:
        made = _dinov2 if self.features == "dinov2" else _inception
        return made(self.features, self.weights.path)

    @property
    def _is_channels_last(self) -> bool:
        return self.set.layout == "channels_last"

    @property
    def settings(self) -> dict[str, Any]:
        """What has to agree before features are compared."""
        return {
            "features": self.features,
            "weights": self.weights.identity,
            "resize": self.resize,
            "dtype": "float32",
            "tf32": False,
            "layout": self.set.layout,
        }

    def prepare(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 on any device to what the network takes, on the extractor's."""
        with torch.inference_mode():
            return prepare(images.to(self.device), self.resize, self.side)

    def features_of(self, prepared: Tensor) -> Tensor:
        """At most BATCH prepared images, of which the rest is filled up, to (B, d) float32."""
        with torch.inference_mode(), _exact(self.device):
            x = prepared.new_zeros((BATCH, *prepared.shape[1:]))
            if self._is_channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            x[: len(prepared)] = prepared
            found: Tensor = self.network(x)
            return found[: len(prepared)].float().cpu()

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 on any device to (B, d) float32 on the CPU."""
        pieces = self.prepare(images).split(BATCH)
        return torch.cat([self.features_of(piece) for piece in pieces])


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """No autocast, and no TF32 in convolutions or products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class Gathering:
    """Features of images that come in pieces of any length, in batches that are always whole.

    What an image's features are depends on the order of the images alone.

    Args:
        count: images that will come.
    """

    def __init__(self, extractor: Extractor, count: int) -> None:
        self._extractor = extractor
        self._found = np.empty((count, extractor.width), np.float32)
        self._waiting: list[Tensor] = []
        self._places: list[int] = []

    def add(self, images: Tensor, places: Sequence[int]) -> None:
        """Take images (B, 3, H, W) uint8 whose features belong into these rows."""
        self._waiting += list(self._extractor.prepare(images))
        self._places += places
        while len(self._waiting) >= BATCH:
            self._flush()

    def finish(self) -> NDArray[np.float32]:
        """(count, d) float32."""
        if self._waiting:
            self._flush()
        return self._found

    def _flush(self) -> None:
        batch, places = torch.stack(self._waiting[:BATCH]), self._places[:BATCH]
        self._found[places] = self._extractor.features_of(batch).numpy()
        del self._waiting[:BATCH], self._places[:BATCH]


def _inception(features: str, path: Path | None) -> nn.Module:
    network = inception.make_network(features)
    if path is None:
        inception.fill_at_random(network)
    else:
        _load(network, path)
    network.fc = nn.Identity()  # type: ignore[assignment]
    network.AuxLogits = None
    return network


def _dinov2(features: str, path: Path | None) -> nn.Module:
    network = dinov2.make_network()
    if path is None:
        dinov2.fill_at_random(network)
    else:
        _load(network, path)
    return network


def _load(network: nn.Module, path: Path) -> None:
    try:
        # mmap would need the newer zip form, which Inception's published file does not have.
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
