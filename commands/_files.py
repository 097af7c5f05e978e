"""Files that a command writes: looked at before the work, written after it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgtool.errors import DataError


def refuse_what_exists(path: Path, *, force: bool) -> None:
    """Make sure that a command writes a new file, unless --force lets it replace one.

    Raises:
        UsageError: the file exists already.
    """
    from imgtool.errors import UsageError

    if not force and os.path.lexists(path):
        raise UsageError(f"{path} exists already", hint="--force overwrites; or another name")


def see_that_it_can_be_written(path: Path) -> None:
    """Before the work, not after it.

    Raises:
        DataError: it cannot.
    """
    from imgtool.files import folders_for, temporary_beside

    try:
        with folders_for(path, always=True):
            if path.is_dir():
                raise IsADirectoryError(21, "it is a folder")
            probe = temporary_beside(path)
            probe.write_bytes(b"")
            probe.unlink()
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> DataError:
    """The error of a file that cannot be written."""
    from imgtool.errors import DataError

    return DataError(
        f"cannot write {path}: {error.strerror or error}", hint="check the disk and permissions"
    )


def write_records(path: Path, kind: str, records: Sequence[Mapping[str, Any]]) -> None:
    """One record a line, as on stdout; atomically.

    Raises:
        DataError: the disk refuses.
    """
    import json

    from commands._output import SCHEMA, plain
    from imgtool.files import write_text

    lines = [json.dumps({"schema": SCHEMA, "kind": kind, **plain(dict(row))}) for row in records]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "\n".join(lines) + "\n")
    except OSError as error:
        raise cannot_write(path, error) from error
