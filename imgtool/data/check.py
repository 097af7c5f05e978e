"""What a set of images holds, and what is wrong with it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from imgtool.data.base import IGNORE, BadFile, ImageDataset
from imgtool.data.celeba import image_files, image_folder
from imgtool.data.celeba_tables import (
    ATTRIBUTE_STEMS,
    LANDMARK_STEMS,
    PARTITION_STEMS,
    find_table,
    read_table,
    unlisted,
)
from imgtool.data.latent_contents import PARTS
from imgtool.data.latents import LatentsFile, facts_of, is_latents_file
from imgtool.data.layouts import LayoutManifest
from imgtool.data.packed import PackedDataset
from imgtool.data.photos import PhotoFolder
from imgtool.data.split import without_duplicates
from imgtool.errors import DataError

Kind = Literal["photos", "layouts"]
Source = PhotoFolder | LayoutManifest | PackedDataset
MANIFEST_NAME = "layouts.csv"
_MOST_SIZES = 20
_CHUNK = 16  # images a task of the thread pool


def open_source(
    path: str | Path,
    kind: Kind | None = None,
    *,
    skip_bad: bool = False,
    verify: bool | None = None,
    max_unmatched: float = 1.0,
) -> Source:
    """Open a folder, a manifest or a packed file.

    Args:
        kind: of the data; by default a folder that holds layouts.csv, and every file but a
            .safetensors, are layouts.
        skip_bad, verify: as in ImageFiles.
        max_unmatched: as in LayoutManifest.

    Raises:
        DataError: it cannot be used.
    """
    path = Path(path)
    if path.is_dir() and kind != "photos":
        inside = path / MANIFEST_NAME
        path = inside if kind == "layouts" or inside.is_file() else path
    if path.suffix == ".safetensors":
        packed = PackedDataset(path, max_unmatched=max_unmatched)
        if kind not in (None, packed.kind):
            raise DataError(
                f"{path} holds {packed.kind}, not {kind}", hint=f"say --dataset {packed.kind}"
            )
        return packed
    if kind == "layouts" or (kind is None and (path.is_file() or path.suffix == ".csv")):
        return LayoutManifest(path, skip_bad=skip_bad, verify=verify, max_unmatched=max_unmatched)
    return PhotoFolder(path, skip_bad=skip_bad, verify=verify)


@dataclass
class _Totals:
    classes: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    labels: Counter[int] = field(default_factory=Counter)
    worst: tuple[float, str | None] = (0.0, None)
    bad: list[BadFile] = field(default_factory=list)
    num_pixels: int = 0


def check(
    path: str | Path,
    kind: Kind | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Decode every image and count.

    Args:
        progress: called with images done and in all.

    Returns:
        A record: counts, sizes (as WxH), bad files (name, line, reason), duplicates, for
        layouts the share of pixels of each class (of those that have one) and of none, and for
        a folder in CelebA's layout how many images each attribute has, which are missing,
        which are there unlisted, and which have no part or landmarks where tables tell. Of a
        latents file: what its header says, and the images whose latents are not finite.

    Raises:
        DataError: there is nothing to check: no such path, no images, a broken manifest.
    """
    if is_latents_file(path):
        return _check_latents(Path(path), kind, progress)
    dataset = open_source(path, kind, skip_bad=True, verify=False)
    totals = _Totals(bad=list(getattr(dataset, "bad", [])))
    good = []
    for index, found in enumerate(_read_all(dataset)):
        if isinstance(found, BadFile):
            totals.bad.append(found)
        else:
            good.append(index)
            _add(totals, dataset, index, *found)
        if progress:
            progress(index + 1, len(dataset))
    _, duplicates = without_duplicates(dataset)
    sizes = Counter(dataset.size(i) for i in good)
    record: dict[str, Any] = {
        "path": Path(path),
        "dataset": "layouts" if "mask" in dataset.targets else "photos",
        "is_packed": isinstance(dataset, PackedDataset),
        "num_images": len(good),
        "num_bad_files": len(totals.bad),
        "num_duplicates": len(duplicates),
        "num_groups": len({dataset.group(i) for i in good}),
        "num_sizes": len(sizes),
        "sizes": {f"{w}x{h}": count for (h, w), count in sizes.most_common(_MOST_SIZES)},
        "files_bytes": sum(dataset.num_bytes(i) for i in good),
        "decoded_bytes": 3 * totals.num_pixels,
        "fingerprint": dataset.fingerprint,
        "bad_files": [
            {"name": bad.name, "line": bad.line, "reason": bad.reason} for bad in totals.bad
        ],
        "duplicates": [dataset.name(i) for i in duplicates],
    }
    if isinstance(dataset, LayoutManifest):
        record["num_empty_rows"] = dataset.num_empty
        record["num_repeated_rows"] = dataset.num_repeated
    if isinstance(dataset, PhotoFolder):
        record |= _attributes(Path(path), kind)
    return {**record, **_balance(dataset, totals)}


def _check_latents(
    path: Path, kind: Kind | None, progress: Callable[[int, int], None] | None
) -> dict[str, Any]:
    if kind is not None:
        raise DataError(f"{path} holds latents, not {kind}", hint="leave --dataset out")
    file = LatentsFile(path)
    bad = file.check_values(progress)
    reason = "its latent is not finite, or its mask has a class without a name"
    record: dict[str, Any] = {
        "path": path,
        "dataset": "latents",
        "num_images": file.num_images,
        "num_bad_files": len(bad),
        "num_groups": len(set(file.groups)),
        **{f"num_{part}_images": len(file.rows_of(part)) for part in PARTS},
        **facts_of(file),
        "files_bytes": path.stat().st_size,
        "bad_files": [{"name": name, "line": None, "reason": reason} for name in bad],
    }
    if file.labels is not None:
        record["label_counts"] = {
            name: int((file.labels == number).sum()) for number, name in enumerate(file.label_names)
        }
    return record


def _attributes(root: Path, kind: Kind | None) -> dict[str, Any]:
    """What CelebA's table of attributes in a folder of photos says; nothing without one."""
    path = find_table(root, ATTRIBUTE_STEMS)
    if kind is not None or path is None or root not in path.parents:
        return {}
    table = read_table(path)
    folder, files = image_folder(root, table.names)
    unnamed = sorted(image_files(folder) - set(files.values()))
    missing = [name for name in table.names if name not in files]
    gaps: dict[str, Any] = {}
    for key, others in (("part", PARTITION_STEMS), ("landmarks", LANDMARK_STEMS)):
        lacking = unlisted(table.names, root, others)
        if lacking is not None:
            gaps |= {f"num_without_{key}": len(lacking), f"without_{key}": lacking}
    return {
        "dataset": "celeba",
        "num_listed_images": len(table.names),
        "num_missing_images": len(missing),
        "num_unlisted_images": len(unnamed),
        **gaps,
        "missing_images": missing,
        "unlisted_images": unnamed,
        "attribute_counts": {
            name: int((table.values[:, column] == 1).sum())
            for column, name in enumerate(table.columns)
        },
    }


def _balance(dataset: ImageDataset, totals: _Totals) -> dict[str, Any]:
    record: dict[str, Any] = {}
    if "label" in dataset.targets:
        record["label_counts"] = {
            name: totals.labels[number] for number, name in enumerate(dataset.label_names)
        }
    if "mask" in dataset.targets and totals.num_pixels:
        matched = max(1, totals.num_pixels - int(totals.classes[IGNORE]))
        record["class_share"] = {
            name: float(totals.classes[number]) / matched
            for number, name in enumerate(dataset.mask_names)
        }
        record["unmatched_share"] = float(totals.classes[IGNORE]) / totals.num_pixels
        record["worst_unmatched_share"], record["worst_unmatched_name"] = totals.worst
    return record


def _add(
    totals: _Totals,
    dataset: ImageDataset,
    index: int,
    classes: np.ndarray | None,
    label: int | None,
) -> None:
    height, width = dataset.size(index)
    totals.num_pixels += height * width
    if label is not None:
        totals.labels[label] += 1
    if classes is not None:
        totals.classes += classes
        share = float(classes[IGNORE]) / (height * width)
        if share > totals.worst[0]:
            totals.worst = share, dataset.name(index)


def _read_all(dataset: Source) -> Iterator[tuple[np.ndarray | None, int | None] | BadFile]:
    """Pixels of each class and the label of every image, or what is wrong with it, in order."""

    def one(index: int) -> tuple[np.ndarray | None, int | None] | BadFile:
        try:
            sample = dataset.read(index)
        except DataError as error:
            return _bad(dataset, index, error)
        assert not isinstance(sample.label, tuple)  # as faces have
        if sample.mask is None:
            return None, sample.label
        classes = np.bincount(sample.mask.ravel(), minlength=256)
        if classes[len(dataset.mask_names) : IGNORE].any():
            return BadFile(dataset.name(index), "its mask has a class that the palette lacks")
        return classes, sample.label

    chunks = [range(i, min(i + _CHUNK, len(dataset))) for i in range(0, len(dataset), _CHUNK)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for results in pool.map(lambda chunk: [one(i) for i in chunk], chunks):
            yield from results


def _bad(dataset: Source, index: int, error: DataError) -> BadFile:
    cause = error.__cause__
    reason = getattr(cause, "reason", None) or str(error)
    line = dataset.line(index) if isinstance(dataset, LayoutManifest) else None
    return BadFile(dataset.name(index), reason, line)
