"""Which images are encoded, to which part each belongs, and what is seen of each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from imgtool.config.schema import Data
from imgtool.data.base import ImageDataset, Sample, Size
from imgtool.data.check import MANIFEST_NAME, open_source
from imgtool.data.datasets import open_datasets
from imgtool.data.latent_contents import PARTS
from imgtool.data.split import Split, make_split, positions
from imgtool.data.views import View
from imgtool.errors import ConfigError, DataError, UsageError


@dataclass(frozen=True)
class Frame:
    """What is seen of an image: resized, then the middle of it.

    Attributes:
        image_size: pixels that the shorter side is resized to; None keeps it.
        crop: side of the square in the middle, in pixels; None for the whole image.
    """

    image_size: int | None
    crop: int | None

    @classmethod
    def chosen(cls, image_size: int | None, crop: int | None, data: Data) -> Frame:
        """As asked for, where 0 is none; as the autoencoder was trained where nothing is."""
        if image_size is None and crop is None:
            return cls(data.image_size, data.crop)
        return cls(image_size or None, crop or None)

    def size(self, images: Images, unit: int) -> Size:
        """(H, W) of every image, a multiple of `unit`.

        Raises:
            UsageError: the crop is no multiple of it.
            DataError: images differ in size, are smaller than the crop, or no multiple of it.
        """
        if self.crop is not None and self.crop % unit:
            raise UsageError(
                f"a crop of {self.crop} pixels is no multiple of {unit}, the autoencoder's "
                "downsampling",
                hint=f"--crop {max(unit, self.crop // unit * unit)}",
            )
        first = images.size(0)
        for index in range(len(images)):
            height, width = images.size(index)
            if self.crop is not None and min(height, width) < self.crop:
                raise DataError(
                    f"{images.name(index)} has {width}x{height} pixels, the crop is "
                    f"{self.crop}x{self.crop}",
                    hint=f"--size {self.crop} --crop {self.crop} resizes the shorter side first",
                )
            if self.crop is None and (height, width) != first:
                raise DataError(
                    f"images differ in size: {images.name(0)} has {first[1]}x{first[0]} pixels, "
                    f"{images.name(index)} {width}x{height}; latents of a file have one shape",
                    hint="--crop N takes the middle of each, --size N --crop N most of it",
                )
        if self.crop is not None:
            return self.crop, self.crop
        if first[0] % unit or first[1] % unit:
            near = max(unit, min(first) // unit * unit)
            raise DataError(
                f"images have {first[1]}x{first[0]} pixels, no multiple of {unit}, the "
                "autoencoder's downsampling",
                hint=f"--crop {near} takes the middle of each",
            )
        return first


class Images:
    """Images of one or more data sets, each once, as one set.

    Args:
        members: parts of data sets, with the numbers of their images' parts in PARTS.
        folders: for each member the folder that its names are joined to; None keeps them.

    Attributes:
        parts: (N,) uint8, positions in PARTS.
        fingerprint: of the data.
    """

    def __init__(
        self,
        members: Sequence[tuple[View, Sequence[int]]],
        folders: Sequence[Path | None],
        fingerprint: str,
    ) -> None:
        self.fingerprint = fingerprint
        self._members = members
        self._places = [(m, i) for m, (view, _) in enumerate(members) for i in range(len(view))]
        self.parts = np.array([part for _, parts in members for part in parts], np.uint8)
        first = members[0][0]
        self.targets, self.palette = first.targets, first.palette
        self.mask_names, self.label_names = first.mask_names, first.label_names
        self.decoded = all(view.decoded for view, _ in members)
        self._folders = folders

    def __len__(self) -> int:
        return len(self._places)

    def _in(self, index: int) -> tuple[View, int]:
        member, at = self._places[index]
        return self._members[member][0], at

    def _known_as(self, index: int, name: str) -> str:
        folder = self._folders[self._places[index][0]]
        return name if folder is None else os.path.join(folder, name)

    def name(self, index: int) -> str:
        """Unique; by it the original is found, from the root or the manifest's folder."""
        view, at = self._in(index)
        return self._known_as(index, view.name(at))

    def group(self, index: int) -> str:
        """What must stay on one side of a split."""
        view, at = self._in(index)
        return self._known_as(index, view.group(at))

    def num_bytes(self, index: int) -> int:
        """Length of an image's file."""
        view, at = self._in(index)
        return view.num_bytes(at)

    def content_hash(self, index: int) -> str:
        """Hash of an image's file."""
        view, at = self._in(index)
        return view.content_hash(at)

    def size(self, index: int) -> Size:
        """(H, W) after resizing, before any crop."""
        view, at = self._in(index)
        return view.size(at)

    def read(self, index: int) -> Sample:
        """One image, resized. Raises DataError where its file is bad."""
        view, at = self._in(index)
        return view.read(at)


@dataclass(frozen=True)
class Found:
    """The images to be encoded, and where they lie.

    Attributes:
        images: in the order of their data set.
        dataset: `photos` or `layouts`.
        path: of the folder, manifest or packed file, absolute.
        is_own: whether it is what the autoencoder was trained on.
        bad_files: names of files left out because they cannot be read.
    """

    images: Images
    dataset: str
    path: Path
    is_own: bool
    bad_files: list[str]


def find_images(
    source: str | None,
    data: Data,
    split: Split | None,
    *,
    fingerprint: str | None,
    image_size: int | None,
    val_fraction: float | None,
    skip_bad: bool,
) -> Found:
    """Open what is to be encoded and part it.

    The autoencoder's own data are parted as they were for it. Of others all images train, or what
    `val_fraction` leaves.

    Args:
        source: a folder, a manifest or a packed file; the autoencoder's own data when None.
        data: that it was trained on, as its config says.
        split: that was written down then, if it was.
        fingerprint: of its data, if it is known: a copy elsewhere is the same.
        image_size: pixels that shorter sides are resized to.
        val_fraction: of other data: the part that validates.
        skip_bad: leave bad files out.

    Raises:
        DataError, ConfigError: the images cannot be used.
        UsageError: its own data are parted already.
    """
    data = replace(data, image_size=image_size, crop=None, skip_bad=skip_bad or data.skip_bad)
    own = getattr(data, data.source_key, None)
    if source is None or (own is not None and _same_place(source, own)):
        _refuse_fraction(val_fraction)
        if own is None:
            raise ConfigError(
                "the checkpoint's config names no data", hint="say which: imgtool encode CKPT DATA"
            )
        return _own_images(data, split, Path(own))
    opened = open_source(source, skip_bad=skip_bad, max_unmatched=data.max_unmatched)
    is_own = opened.fingerprint == fingerprint and split is not None
    if is_own:
        _refuse_fraction(val_fraction)
    else:
        split = make_split(opened, val_fraction or 0.0, 0.0, data.split_seed)
    assert split is not None
    view, parts = _parted(opened, split, image_size)
    images = Images([(view, parts)], [None], opened.fingerprint)
    kind = "layouts" if "mask" in opened.targets else "photos"
    path = Path(getattr(opened, "manifest", None) or source)
    return Found(images, kind, path.absolute(), is_own, list(opened.bad_files))


def _refuse_fraction(val_fraction: float | None) -> None:
    if val_fraction is not None:
        raise UsageError(
            "--val-fraction is for other data: these are parted as the autoencoder had them",
            hint="leave it out",
        )


def _same_place(source: str, own: str) -> bool:
    """Whether a path names the autoencoder's data, or the folder of its manifest."""
    given = Path(os.path.realpath(source))
    return Path(os.path.realpath(own)) in (given, given / MANIFEST_NAME)


def _own_images(data: Data, split: Split | None, path: Path) -> Found:
    """The autoencoder's data with its val_root and test_root, where it had them."""
    opened = open_datasets(data, split=split, training=False)
    views = {"train": opened.train, "val": opened.val, "test": opened.test}
    main = opened.train.source
    drawn = [name for name, view in views.items() if view.source is main]
    split = opened.split
    lists = {name: getattr(split, name) if name in drawn else [] for name in PARTS}
    of_main = Split(lists["train"], lists["val"], lists["test"], split.duplicates, split.seed)
    view, parts = _parted(main, of_main, data.image_size)
    members: list[tuple[View, Sequence[int]]] = [(view, parts)]
    folders: list[Path | None] = [None]
    for name, root in (("val", data.val_root), ("test", getattr(data, "test_root", None))):
        if name not in drawn and len(views[name]):
            members.append((views[name], [PARTS.index(name)] * len(views[name])))
            folders.append(Path(root or ".").absolute())
    images = Images(members, folders, opened.fingerprint)
    return Found(images, data.dataset, path.absolute(), True, opened.bad_files)


def _parted(source: ImageDataset, split: Split, image_size: int | None) -> tuple[View, list[int]]:
    """The images of a split in the order of their data set, and their parts.

    Raises:
        DataError: the data lack one of them, or no image is left.
    """
    part_of = {
        index: number
        for number, name in enumerate(PARTS)
        for index in positions(source, getattr(split, name), name)
    }
    if not part_of:
        raise DataError("there are no images to encode")
    order = sorted(part_of)
    return View(source, order, image_size=image_size), [part_of[index] for index in order]
