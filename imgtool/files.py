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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path; when the block ends well, it becomes `path` in one step.

    On any error the temporary file is removed and `path` is what it was.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    try:
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        with suppress(OSError):  # a replaced file keeps its permissions
            os.chmod(temporary, path.stat().st_mode & 0o7777)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


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
