"""What a set of images is, whatever its files look like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Image8 = NDArray[np.uint8]
IGNORE = 255  # mask value of a pixel that belongs to no class
Size = tuple[int, int]  # (H, W)
Label = int | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One decoded image. Its arrays are shared: read them, never write into them.

    Attributes:
        image: (H, W, 3) uint8 RGB, 0..255.
        mask: (H, W) uint8 class numbers, 255 where ignored; None without segmentation targets.
        label: class of the whole image, or 1 or 0 for each of its data set's `label_names` where
            the targets are `labels`; None without.
        name: unique in its data set.
    """

    image: Image8
    mask: Image8 | None
    label: Label | None
    name: str


@dataclass(frozen=True, slots=True)
class BadFile:
    """A file that cannot be used, and why.

    Attributes:
        name: as in the data set.
        reason: what is wrong, for people.
        line: of the manifest; None without one.
    """

    name: str
    reason: str
    line: int | None = None


class ImageDataset(Protocol):
    """Images by position. Every method that touches a file raises DataError naming it.

    Attributes:
        fingerprint: hash of what is in the set, wherever it lies.
        targets: which of `mask` and `label` its samples carry; `labels` where several classes of
            `label_names` may hold at once.
        mask_names, label_names: the classes, by number.
        palette: RGB of each mask class, 0..255.
        decoded: True when read() costs no decoding.
    """

    @property
    def fingerprint(self) -> str: ...
    @property
    def targets(self) -> frozenset[str]: ...
    @property
    def mask_names(self) -> tuple[str, ...]: ...
    @property
    def label_names(self) -> tuple[str, ...]: ...
    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]: ...
    @property
    def decoded(self) -> bool: ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Unique name of an image."""

    def group(self, index: int) -> str:
        """What must stay on one side of a split: the scene, or the photo itself."""

    def num_bytes(self, index: int) -> int:
        """Length of the image's file; only files of equal length can be duplicates."""

    def content_hash(self, index: int) -> str:
        """Hash of the image's file, which is read for it."""

    def size(self, index: int) -> Size:
        """(H, W) as read() gives it, without decoding."""

    def read(self, index: int) -> Sample:
        """Decode one image."""


@dataclass(frozen=True, kw_only=True)
class LatentInfo:
    """What a family may know of latents that it learns from.

    Attributes:
        shape: (C, h, w) of each.
        mean, std: of each channel, over all positions of the training images.
        has_logvar: whether batches have the posterior's log variance too.
        downsampling: pixels of an image that a latent pixel stands for.
        autoencoder: what made them and decodes them: path, hash and more, as the file says.
    """

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    has_logvar: bool
    downsampling: int
    autoencoder: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """What a family may know of its data.

    Attributes:
        targets: which of `mask` and `label` the batches carry, or `labels`, as ImageDataset's.
        image_size: (H, W) of a training image, or of one that a latent decodes to; None where images keep their own sizes.
        mask_names, label_names: the classes, by number.
        palette: RGB of each mask class, 0..255.
        num_train_images: images in the training part.
        pyramid: sizes of the pyramids that batches hold, of two images for each one of the batch
            size (with an attribute and without); empty for plain images.
        label_shares: part of the training images that each of several labels holds of; empty
            where the data have none such, or have not been looked at.
        latents: what batches hold instead of images; None where they hold images.
    """

    targets: frozenset[str]
    image_size: Size | None
    num_train_images: int
    mask_names: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    pyramid: tuple[int, ...] = ()
    label_shares: tuple[float, ...] = ()
    latents: LatentInfo | None = None
