"""Aligning photographs, in which faces are found first."""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imgtool.data import detection
from imgtool.data.align import (
    FOLDER,
    Aligned,
    Faces,
    Tables,
    Writing,
    check_options,
    other_tables,
    refusal,
    write_aligned,
)
from imgtool.data.align_frame import CELEBA, Frame, square_frame
from imgtool.data.base import Image8
from imgtool.data.celeba_tables import Table, read_table
from imgtool.data.images import BadImage, decode
from imgtool.data.landmarks import (
    COLUMNS,
    Points,
    mean_face,
    misfits,
    misplaced,
    similarities,
)
from imgtool.data.making import Progress, mapped
from imgtool.data.photos import image_names
from imgtool.data.synthetic.make import ImageFormat
from imgtool.errors import DataError, UsageError

CELEBA_FOLDER = "img_align_celeba"
NO_FACE = "no face was found in it"


class _Looked(NamedTuple):
    """What one photograph shows: its size, landmarks (5,) and number of faces, or what is wrong."""

    size: tuple[int, int] = (0, 0)
    points: Points | None = None
    num_faces: int = 0
    reason: str = ""


def align_photographs(
    root: str | Path,
    out: str | Path,
    *,
    size: int | None = None,
    face: int | None = None,
    image_format: ImageFormat = "jpg",
    workers: int = 1,
    skip_bad: bool = False,
    progress: Progress | None = None,
    dry_run: bool = False,
) -> Aligned:
    """Find a face in every photograph below `root`, and align it as CelebA's are.

    Args:
        root: a folder of photographs, looked through deeply.
        out: a new or empty folder, or one that this made with the same options.
        size: width and height of squares, as `align` makes them; CelebA's 178x218 when None.
        face: which of several is taken, counted from the left; the largest when None.
        skip_bad: leave out photographs that cannot be read, or have no such face.
        dry_run: look for faces, write nothing.

    Raises:
        UsageError: an option out of range, the package is missing, or `out` cannot be used.
        DataError: no photographs, or a bad one.
    """
    check_options(CELEBA.width if size is None else size, workers, image_format)
    detection.open_detector()
    root, out, started = Path(root), Path(out), time.monotonic()
    paths = _photographs(root, out)
    frame = CELEBA if size is None else square_frame(size)
    looked = _look_at(paths, face, workers, progress)
    faces = _faces(root, paths, looked, frame)
    if faces.bad and (not skip_bad or len(faces.bad) == len(faces.files)):
        raise refusal(faces, "a face must be upright, turned to the camera and 20 pixels wide")
    recipe = {
        "what": "aligned photographs",
        "size": f"{frame.width}x{frame.height}",
        "image_format": image_format,
        "face": face or "the largest",
        "by": detection.about(),
        "files": _fingerprint(paths),
    }
    writing = Writing(
        out=out,
        folder=CELEBA_FOLDER if size is None else FOLDER,
        size=(frame.width, frame.height),
        image_format=image_format,
        workers=workers,
        skip_bad=skip_bad,
        progress=_second_half(progress),
        dry_run=dry_run,
    )
    aligned = write_aligned(faces, _own_tables(root, faces.table), recipe, writing, started)
    names = faces.table.names
    several = {names[i]: one.num_faces for i, one in enumerate(looked) if one.num_faces > 1}
    return replace(aligned, several=several)


def unfit(points: Points, steps: Points, sizes: NDArray[np.int_], frame: Frame) -> dict[int, str]:
    """Faces that cannot be aligned: no face by their landmarks, or not in their picture; and why.

    Args:
        points: (N, 5) in pixels of the pictures.
        steps: (N, 2), similarities onto the frame.
        sizes: (N, 2), height and width of the pictures.
    """
    height = frame.height / frame.width
    reasons = misplaced(points, steps / frame.width, sizes, height=height, alike=False)
    return reasons | misfits(points, mean_face(frame.face[None]))


def _photographs(root: Path, out: Path) -> list[Path]:
    if not root.is_dir():
        what = "not a folder" if root.exists() else "no such folder"
        raise DataError(f"{root}: {what}", hint="give a folder of photographs")
    if out.resolve().is_relative_to(root.resolve()):
        raise UsageError(
            f"{out} lies in {root}, whose photographs are aligned", hint="give a folder elsewhere"
        )
    paths = [root / name for name in sorted(image_names(root))]
    if not paths:
        raise DataError(f"{root}: no photographs in this folder", hint="looked for them deeply")
    return paths


def _look_at(
    paths: list[Path], face: int | None, workers: int, progress: Progress | None
) -> list[_Looked]:
    threads = None if workers == 1 else 1
    looked = []
    for one in mapped(partial(_look, face, threads), paths, min(workers, len(paths))):
        looked.append(one)
        if progress is not None:
            progress(len(looked), 2 * len(paths))
    return looked


def _look(face: int | None, threads: int | None, path: Path) -> _Looked:
    try:
        image, _ = decode(path)
    except BadImage as error:
        return _Looked(reason=error.reason)
    found = _detector(threads)(image)
    if not found:
        return _Looked(reason=NO_FACE)
    try:
        chosen = found[detection.choose(found, face, "it")]
    except UsageError as error:
        return _Looked(reason=str(error))
    height, width = image.shape[:2]
    return _Looked((height, width), chosen.points, len(found))


@cache
def _detector(threads: int | None) -> Callable[[Image8], list[detection.Found]]:
    return detection.open_detector(threads)


def _faces(root: Path, paths: list[Path], looked: list[_Looked], frame: Frame) -> Faces:
    nowhere = np.full(5, np.nan + 0j)
    points = np.array([nowhere if one.points is None else one.points for one in looked])
    steps = similarities(points, frame.face)
    bad = {row: one.reason for row, one in enumerate(looked) if one.reason}
    good = [row for row in range(len(looked)) if row not in bad]
    if good:
        sizes = np.array([looked[row].size for row in good])
        wrong = unfit(points[good], steps[good], sizes, frame)
        bad |= {good[at]: reason for at, reason in wrong.items()}
    values = np.stack([points.real, points.imag], axis=2).reshape(len(points), 10)
    table = Table(root, COLUMNS, _names(root, paths), values)
    files = {row: str(path) for row, path in enumerate(paths)}
    return Faces(table, points, points, steps, files, [], bad)


def _names(root: Path, paths: list[Path]) -> list[str]:
    """What the photographs are called in tables, whose cells have no spaces and commas."""
    stems = Counter(path.stem for path in paths)
    names = [
        path.name if stems[path.stem] == 1 else "_".join(path.relative_to(root).parts)
        for path in paths
    ]
    return [re.sub(r"[^\w.+-]", "_", name) for name in names]


def _own_tables(root: Path, landmarks: Table) -> Tables:
    """Tables of these photographs, as of CelebA's originals; not any that lie above the folder."""
    tables, known = other_tables(root, landmarks), set(landmarks.names)
    return tables if any(known & set(_listed(path)) for path in tables.paths) else Tables([])


def _listed(path: Path) -> list[str]:
    return read_table(path, default_columns=()).names


def _fingerprint(paths: list[Path]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path in paths:
        digest.update(f"{path.name}\0{path.stat().st_size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _second_half(progress: Progress | None) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total: progress(total + done, 2 * total)
