"""Parts of a data set, resized, and kept in memory once they have been decoded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imgtool.config.schema import Data
from imgtool.data.augment import Augmentation, training_size
from imgtool.data.base import ImageDataset, Sample, Size
from imgtool.data.cache import Bytes, RamCache
from imgtool.data.images import resize_sample, resized_size
from imgtool.data.rows import CroppedRow, Row, WholeRow
from imgtool.data.sampler import Draw, EpochSampler


class View:
    """Some images of a data set, in the order given.

    Args:
        source: the data set.
        indices: positions in it.
        image_size: resize to this many pixels of the shorter side; None keeps sizes.

    Attributes:
        num_sets: sets of images, of each of which a batch holds `batch_size`.
    """

    num_sets = 1

    def __init__(
        self, source: ImageDataset, indices: Sequence[int], *, image_size: int | None = None
    ) -> None:
        self.source, self.image_size = source, image_size
        self._indices = np.array(indices, np.int64)
        self._cache: RamCache | None = None
        self.fingerprint = source.fingerprint
        self.targets, self.palette = source.targets, source.palette
        self.mask_names, self.label_names = source.mask_names, source.label_names

    @property
    def indices(self) -> NDArray[np.int64]:
        """Positions in the data set."""
        return self._indices

    def of(self, indices: Sequence[int]) -> View:
        """Other images of the same data set, as a part of the same kind."""
        return View(self.source, indices, image_size=self.image_size)

    @property
    def decoded(self) -> bool:
        """Whether an image is decoded at most once."""
        return self._cache is not None or (self.source.decoded and self.image_size is None)

    @property
    def epoch_images(self) -> int:
        """Images one pass over which is an epoch."""
        return len(self)

    def training_row(self, data: Data, seed: int) -> Row:
        """How a row of a training batch is filled.

        Raises:
            DataError: images differ in size or are smaller than the crop.
        """
        size = training_size(self, data.crop)
        return CroppedRow(size, Augmentation.of(data, self, seed))

    def evaluation_row(self) -> Row:
        """How a row of an evaluation's batch is filled."""
        return WholeRow()

    def sampler(
        self, batch_size: int, seed: int, rank: int, world_size: int, start_batch: int
    ) -> Iterable[list[Draw]]:
        """Endless training batches of one process, from `start_batch` on."""
        return EpochSampler(len(self), batch_size, seed, rank, world_size, start_batch)

    def to_evaluate(self) -> View:
        """These images in the order in which they are evaluated on."""
        return self

    @property
    def decoded_bytes(self) -> int:
        """Memory that all images and masks together need."""
        channels = 4 if "mask" in self.targets else 3
        return sum(height * width * channels for height, width in self._sizes())

    @property
    def cache_bytes(self) -> int:
        """Memory that keep_in_memory() needs."""
        return RamCache.num_bytes(self._sizes(), **self._kept)

    def keep_in_memory(self, memory: Bytes) -> None:
        """Decode each image once from now on, for all processes that share the memory."""
        if len(self):
            self._cache = RamCache(self._sizes(), memory, **self._kept)

    @property
    def _kept(self) -> dict[str, Any]:
        """What a cache keeps of each image besides the image."""
        several = "labels" in self.targets
        return {
            "with_masks": "mask" in self.targets,
            "num_labels": len(self.label_names) if several else None,
        }

    def _sizes(self) -> list[Size]:
        return [self.size(index) for index in range(len(self))]

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, index: int) -> str:
        """Name of an image."""
        return self.source.name(int(self._indices[index]))

    def group(self, index: int) -> str:
        """Group of an image."""
        return self.source.group(int(self._indices[index]))

    def num_bytes(self, index: int) -> int:
        """Length of an image's file."""
        return self.source.num_bytes(int(self._indices[index]))

    def content_hash(self, index: int) -> str:
        """Hash of an image's file."""
        return self.source.content_hash(int(self._indices[index]))

    def size(self, index: int) -> Size:
        """(H, W) after resizing."""
        return resized_size(self.source.size(int(self._indices[index])), self.image_size)

    def read(self, index: int) -> Sample:
        """One image, resized.

        Raises:
            DataError: its file is bad.
        """
        kept = self._cache.get(index) if self._cache else None
        if kept is not None:
            return Sample(*kept, self.name(index))
        sample = resize_sample(self.source.read(int(self._indices[index])), self.size(index))
        if self._cache:
            self._cache.put(index, sample)
        return sample
