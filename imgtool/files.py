"""Files that are either whole or not there: temporary name, fsync, rename."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY_MARK = ".tmp-"


def temporary_beside(path: Path) -> Path:
    """A name in the same directory that no reader takes for the file itself."""
    return path.with_name(f".{path.name}{TEMPORARY_MARK}{os.getpid()}")


def sync_directory(path: Path) -> None:
    """Make a rename in `path` survive a power cut, where the file system can."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _put_in_place(temporary: Path, path: Path, mode: int | None) -> None:
    """fsync, permissions (those of the file that is replaced, else `mode`), rename."""
    with open(temporary, "rb+") as handle:
        os.fsync(handle.fileno())
    with suppress(OSError):
        mode = path.stat().st_mode & 0o7777
    if mode is not None:
        with suppress(OSError):
            os.chmod(temporary, mode)
    os.replace(temporary, path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path; when the block ends well, it becomes `path` in one step.

    On any error the temporary file is removed and `path` is what it was.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    try:
        yield temporary
        _put_in_place(temporary, path, None)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


@contextmanager
def replacing_through_folder(path: Path) -> Iterator[Path]:
    """As `replacing`, for libraries that leave files of their own beside their target.

    What they leave when they are killed lies in one folder with a temporary's name.
    """
    path = Path(path)
    folder = temporary_beside(path)
    remove_temporary(folder)
    folder.mkdir()
    try:
        yield folder / path.name
        _put_in_place(folder / path.name, path, folder.stat().st_mode & 0o666)
    finally:
        remove_temporary(folder)
    sync_directory(path.parent)


def remove_temporary(path: Path) -> None:
    """Remove a temporary file, or a temporary folder and the files in it; never deeper."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            for inside in path.iterdir():
                inside.unlink()
            path.rmdir()
        else:
            path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def point_symlink(link: Path, target_name: str) -> None:
    """Make `link` a relative symlink to `target_name` in the same directory, in one step."""
    temporary = temporary_beside(link)
    with suppress(FileNotFoundError):
        temporary.unlink()
    os.symlink(target_name, temporary)
    os.replace(temporary, link)
