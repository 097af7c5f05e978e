"""Folders of images that a command makes, file by file.

Each file is written in one step, so a run that was killed is simply repeated. A marker file says
with which options a folder was made, and no other folder is ever written to.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from imgtool import files
from imgtool.errors import DataError, UsageError

Progress = Callable[[int, int], None]
MARKER = "made.json"

Unit = TypeVar("Unit")
Result = TypeVar("Result")
Written = list[tuple[Sequence[str], int]]  # a row of a table and a file's bytes


# --- the folder -----------------------------------------------------------------------------


def claim(folder: Path, recipe: dict[str, Any], names: set[str], *, dry_run: bool) -> None:
    """Make `folder` ours, or refuse it. Nothing but our own leftovers is ever removed.

    Args:
        recipe: what decides the files' bytes; kept in the folder.
        names: of all files that will be there, relative.

    Raises:
        UsageError: it is a file, holds something else, or cannot be written.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file", hint="give a new or empty folder")
        found = _files_in(folder)
        own = names | {MARKER}
        leftovers = [name for name in found if _finished_name(name) in own and name not in own]
        if len(found) > len(leftovers):  # else it was killed before its first file, or is empty
            _compare(folder, recipe)
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
        (Path(parent) / name).relative_to(folder).as_posix()
        for parent, _, names in os.walk(folder, onerror=refuse)
        for name in names
    ]


def _finished_name(name: str) -> str:
    """The file that a temporary file would have become; `name` itself for any other."""
    parent, _, last = name.rpartition("/")
    stem, mark, _ = last.partition(files.TEMPORARY_MARK)
    if not mark or not stem.startswith("."):
        return name
    return f"{parent}/{stem[1:]}" if parent else stem[1:]


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


def save(image: Image.Image, path: Path, kind: str, **options: int) -> int:
    """Write an image; gives its bytes. Raises DataError."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return write(path, buffer.getvalue())


def write(path: Path, content: bytes) -> int:
    """Write a file in one step; gives its length. Raises DataError."""
    try:
        files.write_bytes(path, content)
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror}",
            hint="free some space, then repeat the same command",
        ) from error
    return len(content)


# --- the work -------------------------------------------------------------------------------


def write_all(
    write: Callable[[Unit], Written],
    units: Sequence[Unit],
    num_images: int,
    workers: int,
    progress: Progress | None,
) -> Written:
    """Write every unit's files, in several processes if wanted; rows in the units' order."""
    written: Written = []
    for part in mapped(write, units, min(workers, len(units))):
        written += part
        if progress is not None:
            progress(len(written), num_images)
    return written


def mapped(work: Callable[[Unit], Result], units: Sequence[Unit], workers: int) -> Iterator[Result]:
    """Results in the units' order, of several processes if wanted."""
    if workers <= 1:
        yield from map(work, units)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare_worker)
    try:
        yield from pool.map(work, units, chunksize=4)
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
