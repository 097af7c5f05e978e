"""Folders of procedural images.

A picture follows from (seed, its number) alone: how many are made, and by how many processes,
changes nothing.
"""

from __future__ import annotations

import csv
import io
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from PIL import Image

from imgtool.data.making import Progress, Written, claim, save, write, write_all
from imgtool.data.synthetic import faces, layouts, photos
from imgtool.data.synthetic.facedrawing import draw_face
from imgtool.errors import UsageError

ImageFormat = Literal["png", "jpg"]
MANIFEST = "layouts.csv"
COLUMNS = ("scene_id", "type", "room_id", "layout_path", "is_empty")
_ERA = {"generation": 1}  # counts changes of what the pictures look like
MIN_SIZE, MAX_SIZE = 64, 8192
MAX_FACE_SIZE = 2048  # a face is drawn whole, in many planes
MAX_IMAGES = 1_000_000
JPEG_QUALITY = 92
FACES_FOLDER = "img_align_celeba"
ATTRIBUTE_TABLE = "list_attr_celeba.txt"
LANDMARK_TABLE = "list_landmarks_align_celeba.txt"
PARTITION_TABLE = "list_eval_partition.txt"
FACES_QUALITY = 95


@dataclass(frozen=True)
class Made:
    """What has been made.

    Attributes:
        path: what to train on: the manifest of layouts, the folder of photos or faces.
        num_bytes: of all images and the manifest; None after a dry run.
    """

    path: Path
    num_images: int
    num_bytes: int | None
    elapsed_sec: float


def make_layouts(
    out: str | Path,
    num_images: int,
    *,
    size: int = 512,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
    dry_run: bool = False,
) -> Made:
    """Floor plans: `out`/images/*.png, every pixel a palette colour, and `out`/layouts.csv.

    Args:
        out: a new or empty folder, or one that this function made with the same size and seed.
        num_images: how many; buildings (`scene`) and their single rooms (`room`) together.
        size: width and height in pixels, 64 or more.
        seed: not negative.
        workers: processes.
        progress: called with (images done, images in all).
        dry_run: check everything and write nothing.

    Raises:
        UsageError: a number out of range, or `out` cannot be used.
        DataError: writing failed on the way.
    """
    _check(num_images, size, seed, workers)
    counts = _scene_counts(seed, num_images)
    names = {
        f"images/{layouts.file_name(seed, scene, number)}"
        for scene, count in enumerate(counts)
        for number in range(count)
    }
    folder, started = Path(out), time.monotonic()
    claim(
        folder,
        {"what": "layouts", "size": size, "seed": seed, **_ERA},
        names | {MANIFEST},
        dry_run=dry_run,
    )
    if dry_run:
        return Made(folder / MANIFEST, num_images, None, time.monotonic() - started)
    one = partial(_write_scene, folder, seed, size)
    written = write_all(one, list(enumerate(counts)), num_images, workers, progress)
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([COLUMNS, *(row for row, _ in written)])
    num_bytes = write(folder / MANIFEST, table.getvalue().encode())
    num_bytes += sum(count for _, count in written)
    return Made(folder / MANIFEST, num_images, num_bytes, time.monotonic() - started)


def make_photos(
    out: str | Path,
    num_images: int,
    *,
    size: int = 512,
    seed: int = 0,
    image_format: ImageFormat = "png",
    workers: int = 1,
    progress: Progress | None = None,
    dry_run: bool = False,
) -> Made:
    """Pictures with the statistics of photographs: `out`/photo_000000.png and so on.

    The arguments and errors are those of make_layouts.
    """
    _check(num_images, size, seed, workers)
    if image_format not in ("png", "jpg"):
        raise UsageError(f"image format {image_format!r} is not png or jpg")
    names = [f"photo_{index:06d}.{image_format}" for index in range(num_images)]
    folder, started = Path(out), time.monotonic()
    recipe = {"what": "photos", "size": size, "seed": seed, "image_format": image_format, **_ERA}
    claim(folder, recipe, set(names), dry_run=dry_run)
    if dry_run:
        return Made(folder, num_images, None, time.monotonic() - started)
    one = partial(_write_photo, folder, seed, size)
    written = write_all(one, list(enumerate(names)), num_images, workers, progress)
    num_bytes = sum(count for _, count in written)
    return Made(folder, num_images, num_bytes, time.monotonic() - started)


def make_faces(
    out: str | Path,
    num_images: int,
    *,
    size: int | None = None,
    is_aligned: bool = False,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
    dry_run: bool = False,
) -> Made:
    """Faces in CelebA's layout: `out`/img_align_celeba/000001.jpg and so on, and its tables of
    attributes, landmarks and parts (of ten images eight train, one each val and test).

    The arguments and errors are those of make_layouts.

    Args:
        size: width and height in pixels, MAX_FACE_SIZE at most; None is CelebA's own 178x218.
        is_aligned: no head is turned, and all have their eyes in one place.
    """
    _check(num_images, faces.HEIGHT if size is None else size, seed, workers, MAX_FACE_SIZE)
    names = [f"{index + 1:06d}.jpg" for index in range(num_images)]
    tables = (ATTRIBUTE_TABLE, LANDMARK_TABLE, PARTITION_TABLE)
    folder, started = Path(out), time.monotonic()
    paths = {f"{FACES_FOLDER}/{name}" for name in names}
    kind = {**({"size": size} if size else {}), **({"aligned": True} if is_aligned else {})}
    recipe = {"what": "faces", **kind, "seed": seed, **_ERA}
    claim(folder, recipe, paths | set(tables), dry_run=dry_run)
    if dry_run:
        return Made(folder, num_images, None, time.monotonic() - started)
    one = partial(_write_face, folder, seed, size, is_aligned)
    written = write_all(one, list(enumerate(names)), num_images, workers, progress)
    first = f"{num_images}\n"
    heads = (first + " ".join(faces.ATTRIBUTES), first + " ".join(faces.LANDMARKS), "")
    num_bytes = sum(count for _, count in written)
    for column, (table, head) in enumerate(zip(tables, heads, strict=True)):
        lines = [f"{head}\n" if head else "", *(row[column] for row, _ in written)]
        num_bytes += write(folder / table, "".join(lines).encode())
    return Made(folder, num_images, num_bytes, time.monotonic() - started)


def _check(num_images: int, size: int, seed: int, workers: int, largest: int = MAX_SIZE) -> None:
    if num_images < 1:
        raise UsageError(
            f"--n is {num_images}: there is nothing to make", hint="give --n 1 or more"
        )
    if num_images > MAX_IMAGES:
        raise UsageError(
            f"--n is {num_images}: more than {MAX_IMAGES} files in a folder serve nobody",
            hint=f"give --n {MAX_IMAGES} at most, or several folders of different --seed",
        )
    if not MIN_SIZE <= size <= largest:
        raise UsageError(
            f"--size is {size}: the pictures need {MIN_SIZE} to {largest} pixels",
            hint=f"give --size {MIN_SIZE if size < MIN_SIZE else largest}",
        )
    if seed < 0:
        raise UsageError(f"--seed is {seed}: it cannot be negative", hint="give --seed 0 or more")
    if workers < 1:
        raise UsageError(
            f"--workers is {workers}: at least one process is needed", hint="give --workers 1"
        )


def _scene_counts(seed: int, num_images: int) -> list[int]:
    """How many pictures of each scene are wanted; of the last one perhaps not all."""
    counts, left = [], num_images
    for size in layouts.scene_sizes(seed):
        counts.append(min(size, left))
        left -= counts[-1]
        if left == 0:
            break
    return counts


# --- the files ------------------------------------------------------------------------------


def _write_scene(folder: Path, seed: int, size: int, unit: tuple[int, int]) -> Written:
    scene, count = unit
    written: Written = []
    for layout in layouts.draw_scene(seed, scene, size, limit=count):
        name = f"images/{layout.file_name}"
        empty = "true" if layout.is_empty else "false"
        row = (layout.scene_id, layout.type, layout.room_id, name, empty)
        written.append((row, save(layout.image, folder / name, "PNG", compress_level=6)))
    return written


def _write_photo(folder: Path, seed: int, size: int, unit: tuple[int, str]) -> Written:
    index, name = unit
    image = Image.fromarray(photos.draw_photo(seed, index, size))
    if name.endswith(".jpg"):
        num_bytes = save(image, folder / name, "JPEG", quality=JPEG_QUALITY)
    else:  # noise hardly compresses: higher levels take thrice the time for 5 % less
        num_bytes = save(image, folder / name, "PNG", compress_level=3)
    return [((name,), num_bytes)]


def _write_face(
    folder: Path, seed: int, size: int | None, is_aligned: bool, unit: tuple[int, str]
) -> Written:
    index, name = unit
    face = faces.random_face(seed, index)
    if is_aligned:
        face = faces.aligned(face)
    if size is not None:
        face = faces.squared(face, size)
    signs = "".join(f" {1 if holds else -1:2d}" for holds in faces.attributes(face).values())
    points = "".join(f" {value:4d}" for value in faces.landmarks(face))
    part = max(0, index % 10 - 7)
    row = (f"{name}{signs}\n", f"{name}{points}\n", f"{name} {part}\n")
    image, path = Image.fromarray(draw_face(face)), folder / FACES_FOLDER / name
    return [(row, save(image, path, "JPEG", quality=FACES_QUALITY, subsampling=0))]
