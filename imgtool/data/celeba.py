"""CelebA and what has its layout: faces, and a table of attributes that says what they show."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imgtool.data.base import Image8, Sample, Size
from imgtool.data.celeba_tables import (
    ATTRIBUTE_STEMS,
    PARTITION_STEMS,
    attributes_of,
    find_table,
    looked_for,
    read_attributes,
    read_partition,
    read_table,
)
from imgtool.data.imagefiles import examine
from imgtool.data.images import SUFFIXES, BadImage, decode
from imgtool.data.pyramid import pyramid_size
from imgtool.errors import DataError

IMAGE_FOLDERS = ("align_5p", "img_align_celeba/img_align_celeba", "img_align_celeba", "data", ".")
Labels = NDArray[np.int64]
_SIZED = 64  # files whose lengths the fingerprint covers


class FaceFolder(ABC):
    """The images that a table of attributes lists and that are there, in the table's order.

    No image is opened before it is read.

    Args:
        root: the folder; images are looked for in IMAGE_FOLDERS below it, and tables beside
            them (see celeba_tables.find_table).
        attribute_file: the table, where it lies elsewhere.
        skip_bad: decode every file now, and leave the bad ones out.

    Attributes:
        folder: where the images lie.
        missing: names that the table lists and the folder lacks.
        bad_files: names left out by skip_bad.
        fingerprint: hash of names, labels, and the lengths of some of the files: of what the
            data are, not of where they lie.

    Raises:
        UsageError: no such attribute.
        DataError: a table or the images are missing or cannot be used.
    """

    decoded = False
    targets: frozenset[str] = frozenset({"label"})
    mask_names: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()

    def __init__(
        self, root: str | Path, *, attribute_file: str | Path | None, skip_bad: bool
    ) -> None:
        self.root = Path(root)
        if not os.path.isdir(self.root):  # a Path raises of a name that is too long
            what = "not a folder" if os.path.exists(self.root) else "no such folder"
            raise DataError(
                f"{self.root}: {what}", hint="--data-root names a folder in CelebA's layout"
            )
        self.attribute_file = _attribute_file(self.root, attribute_file)
        names, labels = self._read_labels(self.attribute_file)
        self.folder, files = image_folder(self.root, names)
        self.missing = [name for name in names if name not in files]
        self._refuse_missing(names)
        there = [i for i, name in enumerate(names) if name in files]
        self._names = [names[i] for i in there]
        self._files = [files[name] for name in self._names]
        self._labels = labels[there]
        self.bad_files = self._leave_out_bad() if skip_bad else []
        self.fingerprint = self._fingerprint()

    @abstractmethod
    def _read_labels(self, path: Path) -> tuple[list[str], Labels]:
        """Names that the table lists, and what each is labelled with: (N,) or (N, A)."""

    @abstractmethod
    def _pixels(self, image: Image8) -> Image8:
        """A decoded image as read() gives it."""

    @abstractmethod
    def label(self, index: int) -> int | tuple[int, ...]:
        """What an image is labelled with."""

    @abstractmethod
    def size(self, index: int) -> Size:
        """(H, W) as read() gives it."""

    def partition(self) -> dict[str, int]:
        """CelebA's own parts by image name. Raises DataError when there is no such table."""
        path = find_table(self.root, PARTITION_STEMS)
        if path is None:
            raise DataError(
                f"{self.root}: no table of CelebA's own parts",
                hint=f"looked for {looked_for(self.root, PARTITION_STEMS)}",
            )
        return read_partition(path)

    def without_part(self) -> list[str]:
        """Names of images that partition() lacks, as where its table is cut short."""
        parts = self.partition()
        return [name for name in self._names if name not in parts]

    def _refuse_missing(self, names: list[str]) -> None:
        if 2 * len(self.missing) <= len(names):
            return
        kind = "all" if len(self.missing) == len(names) else "more than half"
        folders = ", ".join(IMAGE_FOLDERS[:-1])
        raise DataError(
            f"{self.folder}: {kind} of the {len(names)} images of {self.attribute_file} are "
            f"missing ({len(self.missing)}; the first is {self.missing[0]})",
            hint=f"images are looked for in {folders} and the folder itself of --data-root",
        )

    def _leave_out_bad(self) -> list[str]:
        found = examine([self.path(i) for i in range(len(self))], verify=True)
        good = [i for i, result in enumerate(found) if not isinstance(result, BadImage)]
        bad = [self._names[i] for i, result in enumerate(found) if isinstance(result, BadImage)]
        if not good:
            raise DataError(f"{self.folder}: none of its {len(found)} images can be used")
        self._names = [self._names[i] for i in good]
        self._files = [self._files[i] for i in good]
        self._labels = self._labels[good]
        return bad

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """Name of an image, as in the table."""
        return self._names[index]

    def group(self, index: int) -> str:
        """What must stay on one side of a split: the image itself."""
        return self._names[index]

    def path(self, index: int) -> str:
        """Where an image lies."""
        return os.path.join(self.folder, self._files[index])

    def num_bytes(self, index: int) -> int:
        """Length of an image's file. Raises DataError."""
        try:
            return os.stat(self.path(index)).st_size
        except OSError as error:
            raise self._error(index, error.strerror or str(error)) from error

    def content_hash(self, index: int) -> str:
        """BLAKE2b of the file, 32 hexadecimal digits. Raises DataError."""
        try:
            with open(self.path(index), "rb") as stream:
                return hashlib.file_digest(stream, _blake2b).hexdigest()
        except OSError as error:
            raise self._error(index, error.strerror or str(error)) from error

    def read(self, index: int) -> Sample:
        """Decode one image once, and resize the whole of it.

        Raises:
            DataError: its file is bad; names it.
        """
        try:
            image, _ = decode(self.path(index))
        except BadImage as error:
            raise self._error(index, error.reason) from error
        return Sample(self._pixels(image), None, self.label(index), self.name(index))

    def _error(self, index: int, reason: str) -> DataError:
        return DataError(
            f"{self.path(index)}: {reason.lower()}",
            hint="mend or remove it; --skip-bad leaves out all that cannot be read",
        )

    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        labels = self._labels.reshape(len(self), -1).tolist()
        for name, values in sorted(zip(self._names, labels, strict=True)):
            label = " ".join(map(str, values))
            digest.update(f"{name}\0{label}\n".encode("utf-8", "surrogateescape"))
        # Aligned anew, images keep their names: a few lengths tell such data apart.
        order = sorted(range(len(self)), key=self._names.__getitem__)
        for index in order[:: max(1, len(self) // _SIZED)]:
            digest.update(b"%d\n" % self.num_bytes(index))
        return digest.hexdigest()


class CelebA(FaceFolder):
    """Faces with and without one attribute.

    Args:
        root, attribute_file, skip_bad: as a FaceFolder's.
        attribute: one of the table's names. An image's label is 1 where it holds, 0 elsewhere.
        image_sizes: squares that read() gives, as a pyramid.

    Attributes:
        positives, negatives: positions of the images with and without the attribute, int64.
    """

    def __init__(
        self,
        root: str | Path,
        attribute: str,
        *,
        image_sizes: Sequence[int],
        attribute_file: str | Path | None = None,
        skip_bad: bool = False,
    ) -> None:
        self.attribute, self.image_sizes = attribute, tuple(image_sizes)
        self.label_names = (f"without {attribute}", f"with {attribute}")
        super().__init__(root, attribute_file=attribute_file, skip_bad=skip_bad)
        self.positives = np.flatnonzero(self._labels == 1).astype(np.int64)
        self.negatives = np.flatnonzero(self._labels == 0).astype(np.int64)

    def _read_labels(self, path: Path) -> tuple[list[str], Labels]:
        return read_attributes(path, self.attribute)

    def label(self, index: int) -> int:
        """1 with the attribute, 0 without."""
        return int(self._labels[index])

    def size(self, index: int) -> Size:
        """(P, 1): rows of the pyramid."""
        return pyramid_size(self.image_sizes)

    def _pixels(self, image: Image8) -> Image8:
        return resize_squares(image, self.image_sizes)


class LabelledFaces(FaceFolder):
    """Faces with several attributes each, as squares of one size.

    Args:
        root, attribute_file, skip_bad: as a FaceFolder's.
        attributes: of the table's names; none are all of them.
        image_size: pixels of the square's side.

    Attributes:
        label_names: the attributes.
        labels: (N, A) int64, 1 where one holds, 0 elsewhere.
    """

    targets = frozenset({"labels"})

    def __init__(
        self,
        root: str | Path,
        attributes: Sequence[str] = (),
        *,
        image_size: int,
        attribute_file: str | Path | None = None,
        skip_bad: bool = False,
    ) -> None:
        self.label_names, self.image_size = tuple(attributes), image_size
        super().__init__(root, attribute_file=attribute_file, skip_bad=skip_bad)

    @property
    def labels(self) -> Labels:
        return self._labels

    def _read_labels(self, path: Path) -> tuple[list[str], Labels]:
        table = read_table(path)
        self.label_names = self.label_names or table.columns
        return table.names, attributes_of(table, self.label_names)

    def label(self, index: int) -> tuple[int, ...]:
        """1 for each attribute that holds, 0 for the others."""
        return tuple(self._labels[index].tolist())

    def size(self, index: int) -> Size:
        """The square."""
        return self.image_size, self.image_size

    def _pixels(self, image: Image8) -> Image8:
        side = self.image_size
        return resize_squares(image, (side,)).reshape(side, side, 3)


def resize_squares(image: Image8, sizes: Sequence[int]) -> Image8:
    """The whole image at each size (bilinear, antialiased, aspect not kept), as a pyramid.

    torch resizes eight bits with the processor's vectors, from the memory of the decoder's
    image: a quarter of Pillow's time, and the same but for one grey level in a few pixels of a
    thousand (their weights are rounded differently).

    Args:
        image: (H, W, 3) uint8.
    """
    import torch
    from torch.nn.functional import interpolate

    source = torch.from_numpy(np.array(image))[None].permute(0, 3, 1, 2)  # channels_last
    pixels = np.empty((pyramid_size(sizes)[0], 1, 3), np.uint8)
    begin = 0
    for side in sizes:
        square = interpolate(source, size=(side, side), mode="bilinear", antialias=True)
        end = begin + side * side
        pixels[begin:end] = square[0].permute(1, 2, 0).reshape(-1, 1, 3).numpy()
        begin = end
    return pixels


def _attribute_file(root: Path, given: str | Path | None) -> Path:
    if given is not None:
        path = Path(given)
        if not os.path.isfile(path):
            raise DataError(f"{path}: no such file", hint="--attribute-file names a txt or csv")
        return path
    found = find_table(root, ATTRIBUTE_STEMS)
    if found is None:
        raise DataError(
            f"{root}: no table of attributes",
            hint=f"looked for {looked_for(root, ATTRIBUTE_STEMS)}; --attribute-file names another",
        )
    return found


def image_folder(
    root: Path, names: Sequence[str], folders: Sequence[str] = IMAGE_FOLDERS
) -> tuple[Path, dict[str, str]]:
    """The first of the folders that has some of the images, and their files by listed name.

    Listed as .jpg and there as .png (or the like) is the same image.
    """
    for name in folders:
        folder = root / name
        if not os.path.isdir(folder):
            continue
        there = image_files(folder)
        stems = {os.path.splitext(name)[0]: name for name in there}
        files = {
            name: name if name in there else stems[os.path.splitext(name)[0]]
            for name in names
            if name in there or os.path.splitext(name)[0] in stems
        }
        if files:
            return folder, files
    return root, {}


def image_files(folder: Path) -> set[str]:
    """Names of the images in a folder. Raises DataError."""
    try:
        with os.scandir(folder) as entries:
            return {
                entry.name
                for entry in entries
                if os.path.splitext(entry.name)[1].lower() in SUFFIXES
                and not entry.name.startswith(".")
            }
    except OSError as error:
        raise DataError(f"{folder}: {(error.strerror or str(error)).lower()}") from error


def _blake2b() -> Any:
    return hashlib.blake2b(digest_size=16)
