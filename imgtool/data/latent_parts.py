"""Latents as data to train on: a file's parts, and how batches of them are filled."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imgtool.config.latents import LatentsData
from imgtool.data.base import DataInfo, LatentInfo, Sample, Size
from imgtool.data.latents import LatentsFile
from imgtool.data.palette import LABEL_NAMES, MASK_NAMES, PALETTE
from imgtool.data.rows import Contents, valid_of
from imgtool.data.sampler import Draw, random_words
from imgtool.data.split import Split, some_of
from imgtool.data.views import View
from imgtool.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from imgtool.config.schema import Data

PART_NAMES = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class LatentSample:
    """One image's latents, which nobody has read yet.

    Attributes:
        index: position in the file.
        label: class of the whole image; None without.
        name: unique in the file.
    """

    file: LatentsFile
    index: int
    label: int | None
    name: str


class LatentSet:
    """A latents file as a set of images, which nothing reads as pixels."""

    decoded = True

    def __init__(self, path: str | Path) -> None:
        self.file = LatentsFile(path)
        self.fingerprint = self.file.fingerprint
        kinds = {"mask": self.file.has_mask, "label": self.file.has_label}
        self.targets = frozenset(kind for kind, there in kinds.items() if there)
        self.mask_names, self.label_names = self.file.mask_names, self.file.label_names
        self.palette = self.file.palette

    def __len__(self) -> int:
        return len(self.file)

    def name(self, index: int) -> str:
        """Name of the image that was encoded."""
        return self.file.names[index]

    def group(self, index: int) -> str:
        """What must stay on one side of a split."""
        return self.file.groups[index]

    def num_bytes(self, index: int) -> int:
        """Of a latent."""
        return 4 * math.prod(self.file.shape)

    def content_hash(self, index: int) -> str:
        """Hash of a latent."""
        values = np.ascontiguousarray(self.file.mean(index)).data
        return hashlib.blake2b(values, digest_size=16).hexdigest()

    def size(self, index: int) -> Size:
        """(H, W) of the image that a latent stands for: what a batch of them costs goes by it."""
        return self.file.image_size

    def read(self, index: int) -> Sample:
        """There are no pixels here."""
        raise DataError(f"{self.file.path} holds latents, and images are wanted")


class LatentPart(View):
    """Some latents of a file."""

    def __init__(self, source: LatentSet, indices: Sequence[int], flips: bool) -> None:
        super().__init__(source, indices)
        self.latents, self.flips = source, flips

    def of(self, indices: Sequence[int]) -> LatentPart:
        """Other latents of the same file."""
        return LatentPart(self.latents, indices, self.flips)

    def training_row(self, data: Data, seed: int) -> LatentRow:
        """How a row of a training batch is filled."""
        return LatentRow(self.latents.file, seed if self.flips else None)

    def evaluation_row(self) -> WholeLatentRow:
        """How a row of an evaluation's batch is filled."""
        return WholeLatentRow(self.latents.file)

    def read(self, index: int) -> LatentSample:  # type: ignore[override]
        """One image's latents."""
        at, file = int(self.indices[index]), self.latents.file
        label = int(file.label(at)) if file.has_label else None
        return LatentSample(file, at, label, file.names[at])


class LatentRow:
    """Of training: `latent`, and `logvar` and `mask` where the file has them.

    Args:
        file: which it is of.
        flip_seed: half of the draws take the latents of the flipped image; None flips none.
    """

    def __init__(self, file: LatentsFile, flip_seed: int | None) -> None:
        self.file, self.flip_seed = file, flip_seed

    def contents(self, dataset: Any, draws: Sequence[Any]) -> Contents:
        """A latent, not normalised."""
        contents: Contents = {"latent": ("float32", self.file.shape)}
        if self.file.has_logvar:
            contents["logvar"] = ("float32", self.file.shape)
        if self.file.has_mask:
            contents["mask"] = ("uint8", self.file.shape[1:])
        return contents

    def index(self, draw: Draw) -> int:
        """Position of a draw's image."""
        return draw.index

    def fill(self, draw: Draw, sample: LatentSample, row: Mapping[str, Tensor]) -> None:
        """Write an image's latents into its row."""
        coin = self.flip_seed is not None and random_words(self.flip_seed, draw)[2] & 1
        write(sample, row, flipped=bool(coin))

    def extra(self, draws: Sequence[Draw]) -> dict[str, Tensor]:
        """Nothing besides."""
        return {}


class WholeLatentRow(LatentRow):
    """Of evaluation. A draw is (position, whether it counts)."""

    def __init__(self, file: LatentsFile) -> None:
        super().__init__(file, None)

    def index(self, draw: Any) -> int:
        """Position of a draw's image."""
        return int(draw[0])

    def fill(self, draw: Any, sample: LatentSample, row: Mapping[str, Tensor]) -> None:
        """Write an image's latents into its row."""
        write(sample, row, flipped=False)

    def extra(self, draws: Sequence[Any]) -> dict[str, Tensor]:
        """valid (B,) bool."""
        return valid_of(draws)


def write(sample: LatentSample, row: Mapping[str, Tensor], *, flipped: bool) -> None:
    """Copy what a row holds out of the file."""
    file = sample.file
    read: dict[str, Any] = {"latent": file.mean, "logvar": file.logvar, "mask": file.mask}
    for name, tensor in row.items():
        np.copyto(tensor.numpy(), read[name](sample.index, flipped=flipped))


# --- opening --------------------------------------------------------------------------------


@dataclass(frozen=True)
class LatentParts:
    """A latents file's parts, opened."""

    train: LatentPart
    val: LatentPart
    test: LatentPart
    split: Split
    fingerprint: str
    info: DataInfo


def open_latents(data: LatentsData, split: Split | None) -> LatentParts:
    """The parts that the file says, or those of a split.

    Raises:
        ConfigError: no file is named, or flips are wanted that it lacks.
        DataError: it cannot be used.
    """
    if data.root is None:
        raise ConfigError(
            "data.root is not set", hint="--data-root names a file that `imgtool encode` wrote"
        )
    source = LatentSet(data.root)
    file = source.file
    if data.flip == "horizontal" and not file.has_flipped:
        raise ConfigError(
            f"{data.root} has no latents of flipped images (data.flip is horizontal)",
            hint="`imgtool encode --flips` stores them",
        )
    if split is None:
        split = _own_split(source, data)
    flips = file.has_flipped and data.flip != "none"
    position_of = {name: number for number, name in enumerate(file.names)}
    parts = {}
    for name in PART_NAMES:
        wanted = getattr(split, name)
        missing = [each for each in wanted if each not in position_of]
        if missing:
            raise DataError(
                f"{data.root}: {missing[0]!r} is in the split's {name} part and not in the file",
                hint="the file has changed since the split was drawn",
            )
        parts[name] = LatentPart(source, [position_of[each] for each in wanted], flips)
    info = _info(source, data, len(parts["train"]))
    return LatentParts(**parts, split=split, fingerprint=file.fingerprint, info=info)


def _own_split(source: LatentSet, data: LatentsData) -> Split:
    """The file's; of at most `max_images` each part keeps its share, one image at least."""
    file, limit = source.file, data.max_images
    names = {}
    for part in PART_NAMES:
        rows = file.rows_of(part).tolist()
        if limit is not None and limit < len(file) and rows:
            rows = some_of(rows, max(1, round(limit * len(rows) / len(file))), data.split_seed)
        names[part] = [file.names[row] for row in rows]
    if not names["train"]:
        raise DataError(f"{file.path} has no training images", hint="encode data that has some")
    return Split(**names, duplicates=[], seed=data.split_seed)


def _info(source: LatentSet, data: LatentsData, num_train_images: int) -> DataInfo:
    file = source.file
    autoencoder = file.autoencoder
    if data.autoencoder_ckpt is not None:
        autoencoder = replace(autoencoder, path=data.autoencoder_ckpt)
    return DataInfo(
        targets=source.targets,
        image_size=file.image_size,
        num_train_images=num_train_images,
        mask_names=source.mask_names,
        label_names=source.label_names,
        palette=source.palette,
        latents=LatentInfo(
            shape=file.shape,
            mean=tuple(file.channel_mean.tolist()),
            std=tuple(file.channel_std.tolist()),
            has_logvar=file.has_logvar,
            downsampling=autoencoder.downsampling,
            autoencoder=asdict(autoencoder),
        ),
    )


def expected_latents(data: LatentsData) -> DataInfo | None:
    """Nothing is known before a file is named; conditions are taken to be those of layouts."""
    if data.root:
        return None
    return DataInfo(
        targets=frozenset(("mask", "label")),
        image_size=None,
        num_train_images=0,
        mask_names=MASK_NAMES,
        label_names=LABEL_NAMES,
        palette=PALETTE,
    )
