"""What the ranks of a training leave for the launcher above them: their pid, and how they ended.

torchrun's own exit code is 1 whatever its ranks end with, and it hides who was the first.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from imgtool.errors import ExitCode
from imgtool.process.child import end_with_parent
from imgtool.process.stopping import SIGNALS

FOLDER_VARIABLE = "IMGTOOL_RANKS_DIR"


@dataclass(frozen=True)
class Word:
    """How a rank ended: its exit code, and when (seconds since the epoch)."""

    code: int
    at: float


def _place(environment: Mapping[str, str]) -> str:
    """Its number among the ranks of this host, which this host's launcher knows it by."""
    return environment.get("LOCAL_RANK") or environment["RANK"]


@contextmanager
def speaking(environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Be a rank while the block runs: it says who it is, and at last how it ended.

    A stop that comes before StopRequest is installed waits for it. When torchrun dies, the
    kernel interrupts the rank, which saves and stops.
    """
    folder, rank = Path(environment[FOLDER_VARIABLE]), _place(environment)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    end_with_parent(signal.SIGINT)
    _leave(folder / f"pid_{rank}", os.getpid())
    code: int = ExitCode.NO
    try:
        yield
        code = ExitCode.OK
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
        raise
    finally:
        say_code(code, environment)


def say_code(code: int, environment: Mapping[str, str] = os.environ) -> None:
    """What this process ends with, for one that ends without unwinding; nothing without a launcher."""
    if {FOLDER_VARIABLE, "RANK"} <= environment.keys():
        path = Path(environment[FOLDER_VARIABLE]) / f"code_{_place(environment)}"
        _leave(path, {"code": int(code), "at": time.time()})


@contextmanager
def saving(environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Ask the launcher for patience while the block runs; nothing without a launcher."""
    if not {FOLDER_VARIABLE, "RANK"} <= environment.keys():
        yield
        return
    path = Path(environment[FOLDER_VARIABLE]) / f"saving_{_place(environment)}"
    _leave(path, os.getpid())
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()


def is_saving(folder: Path, rank: int) -> bool:
    """Whether a rank writes something that should not be cut short."""
    return (folder / f"saving_{rank}").exists()


def is_news(text: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether no rank has shown this error to people yet; always true without a launcher."""
    if not {FOLDER_VARIABLE, "RANK"} <= environment.keys():
        return True
    bare = re.sub(r"^rank \d+: ", "", text)  # another rank's error, as those who follow say it
    name = hashlib.blake2b(bare.encode(), digest_size=8).hexdigest()
    try:
        (Path(environment[FOLDER_VARIABLE]) / f"said_{name}").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def _leave(path: Path, content: object) -> None:
    with suppress(OSError):  # on a full disk the launcher says that this rank was silent
        temporary = path.with_name(f".{path.name}")
        temporary.write_text(json.dumps(content), encoding="utf-8")
        os.replace(temporary, path)


def pid_of(folder: Path, rank: int) -> int | None:
    """The process of a rank that can be signalled; None while it is not there."""
    try:
        return int((folder / f"pid_{rank}").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_words(folder: Path, num_ranks: int) -> dict[int, Word]:
    """The last words of those ranks that left any."""
    found = {}
    for rank in range(num_ranks):
        with suppress(OSError, ValueError, TypeError):
            content = json.loads((folder / f"code_{rank}").read_text(encoding="utf-8"))
            found[rank] = Word(**content)
    return found


def verdict(
    words: Mapping[int, Word], failures: Mapping[int, int], num_ranks: int
) -> tuple[int, list[str]]:
    """The exit code of all ranks together, and lines on those that could not say anything.

    Args:
        words: of `read_words`.
        failures: rank -> exit code as torchrun saw it, -n for signal n; only of those that
            failed by themselves.
        num_ranks: how many there are.

    Returns:
        0 if every rank ended with 0; 1 if one was killed; else the code of the first to fail.
    """
    silent = [rank for rank in range(num_ranks) if rank not in words]
    failed = sorted((word.at, word.code) for word in words.values() if word.code)
    lines = [f"rank {rank} {_how(failures.get(rank))}" for rank in silent]
    if failed and not any(rank in failures for rank in silent):
        return failed[0][1], lines
    return (ExitCode.NO if silent else ExitCode.OK), lines


def _how(code: int | None) -> str:
    if code is None:
        return "was ended before it could say how it stands"
    if code >= 0:
        return f"ended with code {code} and did not say why"
    name = signal.Signals(-code).name
    hint = "; the machine may be out of memory" if -code == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"
