"""Aligning faces: five landmarks of each are brought onto a mean face by a similarity transform."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from imgtool.data.align_frame import warp
from imgtool.data.base import BadFile
from imgtool.data.celeba import IMAGE_FOLDERS, image_folder
from imgtool.data.celeba_tables import (
    ATTRIBUTE_STEMS,
    PARTITION_STEMS,
    Table,
    find_table,
    read_table,
    unlisted,
)
from imgtool.data.imagefiles import examine
from imgtool.data.images import BadImage, decode
from imgtool.data.landmarks import (
    COLUMNS,
    Points,
    mean_face,
    misfits,
    misplaced,
    read_landmarks,
    similarities,
)
from imgtool.data.making import Progress, Written, claim, save, write, write_all
from imgtool.data.synthetic.make import ImageFormat
from imgtool.errors import DataError, UsageError
from imgtool.files import replacing

FOLDER = "align_5p"
LANDMARKS_NAME = "list_landmarks_align_celeba.txt"
MIN_SIZE, MAX_SIZE = 16, 2048
_JPEG_QUALITY = 95
_NAMED = 5  # bad rows that an error names


@dataclass(frozen=True)
class Aligned:
    """What has been aligned.

    Attributes:
        path: the folder, again in CelebA's layout.
        num_images: aligned now or before.
        missing: names that the table of landmarks lists and that are not there.
        bad: images left out: they cannot be read, or their landmarks are no face in them.
        without_landmarks: names that the table of attributes lists and that of landmarks lacks.
        without_part: names that the table of attributes lists and that of parts lacks.
        several: how many faces were found, of photographs with more than one.
    """

    path: Path
    num_images: int
    missing: list[str]
    bad: list[BadFile] = field(default_factory=list)
    without_landmarks: list[str] = field(default_factory=list)
    without_part: list[str] = field(default_factory=list)
    elapsed_sec: float = 0.0
    several: dict[str, int] = field(default_factory=dict)

    @property
    def bad_files(self) -> list[str]:
        """Names of the images left out."""
        return [bad.name for bad in self.bad]


@dataclass(frozen=True)
class Tables:
    """Tables of a folder beside that of landmarks, as in Aligned."""

    paths: list[Path]
    without_landmarks: list[str] = field(default_factory=list)
    without_part: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Writing:
    """How aligned faces are written.

    Attributes:
        out: the new folder.
        folder: of the images in it.
        size: width and height of each.
    """

    out: Path
    folder: str
    size: tuple[int, int]
    image_format: ImageFormat
    workers: int
    skip_bad: bool
    progress: Progress | None
    dry_run: bool


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
        skip_bad: leave out images that cannot be read, or whose landmarks are no face in them.
        dry_run: read the tables and the images' headers, write nothing.

    Raises:
        UsageError: an option out of range, or `out` cannot be used.
        DataError: no landmarks, no images, or a bad image or row.
    """
    check_options(size, workers, image_format)
    root, started = Path(root), time.monotonic()
    faces = _find_faces(root, size)
    if faces.bad and not skip_bad:
        raise refusal(faces)
    recipe = {"what": "aligned faces", "size": size, "image_format": image_format}
    recipe["landmarks"] = hashlib.blake2b(faces.used.tobytes(), digest_size=8).hexdigest()
    writing = Writing(
        Path(out), FOLDER, (size, size), image_format, workers, skip_bad, progress, dry_run
    )
    return write_aligned(faces, other_tables(root, faces.table), recipe, writing, started)


def check_options(size: int, workers: int, image_format: str) -> None:
    """Raise UsageError for what is out of range."""
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise UsageError(
            f"--size is {size}: aligned faces have {MIN_SIZE} to {MAX_SIZE} pixels",
            hint="give --size 256",
        )
    if workers < 1:
        raise UsageError(
            f"--workers is {workers}: at least one process is needed", hint="give --workers 1"
        )
    if image_format not in ("png", "jpg"):
        raise UsageError(
            f"image format {image_format!r} is not png or jpg", hint="give --image-format png"
        )


# --- what is there --------------------------------------------------------------------------


@dataclass(frozen=True)
class Faces:
    """A folder's faces, by row of a table of landmarks.

    Attributes:
        table, points: of all rows.
        used: points that say what the mean face is; of what a folder's options are.
        steps: (rows, 2) similarities onto the frame, in its pixels.
        files: where the images lie; without those that are missing.
        missing: names of those.
        bad: what is wrong with an image, or with its row.
    """

    table: Table
    points: Points
    used: Points
    steps: Points
    files: dict[int, str]
    missing: list[str]
    bad: dict[int, str]


def _find_faces(root: Path, size: int) -> Faces:
    table, points = read_landmarks(root)
    source, found = image_folder(root, table.names, IMAGE_FOLDERS[1:])
    files = {i: str(source / found[name]) for i, name in enumerate(table.names) if name in found}
    if not files:
        raise DataError(
            f"{root}: none of the {len(table.names)} images of {table.path} is there",
            hint=f"looked in {', '.join(IMAGE_FOLDERS[1:-1])} and the folder itself",
        )
    try:
        no_faces = misfits(points, mean_face(points))
        used = points[[row not in no_faces for row in range(len(points))]]
        mean = mean_face(used if len(used) else points)
    except DataError as error:
        raise DataError(f"{table.path}: {error}", hint=error.hint) from error
    steps = similarities(points, mean)
    bad = {row: reason for row, reason in no_faces.items() if row in files}
    rows = [row for row in files if row not in bad]
    headers = dict(zip(rows, examine([files[row] for row in rows], verify=False), strict=True))
    bad |= {row: h.reason for row, h in headers.items() if isinstance(h, BadImage)}
    rows = [row for row in rows if row not in bad]
    sizes = np.array([headers[row].size for row in rows]).reshape(-1, 2)  # type: ignore[union-attr]
    wrong = misplaced(points[rows], steps[rows], sizes)
    bad |= {rows[position]: reason for position, reason in wrong.items()}
    missing = [name for name in table.names if name not in found]
    faces = Faces(table, points, used, steps * size, files, missing, bad)
    if len(bad) == len(files):
        raise refusal(faces)
    return faces


def refusal(faces: Faces, all_bad: str = "is this the table of these images?") -> DataError:
    """What is wrong with the first bad row, and the names of more.

    Args:
        all_bad: a hint, where that is true of all.
    """
    first, *others = sorted(faces.bad)
    names = faces.table.names
    more = ", ".join(names[row] for row in others[:_NAMED])
    more += " ..." if len(others) > _NAMED else ""
    if len(faces.bad) == len(faces.files):
        hint = f"all that are there are bad: {all_bad}"
    else:
        hint = "--skip-bad leaves them out; with --dry-run it lists them all"
    return DataError(
        f"{faces.table.path}: {names[first]}: {faces.bad[first]}"
        + (f" (and {len(others)} more: {more})" if others else ""),
        hint=hint,
    )


def _outputs(faces: Faces, folder: str, image_format: str) -> dict[int, str]:
    """File of each good row, relative to the new folder."""
    outputs: dict[int, str] = {}
    taken: dict[str, str] = {}
    for row in faces.files:
        name = faces.table.names[row]
        if row in faces.bad:
            continue
        outputs[row] = f"{folder}/{Path(name).stem}.{image_format}"
        known = taken.setdefault(outputs[row], name)
        if known != name:
            raise DataError(
                f"{faces.table.path}: {known} and {name} would both become {outputs[row]}",
                hint="remove or rename one of them",
            )
    return outputs


def other_tables(root: Path, landmarks: Table) -> Tables:
    """The tables to copy, and what the table of attributes lists beyond the others."""
    attributes, parts = (find_table(root, stems) for stems in (ATTRIBUTE_STEMS, PARTITION_STEMS))
    tables = [path for path in (attributes, parts) if path is not None]
    if attributes is None:
        return Tables(tables)
    names, known = read_table(attributes).names, set(landmarks.names)
    without_landmarks = [name for name in names if name not in known]
    return Tables(tables, without_landmarks, unlisted(names, root, PARTITION_STEMS) or [])


# --- the work -------------------------------------------------------------------------------


def write_aligned(
    faces: Faces, tables: Tables, recipe: dict[str, Any], writing: Writing, started: float
) -> Aligned:
    """Write the faces that are not bad, their landmarks, and copies of the other tables.

    Raises:
        UsageError: the folder cannot be used.
        DataError: an image cannot be decoded, or two would become one.
    """
    folder, outputs = writing.out, _outputs(faces, writing.folder, writing.image_format)
    names = {*outputs.values(), LANDMARKS_NAME, *(path.name for path in tables.paths)}
    claim(folder, recipe, names, dry_run=writing.dry_run)
    bad, good = dict(faces.bad), list(outputs)
    if not writing.dry_run:
        units = [
            (i, faces.files[i], str(folder / outputs[i]), *faces.steps[i].tolist()) for i in good
        ]
        one = partial(_align_one, writing.size, writing.skip_bad)
        written = write_all(one, units, len(units), writing.workers, writing.progress)
        bad |= {int(row[0]): row[1] for row, num_bytes in written if num_bytes == 0}
        good = [i for i in good if i not in bad]
        _write_landmarks(folder / LANDMARKS_NAME, faces, good)
        for path in tables.paths:
            with replacing(folder / path.name) as temporary:
                shutil.copyfile(path, temporary)
    left_out = [BadFile(faces.table.names[i], bad[i]) for i in sorted(bad)]
    return Aligned(
        folder, len(good), faces.missing, left_out, tables.without_landmarks,
        tables.without_part, time.monotonic() - started,
    )  # fmt: skip


def _align_one(
    size: tuple[int, int], skip_bad: bool, unit: tuple[int, str, str, complex, complex]
) -> Written:
    row, source, out, scale, shift = unit
    path = Path(out)
    if path.exists():  # whole, from a run that was interrupted
        return [((str(row),), path.stat().st_size)]
    try:
        image, _ = decode(source)
    except BadImage as error:
        if skip_bad:
            return [((str(row), error.reason), 0)]
        raise DataError(str(error), hint="--skip-bad leaves out what cannot be read") from error
    picture = warp(image, scale, shift, size)
    if path.suffix == ".png":
        return [((str(row),), save(picture, path, "PNG", compress_level=3))]
    return [((str(row),), save(picture, path, "JPEG", quality=_JPEG_QUALITY, subsampling=0))]


def _write_landmarks(path: Path, faces: Faces, rows: Sequence[int]) -> None:
    lines = [str(len(rows)), " ".join(COLUMNS)]
    for i in rows:
        scale, shift = faces.steps[i]
        moved = np.round(scale * faces.points[i] + shift - (0.5 + 0.5j))
        values = np.stack([moved.real, moved.imag], axis=1).astype(int).ravel()
        lines.append(" ".join([faces.table.names[i], *map(str, values)]))
    write(path, ("\n".join(lines) + "\n").encode())
