"""What --real and --fake name: a folder of images, an array of them, or statistics."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imgtool.data.base import Image8, ImageDataset, Sample, Size
from imgtool.data.photos import PhotoFolder
from imgtool.data.views import View
from imgtool.errors import DataError
from imgtool.evaluation.fid.cache import Stored, read_array, read_statistics
from imgtool.evaluation.fid.features import OURS, PILLOW
from imgtool.evaluation.fid.options import ARRAY, Options, is_statistics

# What pytorch-fid takes of a folder, and of no folder below it.
_PEERS_SUFFIXES = frozenset(
    {".bmp", ".jpg", ".jpeg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


def open_source(path: Path, options: Options) -> ImageDataset | Stored:
    """Open either.

    Raises:
        DataError: it cannot be read.
    """
    if is_statistics(path):
        return read_statistics(path)
    if path.suffix == ".npz":
        return _resized(ArrayImages(path), options.image_size)
    peer = decoder_of(path, options) == PILLOW
    found = PeersFolder(path) if peer else PhotoFolder(path)
    return _resized(found, options.image_size)


def decoder_of(path: Path, options: Options) -> str:
    """Who decodes: as the other tool does, where its numbers are meant; arrays are decoded."""
    return OURS if path.suffix == ".npz" else options.decoder


def departures(path: Path, source: ImageDataset, options: Options) -> list[str]:
    """In what a measurement of this folder is not what the tool's would be that is meant."""
    if options.split is not None:  # of a protocol
        return [f"{options.protocol} means images of {options.split}, which is not checked"]
    if options.chosen_resize != "pytorch-fid" or path.suffix == ".npz":
        return []
    names = [Path(source.name(i)) for i in range(len(source))]
    passed_over = [file for file in path.iterdir() if file.suffix in (".pgm", ".ppm")]
    hidden = [
        file
        for file in path.iterdir()
        if file.name.startswith(".") and file.suffix in _PEERS_SUFFIXES
    ]
    found = {
        "images in folders below are taken": any(len(name.parts) > 1 for name in names),
        "suffixes in capitals are taken": any(name.suffix not in _PEERS_SUFFIXES for name in names),
        "pgm and ppm are passed over": bool(passed_over),
        "hidden files are passed over": bool(hidden),
        "images are first resized to --img-size": options.image_size is not None,
        f"{options.n} images are drawn of {len(names)}": options.n is not None
        and options.n < len(names),
    }
    return [text for text, holds in found.items() if holds]


class Squares(View):
    """A data set with every image resized to a square of one size, bicubic and antialiased."""

    def __init__(self, source: ImageDataset, side: int) -> None:
        super().__init__(source, range(len(source)))
        self._side = side

    def size(self, index: int) -> Size:
        """(H, W), equal."""
        return self._side, self._side


def _resized(source: ImageDataset, image_size: int | None) -> ImageDataset:
    return source if image_size is None else Squares(source, image_size)


class PeersFolder(PhotoFolder):
    """Images as `PIL.Image.open(path).convert("RGB")` gives them, as other tools read them.

    Transparency is dropped, EXIF orientation is not applied, and more than 8 bits become what
    Pillow makes of them.
    """

    def size(self, index: int) -> Size:
        """(H, W) as the file's pixels lie."""
        try:
            with Image.open(self.path(index)) as image:
                return image.height, image.width
        except Exception as error:
            raise DataError(f"{self.path(index)}: {error}") from error

    def read(self, index: int) -> Sample:
        """Decode one image.

        Raises:
            DataError: Pillow cannot.
        """
        try:
            with Image.open(self.path(index)) as image:
                pixels = np.asarray(image.convert("RGB"))
        except Exception as error:  # a damaged file makes decoders raise nearly anything
            raise DataError(f"{self.path(index)}: {error}") from error
        return Sample(pixels, None, None, self.name(index))


class ArrayImages:
    """Images of one .npz, all in memory: `arr_0` (N, H, W, 3) uint8, as samplers write them.

    Raises:
        DataError: it cannot be read, or holds something else.
    """

    decoded = True
    targets: frozenset[str] = frozenset()
    mask_names: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        self._images: Image8 = read_array(path, ARRAY)
        shape = self._images.shape
        if self._images.dtype != np.uint8 or shape[3] != 3 or min(shape) < 1:
            raise DataError(
                f"{path}: {ARRAY} is {self._images.dtype} of shape {shape}",
                hint="give (N, H, W, 3) uint8, RGB",
            )
        self.fingerprint = _hash(self._images)

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        """Its number."""
        return str(index)

    def group(self, index: int) -> str:
        """The image itself."""
        return str(index)

    def num_bytes(self, index: int) -> int:
        """Of its pixels."""
        return self._images[index].nbytes

    def content_hash(self, index: int) -> str:
        """BLAKE2b of its pixels."""
        return _hash(self._images[index])

    def size(self, index: int) -> Size:
        """(H, W) of all."""
        return self._images.shape[1], self._images.shape[2]

    def read(self, index: int) -> Sample:
        """One image."""
        return Sample(self._images[index], None, None, self.name(index))


def _hash(pixels: Image8) -> str:
    data: Any = np.ascontiguousarray(pixels)
    return hashlib.blake2b(data, digest_size=16).hexdigest()
