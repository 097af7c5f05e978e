"""Crops and flips, as a function of the draw alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from imgtool.config.schema import Data
from imgtool.data.base import ImageDataset, Sample, Size
from imgtool.data.sampler import Draw, random_words
from imgtool.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

Flip = Literal["none", "horizontal", "both", "dihedral"]


@dataclass(frozen=True, slots=True)
class Choice:
    """What is done to one image.

    Attributes:
        top, left: of the crop, in pixels.
        turn: swap rows and columns.
        dims: axes (0 rows, 1 columns) that are mirrored, after the turn.
    """

    top: int
    left: int
    turn: bool
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Random crops and flips.

    Attributes:
        seed: of the training.
        flip: horizontal; horizontal and vertical (`both`); or all eight symmetries of the square
            (`dihedral`; the four that keep the shape where height and width differ).
    """

    seed: int
    flip: Flip

    @classmethod
    def of(cls, data: Data, dataset: ImageDataset, seed: int) -> Augmentation:
        """As the config says; `auto` flips photos horizontally and layouts not at all."""
        if data.flip != "auto":
            return cls(seed, data.flip)
        return cls(seed, "none" if "mask" in dataset.targets else "horizontal")

    def choose(self, draw: Draw, sample: Sample, size: Size) -> Choice:
        """The crop of (H, W) pixels and the flips of one draw."""
        down, across, coin, _ = random_words(self.seed, draw)
        height, width = sample.image.shape[:2]
        top = down * (height - size[0] + 1) >> 64
        left = across * (width - size[1] + 1) >> 64
        if self.flip == "none":
            return Choice(top, left, False, ())
        if self.flip == "horizontal":
            return Choice(top, left, False, (1,) if coin & 1 else ())
        dims = tuple(axis for axis in (0, 1) if coin >> axis & 1)
        turn = self.flip == "dihedral" and bool(coin & 4) and size[0] == size[1]
        return Choice(top, left, turn, dims)


def place(sample: Sample, choice: Choice | None, image: Tensor, mask: Tensor | None) -> None:
    """Write a sample into its row of a batch; the whole of it where choice is None.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) uint8, or None.
    """
    _copy(sample.image, choice, image)
    if mask is not None and sample.mask is not None:
        _copy(sample.mask, choice, mask)


def _copy(pixels: np.ndarray, choice: Choice | None, row: Tensor) -> None:
    out = row.numpy()
    if choice is None:
        np.copyto(out, pixels)
        return
    height, width = row.shape[:2]
    crop = pixels[choice.top : choice.top + height, choice.left : choice.left + width]
    np.copyto(out, crop.swapaxes(0, 1) if choice.turn else crop)
    if choice.dims:
        import torch

        row.copy_(torch.flip(row, choice.dims))  # eight times quicker than numpy's strides


def training_size(dataset: ImageDataset, crop: int | None) -> Size:
    """(H, W) of every training image.

    Raises:
        DataError: an image is smaller than the crop, or sizes differ and nothing is cropped.
    """
    if len(dataset) == 0:
        raise DataError("there are no images to train on")
    first = dataset.size(0)
    for index in range(len(dataset)):
        height, width = dataset.size(index)
        if crop is not None and min(height, width) < crop:
            raise DataError(
                f"{dataset.name(index)} has {width}x{height} pixels, the crop {crop}x{crop}",
                hint="a smaller --crop, or --image-size to enlarge small images first",
            )
        if crop is None and (height, width) != first:
            raise DataError(
                f"training images differ in size: {dataset.name(0)} has {first[1]}x{first[0]} "
                f"pixels, {dataset.name(index)} {width}x{height}",
                hint="--crop takes random crops of one size",
            )
    return first if crop is None else (crop, crop)
