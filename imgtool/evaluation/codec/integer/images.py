"""The images that integers are calibrated with: a folder's, or those that a model was trained on."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imgtool.data.base import ImageDataset
from imgtool.data.datasets import open_datasets
from imgtool.data.photos import PhotoFolder
from imgtool.data.split import Split
from imgtool.errors import ConfigError, DataError, UsageError
from imgtool.experiment.layout import ExperimentDir
from imgtool.training.opening import read_trained

MAX_IMAGES = 16
MAX_SIZE = (512, 768)  # of what is seen of one, its middle


@dataclass(frozen=True)
class Calibration:
    """Images, evenly spaced over a data set.

    Attributes:
        images: uint8 (3, H, W).
        named: their folder or file, names and checksums of what is seen of them.
    """

    images: list[Tensor]
    named: dict[str, Any]


def of_folder(folder: Path) -> Calibration:
    """Those of a folder.

    Raises:
        DataError: it has none, or one cannot be read.
    """
    try:
        return _taken(PhotoFolder(folder), folder.absolute())
    except DataError as error:
        raise DataError(str(error), hint="--calibrate names a folder of images") from error


def of_training(checkpoint: Path) -> Calibration:
    """Those that a checkpoint was trained on.

    Raises:
        UsageError: they are not where they were.
    """
    data = read_trained(checkpoint).experiment.data
    root = getattr(data, data.source_key)
    kept = ExperimentDir(checkpoint.parent.parent).split_path
    try:
        split = Split.read(kept) if kept.exists() else None
        train = open_datasets(data, split=split, training=False).train
        return _taken(train, Path(str(root)).absolute())
    except (DataError, ConfigError) as error:
        raise UsageError(
            f"integers are calibrated with the training images, and they cannot be used: {error}",
            hint="--calibrate DIR names a folder of like images",
        ) from error


def _taken(images: ImageDataset, place: Path) -> Calibration:
    num = min(len(images), MAX_IMAGES)
    indices = [i * len(images) // num for i in range(num)]
    found = [_middle(images, index) for index in indices]
    rows = [
        {"name": images.name(index), "crc32": zlib.crc32(image.numpy().data)}
        for index, image in zip(indices, found, strict=True)
    ]
    return Calibration(found, {"data": str(place), "images": rows})


def _middle(images: ImageDataset, index: int) -> Tensor:
    pixels = torch.from_numpy(images.read(index).image.copy())
    height, width, _ = pixels.shape
    high, wide = sorted(MAX_SIZE) if height <= width else sorted(MAX_SIZE, reverse=True)
    top, left = max(0, (height - high) // 2), max(0, (width - wide) // 2)
    return pixels[top : top + high, left : left + wide].permute(2, 0, 1).contiguous()
