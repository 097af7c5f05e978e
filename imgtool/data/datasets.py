"""Opening what a config's data section names: three parts of images, ready to be read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from imgtool.config.faces import FacesData, LabelledFacesData
from imgtool.config.latents import LatentsData
from imgtool.config.schema import Data
from imgtool.data.augment import training_size
from imgtool.data.base import DataInfo, ImageDataset
from imgtool.data.cache import Sharing, shared_memory
from imgtool.data.celeba import CelebA, LabelledFaces
from imgtool.data.celeba_tables import ATTRIBUTES, PARTITION_STEMS, find_table
from imgtool.data.latent_parts import expected_latents, open_latents
from imgtool.data.layouts import LayoutManifest
from imgtool.data.packed import PackedDataset
from imgtool.data.pairs import FacePart, by_official_parts, official_split, paired, split_faces
from imgtool.data.palette import LABEL_NAMES, MASK_NAMES, PALETTE
from imgtool.data.photos import PhotoFolder
from imgtool.data.sampler import batches_per_epoch
from imgtool.data.split import Split, given_split, make_split, positions, shared, some_of
from imgtool.data.views import View
from imgtool.errors import ConfigError

AUTO_CACHE_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Datasets:
    """The data of an experiment.

    Attributes:
        train, val, test: the parts; val and test may be empty.
        split: the names of the images in each part.
        fingerprint: hash of what is in the data, wherever it lies.
        info: what a family may know.
        bad_files: names of files left out because they cannot be read.
        missing: names that a table of attributes lists and that are not there.
        without_part: names that it lists and CelebA's own table of parts lacks, where a split has
            just been drawn after that.
        tested_too: names of training and validation images that test_root holds as well.
        unshared_cache: why this process has a copy of its own of what others here keep in memory.
    """

    train: View
    val: View
    test: View
    split: Split
    fingerprint: str
    info: DataInfo
    bad_files: list[str]
    missing: Sequence[str] = ()
    without_part: Sequence[str] = ()
    tested_too: Sequence[str] = ()
    unshared_cache: str | None = None

    def batches_per_epoch(self, global_batch_size: int) -> int:
        """Batches of all processes together that cover the training part once.

        Args:
            global_batch_size: of all processes; of faces, images of each of the two sets.
        """
        return batches_per_epoch(self.train.epoch_images, global_batch_size)


def open_datasets(
    data: Data,
    *,
    split: Split | None = None,
    training: bool = True,
    share: Sharing | None = None,
) -> Datasets:
    """Read headers, draw the split, and set up resizing and the cache.

    Args:
        data: the config's section.
        split: use this one as it is, instead of drawing one.
        training: refuse training images that cannot share a batch, and look for those that
            test_root holds as well. Without it a test_root that is gone is no error.
        share: the processes of this training here, which keep one copy of decoded images.

    Raises:
        ConfigError: the section names no data, or data of another kind.
        DataError: the data cannot be used.
    """
    opened = _KINDS[data.dataset].open(data, split, training)
    trouble = _keep_in_memory([opened.train, opened.val, opened.test], data, share)
    return opened if trouble is None else replace(opened, unshared_cache=trouble)


def _keep_in_memory(parts: Sequence[View], data: Data, share: Sharing | None) -> str | None:
    """Why processes that should share the memory do not; None when nothing is the matter."""
    if data.cache == "none" or all(part.decoded for part in parts):
        return None
    needs = [part.cache_bytes for part in parts]
    total = sum(part.decoded_bytes for part in parts)
    if total == 0 or (data.cache == "auto" and total > AUTO_CACHE_BYTES):
        return None
    memory, trouble = shared_memory(sum(needs), share)
    for part, need, end in zip(parts, needs, accumulate(needs), strict=True):
        part.keep_in_memory(memory[end - need : end])
    return trouble


def expected_info(data: Data) -> DataInfo | None:
    """What the data will be like, while the config names none; None once it does."""
    return _KINDS[data.dataset].expected(data)


# --- photos and layouts ---------------------------------------------------------------------

Source = PhotoFolder | LayoutManifest | PackedDataset


def _open_images(data: Data, split: Split | None, training: bool) -> Datasets:
    main = _open(data, _main_path(data))
    held = _open_val(data)
    if split is None:
        split = _draw(data, main, held)
    val_source = main if held is None else held
    train = View(main, positions(main, split.train, "train"), image_size=data.image_size)
    val = View(val_source, positions(val_source, split.val, "val"), image_size=data.image_size)
    tested = _open_test(data, required=training)
    if tested is None:
        test = View(main, positions(main, split.test, "test"), image_size=data.image_size)
    else:
        test = View(tested, range(len(tested)), image_size=data.image_size)
    info = DataInfo(
        targets=main.targets,
        image_size=training_size(train, data.crop) if training else None,
        num_train_images=len(train),
        mask_names=main.mask_names,
        label_names=main.label_names,
        palette=main.palette,
    )
    bad_files = [name for source in (main, held, tested) if source for name in source.bad_files]
    fingerprint = _fingerprint(main, held)  # tests do not change what is trained
    tested_too = _in_both([train, val], tested) if training and tested is not None else ()
    return Datasets(train, val, test, split, fingerprint, info, bad_files, tested_too=tested_too)


def _expected_images(data: Data) -> DataInfo | None:
    if getattr(data, data.source_key):
        return None
    side = data.crop or data.image_size
    plans = data.dataset == "layouts"
    return DataInfo(
        targets=frozenset(("mask", "label")) if plans else frozenset(),
        image_size=(side, side) if side else None,
        num_train_images=0,
        mask_names=MASK_NAMES if plans else (),
        label_names=LABEL_NAMES if plans else (),
        palette=PALETTE if plans else (),
    )


def _main_path(data: Data) -> Path:
    if data.dataset == "layouts":
        if data.val_root is not None:
            raise ConfigError(
                "data.val_root is for photos", hint="layouts are split by scene: data.val_fraction"
            )
        if data.manifest is None:
            raise ConfigError("data.manifest is not set", hint="--manifest names a CSV of layouts")
        return Path(data.manifest)
    if data.root is None:
        raise ConfigError("data.root is not set", hint="--data-root names a folder of photos")
    return Path(data.root)


def _open(data: Data, path: Path) -> Source:
    if path.suffix == ".safetensors":
        packed = PackedDataset(path, max_unmatched=data.max_unmatched)
        if packed.kind != data.dataset:
            raise ConfigError(
                f"{path} holds {packed.kind}, and data.dataset is {data.dataset}",
                hint=f"--dataset {packed.kind}",
            )
        return packed
    if data.dataset == "photos":
        return PhotoFolder(path, skip_bad=data.skip_bad)
    return LayoutManifest(
        path,
        skip_bad=data.skip_bad,
        cache_dir=data.cache_dir,
        max_unmatched=data.max_unmatched,
    )


def _open_val(data: Data) -> Source | None:
    return None if data.val_root is None else _open(data, Path(data.val_root))


def _open_test(data: Data, *, required: bool) -> Source | None:
    """The separate test set of families that have one."""
    path = getattr(data, "test_root", None)
    if path is None or (not required and not Path(path).exists()):
        return None
    return _open(data, Path(path))


def _in_both(parts: Sequence[View], tested: Source) -> list[str]:
    everywhere = range(len(tested))
    return [
        part.name(index)
        for part in parts
        for index in sorted(shared(part, range(len(part)), tested, everywhere))
    ]


def _draw(data: Data, main: Source, held: Source | None) -> Split:
    if held is not None:
        return given_split(main, held, data.split_seed, max_images=data.max_images)
    return make_split(
        main, data.val_fraction, data.test_fraction, data.split_seed, max_images=data.max_images
    )


def _fingerprint(main: ImageDataset, held: ImageDataset | None) -> str:
    if held is None:
        return main.fingerprint
    both = f"{main.fingerprint}/{held.fingerprint}".encode()
    return hashlib.blake2b(both, digest_size=16).hexdigest()


# --- faces ----------------------------------------------------------------------------------


def _open_faces(data: FacesData, split: Split | None, training: bool) -> Datasets:
    if data.root is None:
        raise ConfigError("data.root is not set", hint="--data-root names a folder of faces")
    faces = CelebA(
        data.root,
        data.attribute,
        image_sizes=data.image_sizes,
        attribute_file=data.attribute_file,
        skip_bad=data.skip_bad,
    )
    without_part: list[str] = []
    if split is None and data.official_split:
        without_part = faces.without_part()
        split = official_split(faces, data.split_seed, max_images=data.max_images)
    elif split is None:
        fractions = data.val_fraction, data.test_fraction
        split = split_faces(faces, *fractions, data.split_seed, max_images=data.max_images)
    train = FacePart(faces, positions(faces, split.train, "train"))
    val = paired(faces, positions(faces, split.val, "val"))
    test = paired(faces, positions(faces, split.test, "test"))
    info = _faces_info(data, len(train))
    return Datasets(
        train, val, test, split, faces.fingerprint, info, faces.bad_files, faces.missing,
        without_part,
    )  # fmt: skip


def _faces_info(data: FacesData, num_train_images: int) -> DataInfo:
    return DataInfo(
        targets=CelebA.targets,
        image_size=(data.shown_size, data.shown_size),
        num_train_images=num_train_images,
        label_names=(f"without {data.attribute}", f"with {data.attribute}"),
        pyramid=data.image_sizes,
    )


def _expected_faces(data: FacesData) -> DataInfo | None:
    return _faces_info(data, 0) if data.root is None else None


def _open_labelled(data: LabelledFacesData, split: Split | None, training: bool) -> Datasets:
    if data.root is None:
        raise ConfigError("data.root is not set", hint="--data-root names a folder of faces")
    faces = LabelledFaces(
        data.root,
        data.attributes,
        image_size=data.image_size,
        attribute_file=data.attribute_file,
        skip_bad=data.skip_bad,
    )
    without_part: list[str] = []
    is_official = data.official_split
    if is_official is None:
        is_official = find_table(faces.root, PARTITION_STEMS) is not None
    if split is None and is_official:
        without_part = faces.without_part()
        some = some_of(list(range(len(faces))), data.max_images, data.split_seed)
        split = by_official_parts(faces, some, data.split_seed)
    elif split is None:
        split = make_split(
            faces,
            data.val_fraction,
            data.test_fraction,
            data.split_seed,
            max_images=data.max_images,
        )
    train, val, test = (
        View(faces, positions(faces, getattr(split, part), part))
        for part in ("train", "val", "test")
    )
    shares = faces.labels[train.indices].mean(axis=0).tolist() if len(train) else []
    info = replace(
        _labelled_info(data, faces.label_names),
        num_train_images=len(train),
        label_shares=tuple(shares),
    )
    return Datasets(
        train, val, test, split, faces.fingerprint, info, faces.bad_files, faces.missing,
        without_part,
    )  # fmt: skip


def _labelled_info(data: LabelledFacesData, names: tuple[str, ...]) -> DataInfo:
    return DataInfo(
        targets=LabelledFaces.targets,
        image_size=(data.image_size, data.image_size),
        num_train_images=0,
        label_names=names,
    )


def _expected_labelled(data: LabelledFacesData) -> DataInfo | None:
    if data.root is not None:
        return None
    return _labelled_info(data, data.attributes or ATTRIBUTES)


# --- latents --------------------------------------------------------------------------------


def _open_latents(data: LatentsData, split: Split | None, training: bool) -> Datasets:
    opened = open_latents(data, split)
    return Datasets(
        opened.train, opened.val, opened.test, opened.split, opened.fingerprint, opened.info, []
    )


# --- kinds ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """How the data sets of one `data.dataset` are opened, and what they are like before."""

    open: Callable[[Any, Split | None, bool], Datasets]
    expected: Callable[[Any], DataInfo | None]


_IMAGES = _Kind(_open_images, _expected_images)
_KINDS = {
    "photos": _IMAGES,
    "layouts": _IMAGES,
    "celeba": _Kind(_open_faces, _expected_faces),
    "labelled_faces": _Kind(_open_labelled, _expected_labelled),
    "latents": _Kind(_open_latents, expected_latents),
}
