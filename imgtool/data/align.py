"""Aligning faces: five landmarks of each are brought onto a mean face by a similarity transform."""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imgtool.data.celeba import IMAGE_FOLDERS, image_folder
from imgtool.data.celeba_tables import (
    ATTRIBUTE_STEMS,
    LANDMARK_STEMS,
    PARTITION_STEMS,
    Table,
    find_table,
    looked_for,
    read_table,
)
from imgtool.data.images import BadImage, decode
from imgtool.data.making import Progress, Written, claim, save, write, write_all
from imgtool.data.synthetic.make import ImageFormat
from imgtool.errors import DataError, UsageError
from imgtool.files import replacing

Points = NDArray[np.complex128]  # (..., 5): x + iy in pixels, 0 in the corner of the image
FOLDER = "align_5p"
LANDMARKS_NAME = "list_landmarks_align_celeba.txt"
MIN_SIZE, MAX_SIZE = 16, 2048
EYE_DISTANCE = 0.25  # between the eyes of the mean face, as a part of the side
EYE_CENTRE = 0.5 + 0.45j
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class Aligned:
    """What has been aligned.

    Attributes:
        path: the folder, again in CelebA's layout.
        num_images: aligned now or before.
        missing: names that the table of landmarks lists and that are not there.
        bad_files: names left out because they cannot be read.
    """

    path: Path
    num_images: int
    missing: list[str]
    bad_files: list[str] = field(default_factory=list)
    elapsed_sec: float = 0.0


def align(
    root: str | Path,
    out: str | Path,
    *,
    size: int = 256,
    image_format: ImageFormat = "jpg",
    workers: int = 1,
    skip_bad: bool = False,
    progress: Progress | None = None,
    dry_run: bool = False,
) -> Aligned:
    """Align every image that the table of landmarks lists: `out`/align_5p and the tables.

    Repeated after an interruption it makes what is still lacking. Where a transformed square
    reaches beyond its image, the image is mirrored at its edge.

    Args:
        root: a folder in CelebA's layout.
        out: a new or empty folder, or one that this made with the same options.
        size: width and height in pixels.
        skip_bad: leave out images that cannot be read.
        dry_run: read the tables, write nothing.

    Raises:
        UsageError: an option out of range, or `out` cannot be used.
        DataError: no landmarks, no images, or a bad image.
    """
    _check(size, workers, image_format)
    root, folder, started = Path(root), Path(out), time.monotonic()
    table = _landmarks(root)
    source, files = image_folder(root, table.names, IMAGE_FOLDERS[1:])
    missing = [name for name in table.names if name not in files]
    if not files:
        raise DataError(
            f"{root}: none of the {len(table.names)} images of {table.path} is there",
            hint=f"looked in {', '.join(IMAGE_FOLDERS[1:-1])} and the folder itself",
        )
    points = _points(table)
    target = mean_face(points) * size
    steps = similarities(points, target)
    _refuse_degenerate(table, steps)
    there = [i for i, name in enumerate(table.names) if name in files]
    outputs = {i: f"{FOLDER}/{Path(table.names[i]).stem}.{image_format}" for i in there}
    copies = [find_table(root, stems) for stems in (ATTRIBUTE_STEMS, PARTITION_STEMS)]
    tables = [path for path in copies if path is not None]
    recipe = {"what": "aligned faces", "size": size, "image_format": image_format}
    recipe["landmarks"] = hashlib.blake2b(points.tobytes(), digest_size=8).hexdigest()
    names = {*outputs.values(), LANDMARKS_NAME, *(path.name for path in tables)}
    claim(folder, recipe, names, dry_run=dry_run)
    if dry_run:
        return Aligned(folder, len(there), missing, elapsed_sec=time.monotonic() - started)
    units = [
        (str(source / files[table.names[i]]), str(folder / outputs[i]), *steps[i].tolist())
        for i in there
    ]
    one = partial(_align_one, size, skip_bad)
    written = write_all(one, units, len(units), workers, progress)
    bad = {row[0] for row, num_bytes in written if num_bytes == 0}
    good = [i for i, unit in zip(there, units, strict=True) if unit[0] not in bad]
    _write_landmarks(folder / LANDMARKS_NAME, table, good, steps, points)
    for path in tables:
        with replacing(folder / path.name) as temporary:
            shutil.copyfile(path, temporary)
    bad_names = [table.names[i] for i in there if i not in set(good)]
    return Aligned(folder, len(good), missing, bad_names, time.monotonic() - started)


def _check(size: int, workers: int, image_format: str) -> None:
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise UsageError(
            f"--size is {size}: aligned faces have {MIN_SIZE} to {MAX_SIZE} pixels",
            hint="give --size 256",
        )
    if workers < 1:
        raise UsageError(f"--workers is {workers}: at least one process is needed")
    if image_format not in ("png", "jpg"):
        raise UsageError(f"image format {image_format!r} is not png or jpg")


def _landmarks(root: Path) -> Table:
    path = find_table(root, LANDMARK_STEMS)
    if path is None:
        raise DataError(
            f"{root}: no table of landmarks", hint=f"looked for {looked_for(root, LANDMARK_STEMS)}"
        )
    table = read_table(path, default_columns=tuple(f"landmark_{i}" for i in range(10)))
    if len(table.columns) != 10:
        raise DataError(
            f"{path}: {len(table.columns)} columns, not x and y of five landmarks",
            hint="eyes, nose and corners of the mouth are wanted",
        )
    return table


def _points(table: Table) -> Points:
    """Landmarks (N, 5). A table's numbers name pixels, whose middles lie half a pixel in."""
    values = table.values.astype(np.float64) + 0.5
    return values[:, 0::2] + 1j * values[:, 1::2]


def mean_face(points: Points) -> Points:
    """Mean of faces of any position, size and turn, (5,), in a square of side 1, eyes level.

    Generalised Procrustes analysis (Gower 1975) in the plane, where a similarity is a complex
    number: each face is brought onto the mean, and the mean is taken again, a few times.
    """
    shapes = points - points.mean(axis=1, keepdims=True)
    norms = np.sqrt((abs(shapes) ** 2).sum(axis=1, keepdims=True))
    shapes = shapes[norms[:, 0] > 0] / norms[norms[:, 0] > 0][:, :1]
    if not len(shapes):
        raise DataError("all landmarks of every face coincide")
    mean = shapes[0]
    for _ in range(5):
        turns = (shapes.conj() * mean).sum(axis=1, keepdims=True)
        mean = (shapes * turns).mean(axis=0)
        mean = mean / np.sqrt((abs(mean) ** 2).sum())
    eyes = mean[1] - mean[0]
    if abs(eyes) < 1e-6:
        raise DataError("the eyes of the mean face coincide")
    level: Points = (mean - (mean[0] + mean[1]) / 2) * (EYE_DISTANCE / eyes) + EYE_CENTRE
    return level


def similarities(points: Points, target: Points) -> Points:
    """Least-squares similarities a z + b from each face onto the target: (N, 2) of a and b.

    The closed form of Umeyama (1991) without reflection; in the plane a is the inner product of
    the centred shapes over the face's squared size. Not finite where all landmarks coincide.
    """
    centres = points.mean(axis=1, keepdims=True)
    shapes, goal = points - centres, target - target.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = (shapes.conj() * goal).sum(axis=1) / (abs(shapes) ** 2).sum(axis=1)
    return np.stack([scale, target.mean() - scale * centres[:, 0]], axis=1)


def _refuse_degenerate(table: Table, steps: Points) -> None:
    odd = np.flatnonzero(~np.isfinite(steps).all(axis=1) | (abs(steps[:, 0]) < 1e-4))
    if len(odd):
        raise DataError(
            f"{table.path}: the landmarks of {table.names[odd[0]]} are no face",
            hint="mend or remove its line",
        )


def _align_one(size: int, skip_bad: bool, unit: tuple[str, str, complex, complex]) -> Written:
    source, out, scale, shift = unit
    path = Path(out)
    if path.exists():  # whole, from a run that was interrupted
        return [((source,), path.stat().st_size)]
    try:
        image, _ = decode(source)
    except BadImage as error:
        if skip_bad:
            return [((source,), 0)]
        raise DataError(str(error), hint="--skip-bad leaves out what cannot be read") from error
    square = warp(image, scale, shift, size)
    if path.suffix == ".png":
        return [((source,), save(square, path, "PNG", compress_level=3))]
    return [((source,), save(square, path, "JPEG", quality=_JPEG_QUALITY, subsampling=0))]


def warp(image: NDArray[np.uint8], scale: complex, shift: complex, size: int) -> Image.Image:
    """The square (size, size) to which z -> scale z + shift takes the image, bicubic.

    Args:
        image: (H, W, 3) uint8.
    """
    back, origin = 1 / scale, -shift / scale
    shrink = max(1, math.floor(abs(back)))
    if shrink > 1:  # else bicubic would skip pixels
        image = np.asarray(Image.fromarray(image).reduce(shrink))
        back, origin = back / shrink, origin / shrink
    height, width = image.shape[:2]
    corners = np.array([origin + back * size * corner for corner in (0, 1, 1j, 1 + 1j)])
    outside = max(
        -corners.real.min(), -corners.imag.min(),
        corners.real.max() - width, corners.imag.max() - height,
    )  # fmt: skip
    # A face far outside its image (wrong landmarks) is not worth any memory: it stays black.
    margin = min(max(0, math.ceil(outside) + 2), 2 * max(height, width))
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), "symmetric")
    matrix = (
        back.real, -back.imag, origin.real + margin,
        back.imag, back.real, origin.imag + margin,
    )  # fmt: skip
    return Image.fromarray(padded).transform(
        (size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
    )


def _write_landmarks(
    path: Path, table: Table, rows: Sequence[int], steps: Points, points: Points
) -> None:
    lines = [str(len(rows)), " ".join(table.columns)]
    for i in rows:
        moved = np.round(steps[i, 0] * points[i] + steps[i, 1] - (0.5 + 0.5j))
        values = np.stack([moved.real, moved.imag], axis=1).astype(int).ravel()
        lines.append(" ".join([table.names[i], *map(str, values)]))
    write(path, ("\n".join(lines) + "\n").encode())
