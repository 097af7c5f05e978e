"""Writing a latents file: by several processes, by and by, whole or not there.

Until it is whole, OUT.partial holds it:

    zeros where the header will be · the tensors · (N,) uint8, 1 for each image that is done ·
    32 hexadecimal digits, the identity of what is being written · MARK

Without a header it is no safetensors file. An image counts as done after its rows are on the disk.
"""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imgtool.data.latent_contents import META_KEY, Contents, content_fingerprint
from imgtool.data.latent_statistics import scalars, statistics
from imgtool.data.latents import LatentsFile
from imgtool.data.tensors import MAX_HEADER_BYTES, TYPES, Entries, header_bytes, map_arrays
from imgtool.errors import DataError, UsageError
from imgtool.files import NOT_HERE, folders_for, sync_directory
from imgtool.units import format_bytes

MARK = b" imgtool encode: unfinished     "
IDENTITY_BYTES = 32
FOOTER_BYTES = IDENTITY_BYTES + len(MARK)
SYNC_SEC = 2.0  # between two marks of images as done: what a power cut costs
LARGEST_HALF = 65504.0


def partial_path(out: Path) -> Path:
    """Where a file lies until it is whole."""
    return out.with_name(f"{out.name}.partial")


@dataclass(frozen=True)
class _Places:
    """Where in a partial file things are."""

    header: int
    entries: Entries
    done: int
    footer: int
    total: int

    @classmethod
    def of(cls, contents: Contents) -> _Places:
        entries, length = contents.entries()
        # Room for the longest numbers: -1.7976931348623157e+308 has 24 characters.
        longest = {"shift": -1.7976931348623157e308, "scale": -1.7976931348623157e308}
        meta = contents.meta(**longest, fingerprint="0" * IDENTITY_BYTES)
        header = len(header_bytes(META_KEY, meta, entries))
        if header > MAX_HEADER_BYTES:
            raise DataError(
                f"the names of {len(contents.names)} images do not fit into one file",
                hint="encode subfolders into files of their own",
            )
        done = header + length
        footer = done + len(contents.names)
        return cls(header, entries, done, footer, footer + FOOTER_BYTES)

    def row(self, name: str, index: int) -> int:
        """Where an image's row of a tensor begins."""
        entry = self.entries[name]
        begin, end = entry["data_offsets"]
        return int(self.header + begin + index * ((end - begin) // entry["shape"][0]))


def file_bytes(contents: Contents) -> int:
    """Length of the whole file."""
    return _Places.of(contents).done


@contextmanager
def beginning(out: Path, contents: Contents, *, force: bool = False) -> Iterator[bool]:
    """Make OUT.partial, or go on with it, and keep others from it meanwhile.

    Of several processes the first does this; then all write through `LatentsWriter`, and within
    the block the first calls `finish`.

    Args:
        force: replace what is at `out`, and begin anew where OUT.partial holds something else.

    Yields:
        False where `out` is there and is the same already; nothing is left to do then.

    Raises:
        UsageError: `out` or OUT.partial is there and something else; another process is writing.
        DataError: the disk is full, or refuses.
    """
    partial, places = partial_path(out), _Places.of(contents)
    if is_there(out, contents, force=force):
        yield False
        return
    with ExitStack() as held:
        with _writing(out):
            held.enter_context(folders_for(out))
            handle = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
            held.callback(os.close, handle)
            _lock(handle, partial)
            if not _goes_on(handle, partial, contents, places, force):
                _prepare(handle, out, contents, places)
        yield True


class LatentsWriter:
    """Writes rows into OUT.partial, which `beginning` has made; one a process.

    To be closed, or used in a `with` block.

    Raises:
        DataError: the disk is full, or refuses.
    """

    def __init__(self, out: Path, contents: Contents) -> None:
        self.out, self.contents = out, contents
        self._places = _Places.of(contents)
        with _writing(out):
            self._handle = os.open(partial_path(out), os.O_RDWR)
        self._waiting: list[tuple[int, int]] = []
        self._synced = time.monotonic()

    def __enter__(self) -> LatentsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def done(self) -> NDArray[np.bool_]:
        """Which images are on the disk, (N,)."""
        with _writing(self.out):
            raw = os.pread(self._handle, len(self.contents.names), self._places.done)
        return np.frombuffer(raw, np.uint8) == 1

    def put(self, first: int, rows: Mapping[str, np.ndarray]) -> None:
        """Write consecutive images.

        Args:
            first: position of the first of them.
            rows: every tensor that has a row an image, but `part`; latents as float32 or as they
                are stored.

        Raises:
            DataError: a value is not finite, or too large for float16.
        """
        count = len(rows["mean"])
        with _writing(self.out):
            for name, values in rows.items():
                entry = self._places.entries[name]
                assert values.shape == (count, *entry["shape"][1:]), (name, values.shape)
                if name in self.contents.latents:
                    self._refuse(first, name, values)
                raw = np.ascontiguousarray(values, TYPES[entry["dtype"]])
                _write(self._handle, raw.reshape(-1).view(np.uint8), self._places.row(name, first))
            self._waiting.append((first, count))
            if time.monotonic() - self._synced >= SYNC_SEC:
                self._mark()

    def _refuse(self, first: int, name: str, values: np.ndarray) -> None:
        worst = np.abs(values).reshape(len(values), -1).max(1)
        limit = LARGEST_HALF if self.contents.dtype == "float16" else math.inf
        wrong = np.flatnonzero(~(np.isfinite(worst) & (worst <= limit)))
        if not len(wrong):
            return
        image, value = self.contents.names[first + int(wrong[0])], float(worst[wrong[0]])
        if math.isfinite(value):
            raise DataError(
                f"{image}: its latent ({name}) reaches {value:g}, float16 ends at {LARGEST_HALF:g}",
                hint="--dtype float32",
            )
        raise DataError(
            f"{image}: its latent ({name}) is not finite", hint="take another checkpoint"
        )

    def _mark(self) -> None:
        if self._waiting:
            os.fsync(self._handle)
            for first, count in self._waiting:
                _write(self._handle, np.ones(count, np.uint8), self._places.done + first)
            self._waiting.clear()
        self._synced = time.monotonic()

    def close(self) -> None:
        """Mark the rest as done."""
        if self._handle < 0:
            return
        handle, error = self._handle, None
        try:
            with _writing(self.out):
                self._mark()
                os.fsync(handle)
        except DataError as caught:
            error = caught
        self._handle = -1
        os.close(handle)
        if error is not None:
            raise error


def finish(out: Path, contents: Contents) -> LatentsFile:
    """Compute what is known at the end and let OUT.partial become OUT, when all images are done.

    Raises:
        DataError: there are no training images; the disk refuses.
    """
    partial, places = partial_path(out), _Places.of(contents)
    with _writing(out), open(partial, "r+b", buffering=0) as stream:
        handle = stream.fileno()
        marks = np.frombuffer(os.pread(handle, len(contents.names), places.done), np.uint8)
        assert marks.all(), "images are not done"
        _write(handle, contents.parts, places.row("part", 0))
        mean, deviation = statistics(map_arrays(partial, places.header, places.entries), contents)
        shift, scale = scalars(mean, deviation)
        # A channel that never changes stays what it is: normalised it is 0.
        deviation = np.where(deviation > np.finfo(np.float32).tiny, deviation, 1.0)
        for name, values in (("channel_mean", mean), ("channel_std", deviation)):
            raw = values.astype("<f4").view(np.uint8)
            _write(handle, raw, places.header + places.entries[name]["data_offsets"][0])
        arrays = map_arrays(partial, places.header, places.entries)
        fingerprint = content_fingerprint(contents, arrays)
        meta = contents.meta(shift=shift, scale=scale, fingerprint=fingerprint)
        header = header_bytes(META_KEY, meta, places.entries, room=places.header)
        os.fsync(handle)
        _write(handle, np.frombuffer(header, np.uint8), 0)
        os.fsync(handle)
        os.ftruncate(handle, places.done)
        os.fsync(handle)
        _put_in_place(out)
    return LatentsFile(out)


# --- what is there already ------------------------------------------------------------------


def is_there(out: Path, contents: Contents, *, force: bool = False) -> bool:
    """Whether a whole file is the same. Raises UsageError where it is not, and not to go."""
    if out.is_dir():
        raise UsageError(f"{out} is a folder", hint="name a file, such as latents.safetensors")
    if force or not os.path.lexists(out):
        return False
    try:
        found = LatentsFile(out).contents
    except DataError as error:
        raise UsageError(
            f"{out} exists and is no latents file", hint="--force replaces it"
        ) from error
    if found.identity == contents.identity:
        return True
    raise UsageError(
        f"{out} exists and is another encoding ({', '.join(contents.differences(found))})",
        hint="--force replaces it",
    )


def _goes_on(handle: int, partial: Path, contents: Contents, places: _Places, force: bool) -> bool:
    """Whether an open partial file holds the beginning of just this. Raises UsageError where it
    holds something else that is not to go.
    """
    size = os.fstat(handle).st_size
    footer = os.pread(handle, FOOTER_BYTES, max(0, size - FOOTER_BYTES))
    if footer == contents.identity.encode() + MARK and size == places.total:
        return True
    if size == 0 or force:
        return False
    if footer.endswith(MARK):
        raise UsageError(
            f"{partial} is the beginning of another encoding",
            hint="give the options and data that it was begun with, or --force to begin anew",
        )
    with suppress(DataError):
        if LatentsFile(partial).contents.identity == contents.identity:
            return _with_footer(handle, contents, places)
    if not any(footer) and not any(os.pread(handle, 8, 0)):  # killed while it was made
        return False
    raise UsageError(
        f"{partial} is in the way", hint="move it elsewhere, or --force to write over it"
    )


def _with_footer(handle: int, contents: Contents, places: _Places) -> bool:
    """Of a file that was whole but for its name: as before the end, with all images done."""
    os.ftruncate(handle, places.total)
    _write(handle, np.ones(len(contents.names), np.uint8), places.done)
    _write_footer(handle, contents, places)
    return True


def _lock(handle: int, partial: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"{partial} is being written by another process", hint="wait for it, or end it"
        ) from None
    except OSError as error:
        if error.errno not in NOT_HERE:
            raise
    mine = os.fstat(handle)
    with suppress(FileNotFoundError):
        theirs = os.stat(partial)
        if (mine.st_dev, mine.st_ino) == (theirs.st_dev, theirs.st_ino):
            return
    raise UsageError(f"another process has just finished {partial}", hint="run the command again")


def _prepare(handle: int, out: Path, contents: Contents, places: _Places) -> None:
    """Get the room, and say last of all what it is for; without room nothing is left."""
    try:
        _allocate(handle, out, places)
        _write_footer(handle, contents, places)
    except BaseException:
        partial_path(out).unlink()
        raise


def _allocate(handle: int, out: Path, places: _Places) -> None:
    os.ftruncate(handle, 0)
    free = shutil.disk_usage(out.parent).free
    if places.total > free:
        raise DataError(
            f"{out}: needs {format_bytes(places.total)}, {format_bytes(free)} are free",
            hint="--dtype float16 halves it; --flips and --logvar double it",
        )
    try:
        os.posix_fallocate(handle, 0, places.total)
    except OSError as error:
        if error.errno not in NOT_HERE:
            raise
        os.ftruncate(handle, places.total)
    os.fsync(handle)


def _write_footer(handle: int, contents: Contents, places: _Places) -> None:
    footer = np.frombuffer(contents.identity.encode() + MARK, np.uint8)
    _write(handle, footer, places.footer)
    os.fsync(handle)


def _put_in_place(out: Path) -> None:
    with suppress(OSError):
        os.chmod(partial_path(out), out.stat().st_mode & 0o7777)
    os.replace(partial_path(out), out)
    sync_directory(out.parent)


def _write(handle: int, raw: NDArray[np.uint8], position: int) -> None:
    view = raw.data
    while view:
        count = os.pwrite(handle, view, position)
        view, position = view[count:], position + count


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {out}: {(error.strerror or str(error)).lower()}",
            hint="check the folder, its permissions and the free space",
        ) from error
