"""The checkpoints of a folder: which there are, and the newest that is whole.

Only names and headers are read, never a tensor, so this needs no torch.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from imgtool.errors import CheckpointError
from imgtool.experiment.checkpoint_file import (
    CHECKPOINT_NAME,
    CheckpointHeader,
    read_header,
    read_intact,
)
from imgtool.files import TEMPORARY_MARK, followed, pointer_of, remove_temporary

_OWN_NAME = (
    r"iter_\d+(?:_update_\d+)?\.(?:safetensors|pt)|(?:latest|best)\.(?:safetensors|pt)"
    r"|(?:status|provenance|split)\.json|config\.yaml|metrics\.jsonl|.+_metrics\.csv|probe"
    r"|iter_\d+_\w+\.png"
)
_END = rf"{re.escape(TEMPORARY_MARK)}\d+(?:-[0-9a-f]{{8}})?"  # versions of before named no machine
_LEFTOVER = re.compile(rf"\.(?:{_OWN_NAME}){_END}", re.ASCII)


@dataclass(frozen=True)
class Entry:
    """A checkpoint by its name alone; it may be damaged.

    Attributes:
        path: where it lies.
        iteration: the number in its name: complete iterations.
        update: the second number, if there is one: updates done of the next iteration.
        num_bytes: its size.
        modified: its modification time, seconds since the epoch.
    """

    path: Path
    iteration: int
    num_bytes: int
    modified: float
    update: int = 0

    @property
    def reached(self) -> tuple[int, int]:
        """(complete iterations, updates done of the next one), by its name."""
        return self.iteration, self.update


def list_checkpoints(directory: str | os.PathLike[str]) -> list[Entry]:
    """The regular files iter_N.safetensors, iter_N_update_M.safetensors and iter_N.pt, in order.

    Symlinks, temporaries and other people's files are left out, and so is a file that
    vanishes meanwhile. A directory that does not exist has none.
    """
    entries = []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(directory) as items:
        for item in items:
            match = CHECKPOINT_NAME.fullmatch(item.name)
            with suppress(FileNotFoundError):
                if match and item.is_file(follow_symlinks=False):
                    facts = item.stat(follow_symlinks=False)
                    path = Path(directory) / item.name
                    iteration, update = int(match["iteration"]), int(match["update"] or 0)
                    size, time = facts.st_size, facts.st_mtime
                    entries.append(Entry(path, iteration, size, time, update))
    return sorted(entries, key=lambda entry: (entry.reached, entry.path.name))


def pointed(link: Path) -> Path | None:
    """The file that `latest` or `best` means, whatever they are; None when it is not there.

    A symlink, a pointer file, a hard link (the checkpoint of that name is found), or a copy,
    which means itself.
    """
    path = followed(link)
    try:
        facts = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(facts.st_mode):
        return None
    if facts.st_nlink > 1 and not CHECKPOINT_NAME.fullmatch(path.name):
        for entry in list_checkpoints(path.parent):
            with suppress(FileNotFoundError):
                if os.path.samestat(entry.path.lstat(), facts):
                    return entry.path
    return path


def pointers(directory: Path) -> dict[str, str]:
    """Real path -> name of what leads there in `directory`: `latest`, `best` or people's own.

    Symlinks, hard links and pointer files count; it has none when it does not exist.
    """
    found: dict[str, str] = {}
    others: list[tuple[os.stat_result, str]] = []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(directory) as items:
        for item in items:
            with suppress(FileNotFoundError):
                path = directory / item.name
                if CHECKPOINT_NAME.fullmatch(item.name) and not item.is_symlink():
                    continue
                if pointer_of(path) is not None:
                    found[str(followed(path))] = item.name
                elif item.stat().st_nlink > 1:
                    others.append((item.stat(), item.name))
    for entry in list_checkpoints(directory) if others else ():
        with suppress(FileNotFoundError):
            facts = entry.path.lstat()
            for other, name in others:
                if os.path.samestat(other, facts):
                    found[os.path.realpath(entry.path)] = name
    return found


def newest_valid(
    directory: str | os.PathLike[str], *, foreign: bool = False, intact: bool = False
) -> CheckpointHeader | None:
    """The whole checkpoint that has come furthest, or None.

    Args:
        directory: the checkpoints folder.
        foreign: whether .pt files count too.
        intact: read every byte, and pass over files that are not what was written.
    """
    for entry in reversed(list_checkpoints(directory)):
        if foreign or entry.path.suffix != ".pt":
            with suppress(CheckpointError):
                return read_intact(entry.path) if intact else read_header(entry.path)
    return None


def remove_temporaries(directory: str | os.PathLike[str]) -> list[Path]:
    """Delete what a killed writer left half-written; call it only while holding the lock.

    Works on an experiment's directory and on its checkpoints folder. Only names that this
    program writes are taken.

    Returns:
        what was removed.
    """
    removed = []
    for path in Path(directory).glob(f".*{TEMPORARY_MARK}*"):
        if _LEFTOVER.fullmatch(path.name):
            remove_temporary(path)
            if not os.path.lexists(path):
                removed.append(path)
    return removed
