"""Files that are either whole or not there: temporary name, fsync, rename.

Where a file system lacks links, what should be one is what it has instead.
"""

from __future__ import annotations

import errno
import os
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Literal

TEMPORARY_MARK = ".tmp-"
_TEMPORARY = re.compile(rf"\..+{re.escape(TEMPORARY_MARK)}(\d+)-([0-9a-f]{{8}})", re.ASCII)
MAX_NAME_BYTES = 255
ABANDONED_SEC = 86400.0  # unchanged for so long, a temporary file of another machine is nobody's
POINTER_START = "imgtool: there are no links on this file system; this is "
MAX_POINTER_BYTES = 1024
# A file system that lacks a call says one of these; a disk that fails says something else.
NOT_HERE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM)
LinkKind = Literal["symbolic link", "hard link", "pointer file"]

_cleaned: set[Path] = set()


# --- temporary files ------------------------------------------------------------------------


def temporary_beside(path: Path) -> Path:
    """A name in the same directory that no reader takes for the file itself."""
    end, name, raw = f"{TEMPORARY_MARK}{os.getpid()}-{here()}", path.name, os.fsencode(path.name)
    if len(raw) + len(end) >= MAX_NAME_BYTES:
        name = f"{zlib.crc32(raw):08x}{raw[len(end) + 9 :].decode(errors='ignore')}"
    return path.with_name(f".{name}{end}")


@cache
def here() -> str:
    """Eight hexadecimal digits for where process numbers mean what they do here."""
    name = os.uname().nodename
    with suppress(OSError):
        name += os.readlink("/proc/self/ns/pid")
    return f"{zlib.crc32(name.encode()):08x}"


def remove_abandoned(folder: Path) -> None:
    """Remove what killed writers of ours left half-written in `folder`; looks once a process."""
    folder = Path(folder).absolute()
    if folder in _cleaned:
        return
    _cleaned.add(folder)
    with suppress(OSError), os.scandir(folder) as items:
        for found in filter(None, [_TEMPORARY.fullmatch(item.name) for item in items]):
            if _is_abandoned(folder / found[0], *found.groups()):
                remove_temporary(folder / found[0])


def _is_abandoned(path: Path, pid: str, where: str) -> bool:
    if where == here():
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            pass
        return False
    with suppress(OSError):
        inside = path.iterdir() if path.is_dir() and not path.is_symlink() else ()
        last: float = max(one.lstat().st_mtime for one in (path, *inside))
        return time.time() > last + ABANDONED_SEC
    return False


def remove_temporary(path: Path) -> None:
    """Remove a temporary file, or a temporary folder and the files in it; never deeper."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            for inside in path.iterdir():
                inside.unlink()
            path.rmdir()
        else:
            path.unlink()


# --- whole files ----------------------------------------------------------------------------


def sync_directory(path: Path) -> None:
    """Make a rename in `path` survive a power cut, where the file system can."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sync(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NOT_HERE:
            raise


def _put_in_place(temporary: Path, path: Path, mode: int | None) -> None:
    """fsync, permissions (those of the file that is replaced, else `mode`), rename."""
    with open(temporary, "rb+") as handle:
        _sync(handle.fileno())
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
    remove_abandoned(path.parent)
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
    remove_abandoned(path.parent)
    folder = temporary_beside(path)
    remove_temporary(folder)
    folder.mkdir()
    try:
        yield folder / path.name
        _put_in_place(folder / path.name, path, folder.stat().st_mode & 0o666)
    finally:
        remove_temporary(folder)
    sync_directory(path.parent)


@contextmanager
def replacing_files_of(folder: Path) -> Iterator[Path]:
    """Give a temporary folder; when the block ends well, the files in it are files of `folder`.

    One that is not there, or is empty, comes in one step. In another, files of the same names are
    replaced one by one, each whole, and all others stay. On any error before that nothing changes.
    """
    folder = Path(os.path.realpath(folder))
    remove_abandoned(folder.parent)
    temporary = temporary_beside(folder)
    remove_temporary(temporary)
    temporary.mkdir()
    try:
        yield temporary
        files, mode = sorted(temporary.iterdir()), temporary.stat().st_mode & 0o666
        for path in files:
            if (folder / path.name).is_dir():
                raise IsADirectoryError(errno.EISDIR, "a folder is in the way", folder / path.name)
            with open(path, "rb+") as handle:
                _sync(handle.fileno())
            with suppress(OSError):
                os.chmod(path, mode)
        sync_directory(temporary)
        try:
            os.rename(temporary, folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            for path in files:
                _put_in_place(path, folder / path.name, mode)
            sync_directory(folder)
    finally:
        remove_temporary(temporary)
    sync_directory(folder.parent)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def folders_for(path: Path, *, always: bool = False) -> Iterator[None]:
    """Make the folders above `path`; on an error those that are new and empty go again.

    Args:
        always: they go in any case, as of a file that was written to see that it can be.
    """
    missing = [folder for folder in path.absolute().parents if not folder.exists()]
    ended_well = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
        ended_well = not always
    finally:
        if not ended_well:
            with suppress(OSError):
                for folder in missing:
                    folder.rmdir()


# --- files that mean another one ------------------------------------------------------------


def point(link: Path, target: str, *, target_changes: bool = False) -> LinkKind:
    """Let `link` mean `target`, in one step: a symlink, a hard link, or a file with its name.

    The first of these that the file system has is taken; `followed` understands each.

    Args:
        target: relative to the link's folder.
        target_changes: it is replaced by others of its name, which hard links do not follow.

    Returns:
        what it has become.

    Raises:
        OSError: not even a small file can be written.
    """
    remove_abandoned(link.parent)
    temporary = temporary_beside(link)
    remove_temporary(temporary)
    try:
        kind = _make_link(temporary, target, link.parent / target, target_changes)
        os.replace(temporary, link)
    finally:
        # Of two names of one file, a rename leaves both.
        with suppress(OSError):
            temporary.unlink()
    return kind


def links_note(kind: LinkKind) -> tuple[str, ...]:
    """What a person should know of a folder's `latest` and `best`."""
    if kind == "symbolic link":
        return ()
    return (f"no symbolic links on this file system: latest and best are {kind}s",)


def _make_link(temporary: Path, target: str, meant: Path, target_changes: bool) -> LinkKind:
    # What is wrong is often another error than EPERM; what else may be wrong, the last way says.
    with suppress(OSError):
        os.symlink(target, temporary)
        return "symbolic link"
    if not target_changes:
        with suppress(OSError):
            os.link(meant, temporary)
            return "hard link"
    temporary.write_text(f"{POINTER_START}{target}\n", encoding="utf-8")
    return "pointer file"


def pointer_of(path: Path) -> str | None:
    """What a symlink or a pointer file names; None of any other file."""
    try:
        if path.is_symlink():
            return os.readlink(path)
        if path.is_file() and path.stat().st_size <= MAX_POINTER_BYTES:
            text = path.read_bytes().decode()
            name = text.removeprefix(POINTER_START).removesuffix("\n")
            if text == f"{POINTER_START}{name}\n" and not {"", "/", ".."} & {*Path(name).parts}:
                return name or None
    except (OSError, ValueError):
        pass
    return None


def followed(path: Path) -> Path:
    """The file that a path means, absolute, symlinks and pointer files followed to their ends."""
    path = Path(os.path.realpath(path))
    for _ in range(8):
        name = pointer_of(path)
        if name is None:
            break
        path = Path(os.path.realpath(path.parent / name))
    return path
