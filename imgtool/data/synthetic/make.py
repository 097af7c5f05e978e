"""Folders of procedural images.

A picture follows from (seed, its number) alone: how many are made, and by how many processes,
changes nothing. Each file is written in one step, so a run that was killed is simply repeated.
"""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from PIL import Image

from imgtool import files
from imgtool.data.synthetic import layouts, photos
from imgtool.errors import DataError, UsageError

Progress = Callable[[int, int], None]
ImageFormat = Literal["png", "jpg"]
MARKER = "made.json"
MANIFEST = "layouts.csv"
COLUMNS = ("scene_id", "type", "room_id", "layout_path", "is_empty")
GENERATION = 1  # counts changes of what the pictures look like
MIN_SIZE, MAX_SIZE = 64, 8192
MAX_IMAGES = 1_000_000
JPEG_QUALITY = 92

Unit = TypeVar("Unit")
Written = list[tuple[Sequence[str], int]]  # a row of the manifest and a file's bytes


@dataclass(frozen=True)
class Made:
    """What has been made.

    Attributes:
        path: what to train on: the manifest of layouts, the folder of photos.
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
    _claim(folder, {"what": "layouts", "size": size, "seed": seed}, names, dry_run=dry_run)
    if dry_run:
        return Made(folder / MANIFEST, num_images, None, time.monotonic() - started)
    write = partial(_write_scene, folder, seed, size)
    written = _write_all(write, list(enumerate(counts)), num_images, workers, progress)
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([COLUMNS, *(row for row, _ in written)])
    num_bytes = _write(folder / MANIFEST, table.getvalue().encode())
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
    recipe = {"what": "photos", "size": size, "seed": seed, "image_format": image_format}
    _claim(folder, recipe, set(names), dry_run=dry_run)
    if dry_run:
        return Made(folder, num_images, None, time.monotonic() - started)
    write = partial(_write_photo, folder, seed, size)
    written = _write_all(write, list(enumerate(names)), num_images, workers, progress)
    num_bytes = sum(count for _, count in written)
    return Made(folder, num_images, num_bytes, time.monotonic() - started)


def _check(num_images: int, size: int, seed: int, workers: int) -> None:
    if num_images < 1:
        raise UsageError(
            f"--n is {num_images}: there is nothing to make", hint="give --n 1 or more"
        )
    if num_images > MAX_IMAGES:
        raise UsageError(
            f"--n is {num_images}: more than {MAX_IMAGES} files in a folder serve nobody",
            hint=f"give --n {MAX_IMAGES} at most, or several folders of different --seed",
        )
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise UsageError(
            f"--size is {size}: the pictures need {MIN_SIZE} to {MAX_SIZE} pixels",
            hint=f"give --size {MIN_SIZE if size < MIN_SIZE else MAX_SIZE}",
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


# --- the folder -----------------------------------------------------------------------------


def _claim(folder: Path, recipe: dict[str, Any], names: set[str], *, dry_run: bool) -> None:
    """Make `folder` ours, or refuse it. Nothing but our own leftovers is ever removed."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", hint="give a new or empty folder")
    recipe = {**recipe, "generation": GENERATION}
    try:
        found = _files_in(folder)
        if found:
            _compare(folder, recipe)
        own = names | {MARKER, MANIFEST}
        leftovers = [name for name in found if _finished_name(name) in own and name not in own]
        others = sorted(set(found) - own - set(leftovers))
        if others:
            more = f" and {len(others) - 1} more files" if len(others) > 1 else ""
            raise UsageError(
                f"{folder} holds {others[0]}{more}, which this command does not make",
                hint="give a new or empty folder, or as large a --n as before",
            )
        if not dry_run:
            for name in leftovers:
                (folder / name).unlink(missing_ok=True)
            for parent in {(folder / name).parent for name in names}:
                parent.mkdir(parents=True, exist_ok=True)
            files.write_text(folder / MARKER, json.dumps(recipe) + "\n")
    except OSError as error:
        raise UsageError(
            f"cannot write {folder}: {error.strerror}", hint="check its permissions and the disk"
        ) from error


def _files_in(folder: Path) -> list[str]:
    """Every file below `folder`, as a relative path with slashes."""

    def refuse(error: OSError) -> None:
        raise error

    if not folder.exists():
        return []
    return [
        (Path(place) / name).relative_to(folder).as_posix()
        for place, _, names in os.walk(folder, onerror=refuse)
        for name in names
    ]


def _finished_name(name: str) -> str:
    """The file that a temporary file would have become; `name` itself for any other."""
    place, _, last = name.rpartition("/")
    stem, mark, _ = last.partition(files.TEMPORARY_MARK)
    if not mark or not stem.startswith("."):
        return name
    return f"{place}/{stem[1:]}" if place else stem[1:]


def _compare(folder: Path, recipe: dict[str, Any]) -> None:
    """Refuse a folder that was not made with the same options."""
    try:
        before = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"{folder} is not empty, and this command did not make it",
            hint="give a new or empty folder",
        ) from None
    except ValueError:
        before = None
    if before != recipe:
        options = dict(before) if isinstance(before, dict) else {}
        what = options.pop("what", "something")
        told = ", ".join(f"{key} {value}" for key, value in options.items())
        raise UsageError(
            f"{folder} holds {what} made with other options ({told or 'unreadable'})",
            hint="give the same options or another folder",
        )


# --- the files ------------------------------------------------------------------------------


def _write_scene(folder: Path, seed: int, size: int, unit: tuple[int, int]) -> Written:
    scene, count = unit
    written: Written = []
    for layout in layouts.draw_scene(seed, scene, size, limit=count):
        name = f"images/{layout.file_name}"
        empty = "true" if layout.is_empty else "false"
        row = (layout.scene_id, layout.type, layout.room_id, name, empty)
        written.append((row, _save(layout.image, folder / name, "PNG", compress_level=6)))
    return written


def _write_photo(folder: Path, seed: int, size: int, unit: tuple[int, str]) -> Written:
    index, name = unit
    image = Image.fromarray(photos.draw_photo(seed, index, size))
    if name.endswith(".jpg"):
        num_bytes = _save(image, folder / name, "JPEG", quality=JPEG_QUALITY)
    else:  # noise hardly compresses: higher levels take thrice the time for 5 % less
        num_bytes = _save(image, folder / name, "PNG", compress_level=3)
    return [((name,), num_bytes)]


def _save(image: Image.Image, path: Path, kind: str, **options: int) -> int:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return _write(path, buffer.getvalue())


def _write(path: Path, content: bytes) -> int:
    try:
        files.write_bytes(path, content)
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror}",
            hint="free some space, then repeat the same command",
        ) from error
    return len(content)


# --- the work -------------------------------------------------------------------------------


def _write_all(
    write: Callable[[Unit], Written],
    units: Sequence[Unit],
    num_images: int,
    workers: int,
    progress: Progress | None,
) -> Written:
    written: Written = []
    for part in _mapped(write, units, min(workers, len(units))):
        written += part
        if progress is not None:
            progress(len(written), num_images)
    return written


def _mapped(
    write: Callable[[Unit], Written], units: Sequence[Unit], workers: int
) -> Iterator[Written]:
    """Results in the units' order."""
    if workers == 1:
        yield from map(write, units)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare_worker)
    try:
        yield from pool.map(write, units, chunksize=4)
    except BrokenProcessPool as error:
        raise DataError(
            "a process that makes images was killed", hint="repeat it with --workers 1"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_worker() -> None:
    """Leave Ctrl-C to the parent, and never outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
