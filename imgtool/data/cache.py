"""Decoded images kept in memory: one copy for all processes of a training on one machine."""

from __future__ import annotations

import mmap
import os
import re
import secrets
import weakref
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from imgtool.data.base import Image8, Label, Sample, Size
from imgtool.errors import DataError
from imgtool.units import format_bytes

Bytes = NDArray[np.uint8]
_NAME = "imgtool-cache-"


class Sharing(Protocol):
    """The processes of one training on one machine, as far as a cache needs them."""

    @property
    def is_first_here(self) -> bool:
        """True in one process of this machine, such as the one of local rank 0."""

    def from_first_here(self, text: str) -> str:
        """What the first process of this machine gives; the others' `text` is ignored.

        Every process of the machine calls it, as often as the others and in the same order.
        """


class RamCache:
    """Decoded samples in shared memory: one copy for all processes that have it.

    Two processes may decode the same image at the same time; they write the same bytes.

    Args:
        sizes: (H, W) of each image.
        memory: num_bytes() of it, zero where nobody has written.
        num_labels: of each image, where it has several; None for one class.
    """

    def __init__(
        self,
        sizes: Sequence[Size],
        memory: Bytes,
        *,
        with_masks: bool,
        num_labels: int | None = None,
    ) -> None:
        self._sizes = np.array(sizes, np.int64).reshape(-1, 2)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes.prod(axis=1))])
        num_images, num_pixels = len(sizes), int(self._starts[-1])
        self._has_several = num_labels is not None
        for_labels = 8 * (num_labels or 1) * num_images
        small, large = np.split(memory, [for_labels + num_images])
        self._labels = small[:for_labels].view(np.int64).reshape(num_images, num_labels or 1)
        self._filled = small[for_labels:]  # set last: what it guards is complete
        self._pixels = large[: 3 * num_pixels].reshape(num_pixels, 3)
        self._masks = large[3 * num_pixels : 4 * num_pixels] if with_masks else None

    @staticmethod
    def num_bytes(sizes: Sequence[Size], *, with_masks: bool, num_labels: int | None = None) -> int:
        """Memory that a cache of these images needs, a multiple of 8."""
        num_pixels = sum(height * width for height, width in sizes)
        small = (8 * (num_labels or 1) + 1) * len(sizes)
        return -(-(num_pixels * (4 if with_masks else 3) + small) // 8) * 8

    def get(self, index: int) -> tuple[Image8, Image8 | None, Label | None] | None:
        """Image, mask and label; None when nobody has put them yet."""
        if not self._filled[index]:
            return None
        labels = tuple(self._labels[index].tolist())
        image, mask = self._room(index)
        if self._has_several:
            return image, mask, labels
        return image, mask, None if labels[0] < 0 else labels[0]

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


# --- memory ---------------------------------------------------------------------------------


def shared_memory(num_bytes: int, share: Sharing | None) -> tuple[Bytes, str | None]:
    """Zeroed memory that processes forked later share, and the others of `share` as well.

    It has no name in any file system and ends with its last process, however that ends. The
    first process makes a file in memory, which the others open through /proc: it is bounded by
    the machine's memory, not by /dev/shm.

    Returns:
        The memory, (num_bytes,) uint8, and why the others of `share` do not have it.

    Raises:
        DataError: there is not enough memory.
    """
    if share is None:
        return _anonymous(num_bytes), None
    made: Bytes | None = None
    text, trouble = "", "the first process could not make it"
    if share.is_first_here:
        try:
            _anonymous(num_bytes)  # the kernel refuses here what it will never have
            made, text = _create(num_bytes)
        except (DataError, OSError) as error:
            trouble = str(error)
    text = share.from_first_here(text)  # always: the others wait for it
    if made is None and text:
        try:
            made = _attach(text, num_bytes)
        except OSError as error:
            trouble = str(error)
    return (_anonymous(num_bytes), trouble) if made is None else (made, None)


def _anonymous(num_bytes: int) -> Bytes:
    try:
        return np.frombuffer(mmap.mmap(-1, num_bytes), np.uint8)
    except (OSError, ValueError, OverflowError) as error:
        raise DataError(
            f"{format_bytes(num_bytes)} of decoded images do not fit into memory",
            hint="--cache none, or `imgtool data pack`",
        ) from error


def _create(num_bytes: int) -> tuple[Bytes, str]:
    """Memory, and in words where others find it for as long as it is used here."""
    if not hasattr(os, "memfd_create"):
        raise OSError("this system has no files in memory")
    name = _NAME + secrets.token_hex(16)
    number = os.memfd_create(name)
    try:
        os.ftruncate(number, num_bytes)
        mapped = mmap.mmap(number, num_bytes)
    except BaseException:
        os.close(number)
        raise
    weakref.finalize(mapped, os.close, number)
    return np.frombuffer(mapped, np.uint8), f"/proc/{os.getpid()}/fd/{number} {name}"


def _attach(text: str, num_bytes: int) -> Bytes:
    """The memory of another process; OSError when there is none, or another's."""
    path, _, name = text.partition(" ")
    if not re.fullmatch(rf"/proc/\d+/fd/\d+ {_NAME}[0-9a-f]+", text, re.ASCII):
        raise OSError(f"{text!r} names no cache")
    found = os.readlink(path)  # the same number may be another process in this one's namespace
    if found.removesuffix(" (deleted)") != f"/memfd:{name}":
        raise OSError(f"{path} is {found}")
    number = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        size = os.fstat(number).st_size
        if size != num_bytes:
            raise OSError(f"{path} has {size} bytes instead of {num_bytes}")
        return np.frombuffer(mmap.mmap(number, num_bytes), np.uint8)
    finally:
        os.close(number)
