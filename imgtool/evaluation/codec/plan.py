"""Which images become which files, and the other way round. Without torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imgtool.data.images import SUFFIXES, open_file
from imgtool.errors import DataError, NoAnswer, OutOfMemory, UsageError

STREAM_SUFFIX = ".hpcm"
PICTURE_SUFFIX = ".png"
MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class Job:
    """One file that becomes another one."""

    source: Path
    target: Path


def plan_compression(words: Sequence[str], out: str | None) -> list[Job]:
    """Which images become which files.

    Args:
        words: images, and folders that are searched for them, deeply.
        out: a file for one image; a folder for several, in which what came from a folder lies
            as it did there; None for files beside the images.

    Raises:
        UsageError: no images, two for one file, or `out` is of the other kind.
        DataError: a folder cannot be read, or has no images.
    """
    return _plan(words, out, SUFFIXES, STREAM_SUFFIX)


def plan_decompression(words: Sequence[str], out: str) -> list[Job]:
    """As `plan_compression`, from .hpcm files to PNGs."""
    return _plan(words, out, frozenset({STREAM_SUFFIX}), PICTURE_SUFFIX)


def _plan(words: Sequence[str], out: str | None, reads: frozenset[str], suffix: str) -> list[Job]:
    if not words:
        raise UsageError("no files are named", hint="name files or folders; `-` reads their names")
    if out is None:
        beside = [source for word in words for source, _ in _entries(Path(word), reads)]
        return _once(Job(source, source.with_suffix(suffix)) for source in beside)
    target = Path(out)
    into_folder = target.is_dir() or out.endswith(os.sep)
    if len(words) == 1 and not Path(words[0]).is_dir() and not into_folder:
        if target.suffix.lower() != suffix:
            raise UsageError(
                f"-o {out} is no name of a {suffix} file",
                hint=f"NAME{suffix}, or a folder with a {os.sep} at its end",
            )
        return [Job(Path(words[0]), target)]
    if target.exists() and not target.is_dir():
        raise UsageError(f"-o {out} is a file", hint="several files go to a folder")
    found = [entry for word in words for entry in _entries(Path(word), reads)]
    return _once(Job(source, (target / name).with_suffix(suffix)) for source, name in found)


def _once(jobs: Iterable[Job]) -> list[Job]:
    """Each job once.

    Raises:
        UsageError: two files would become one.
    """
    taken: dict[str, Job] = {}
    for job in jobs:
        folder = os.path.realpath(job.target.parent)  # one folder may have several names
        other = taken.setdefault(os.path.join(folder, job.target.name), job)
        if os.path.realpath(other.source) != os.path.realpath(job.source):
            raise UsageError(
                f"{other.source} and {job.source} would both become {job.target}",
                hint="give them one after the other, with another -o",
            )
    return [*taken.values()]


def _entries(path: Path, reads: frozenset[str]) -> list[tuple[Path, Path]]:
    """Files, and their names below the output folder."""
    if not path.is_dir():
        return [(path, Path(path.name))]
    try:
        found = sorted(
            file.relative_to(path)
            for file in path.rglob("*")
            if file.suffix.lower() in reads
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
            and not file.is_dir()
        )
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if not found:
        kinds = ", ".join(sorted(suffix[1:] for suffix in reads))
        raise DataError(f"{path}: nothing to read in this folder", hint=f"looked for {kinds}")
    return [(path / name, name) for name in found]


def refuse_overwriting(jobs: Sequence[Job]) -> None:
    """Make sure that a plan writes only new files.

    Raises:
        UsageError: a file exists already.
    """
    there = [job.target for job in jobs if os.path.lexists(job.target)]
    if there:
        more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
        raise UsageError(f"{there[0]} exists already{more}", hint="--force overwrites")


def refuse_missing(image: Path) -> None:
    """Name a mistyped word for what it is.

    Raises:
        DataError: there is no such file.
    """
    try:
        os.stat(image)
    except (FileNotFoundError, NotADirectoryError):
        hint = "name images, or folders of them"
        raise DataError(f"{image}: no such file", hint=hint) from None
    except OSError:
        return  # the reader of images says what is wrong


def read_stream(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        DataError: it cannot be read, or is too large.
    """
    try:
        with open_file(path) as stream:
            data: bytes = stream.read(MAX_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"{path}: {reason}", hint="name an .hpcm file") from error
    if len(data) > MAX_BYTES:
        raise DataError(f"{path} has more than {MAX_BYTES} bytes", hint="name an .hpcm file")
    return data


@contextmanager
def naming(what: object) -> Iterator[None]:
    """Put what is being coded, such as a file, before what the codec says of it."""
    try:
        yield
    except (DataError, OutOfMemory, NoAnswer) as error:
        raise type(error)(f"{what}: {error}", hint=error.hint) from error
