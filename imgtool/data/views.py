"""Parts of a data set, resized, and kept in memory once they have been decoded."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence

import numpy as np

from imgtool.config.schema import Data
from imgtool.data.augment import Augmentation, training_size
from imgtool.data.base import Image8, ImageDataset, Sample, Size
from imgtool.data.images import resize_sample, resized_size
from imgtool.data.rows import CroppedRow, Row
from imgtool.data.sampler import Draw, EpochSampler
from imgtool.errors import DataError
from imgtool.units import format_bytes


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

    def sampler(
        self, batch_size: int, seed: int, rank: int, world_size: int, start_batch: int
    ) -> Iterable[list[Draw]]:
        """Endless training batches of one process, from `start_batch` on."""
        return EpochSampler(len(self), batch_size, seed, rank, world_size, start_batch)

    @property
    def decoded_bytes(self) -> int:
        """Memory that all images and masks together need."""
        channels = 4 if "mask" in self.targets else 3
        sizes = (self.size(i) for i in range(len(self)))
        return sum(height * width * channels for height, width in sizes)

    def keep_in_memory(self) -> None:
        """Decode each image once from now on; processes forked later share what is kept.

        Raises:
            DataError: there is not enough memory.
        """
        if len(self):
            sizes = [self.size(i) for i in range(len(self))]
            self._cache = RamCache(sizes, with_masks="mask" in self.targets)

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


class RamCache:
    """Decoded samples in anonymous shared memory: one copy for all processes forked later.

    Two processes may decode the same image at the same time; they write the same bytes.
    """

    def __init__(self, sizes: Sequence[Size], *, with_masks: bool) -> None:
        self._sizes = np.array(sizes, np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes.prod(axis=1))])
        num_images, num_pixels = len(sizes), int(self._starts[-1])
        num_bytes = num_pixels * (4 if with_masks else 3)
        try:
            memory = np.frombuffer(mmap.mmap(-1, num_bytes), np.uint8)
            small = np.frombuffer(mmap.mmap(-1, 9 * num_images), np.uint8)
        except (OSError, ValueError, OverflowError) as error:
            raise DataError(
                f"{format_bytes(num_bytes)} of decoded images do not fit into memory",
                hint="--cache none, or `imgtool data pack`",
            ) from error
        self._pixels = memory[: 3 * num_pixels].reshape(num_pixels, 3)
        self._masks = memory[3 * num_pixels :] if with_masks else None
        self._labels = small[: 8 * num_images].view(np.int64)
        self._filled = small[8 * num_images :]  # set last: what it guards is complete

    def get(self, index: int) -> tuple[Image8, Image8 | None, int | None] | None:
        """Image, mask and label; None when nobody has put them yet."""
        if not self._filled[index]:
            return None
        label = int(self._labels[index])
        image, mask = self._room(index)
        return image, mask, None if label < 0 else label

    def put(self, index: int, sample: Sample) -> None:
        """Keep a copy of a sample."""
        image, mask = self._room(index)
        image[...] = sample.image
        if mask is not None and sample.mask is not None:
            mask[...] = sample.mask
        self._labels[index] = -1 if sample.label is None else sample.label
        self._filled[index] = 1

    def _room(self, index: int) -> tuple[Image8, Image8 | None]:
        begin, end = self._starts[index], self._starts[index + 1]
        height, width = self._sizes[index]
        image = self._pixels[begin:end].reshape(height, width, 3)
        return image, None if self._masks is None else self._masks[begin:end].reshape(height, width)
