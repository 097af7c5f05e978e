"""Room for the batches of worker processes: shared memory and open files.

Workers hand batches over in /dev/shm, each tensor as an open file. In a container that is 64 MB
unless somebody asks for more.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

from imgtool.errors import LoaderError
from imgtool.units import count, format_bytes

Say = Callable[[str], None]

SHARED_MEMORY = Path("/dev/shm")
FEWER = "fewer --num-workers, or --num-workers 0"
MORE_MEMORY = f"more shared memory (docker run --shm-size 8g), {FEWER}"
MORE_FILES = f"a higher `ulimit -n`, {FEWER}"
PREFETCH = 2  # batches that each worker is ahead
TENSORS = 5  # of a batch, at most
_FILES_A_WORKER, _FILES_BESIDE = 8, 64  # queues; logs, checkpoints, libraries
_MARGIN = 32  # files that sending a batch may open for a moment


def affordable(num_workers: int, batch_bytes: int, held: int, local_ranks: int, say: Say) -> int:
    """The largest number of workers, up to `num_workers`, whose batches there is room for.

    The limit of open files is raised where that helps and is allowed. A smaller number is said.

    Args:
        batch_bytes: shared memory of one batch.
        held: batches that the main process keeps at a time.
        local_ranks: processes of the training on this machine; each starts as many workers.
    """
    free = _free_bytes()
    if free is not None:
        share = free // local_ranks
        fitting = max(0, (share // max(1, batch_bytes) - held) // PREFETCH)
        if fitting < num_workers:
            need = (PREFETCH * num_workers + held) * batch_bytes
            say(
                f"warning: {SHARED_MEMORY} has {format_bytes(share)} free for this process and "
                f"batches of {num_workers} workers may take {format_bytes(need)}: "
                f"{_instead(fitting)} ({MORE_MEMORY})"
            )
            num_workers = fitting
    return _with_files(num_workers, held, say)


def _free_bytes() -> int | None:
    """Free shared memory; None where there is no such file system."""
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _with_files(num_workers: int, held: int, say: Say) -> int:
    beside = _open_files() + _FILES_BESIDE + held * TENSORS
    each = _FILES_A_WORKER + PREFETCH * TENSORS
    need = beside + num_workers * each
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or need <= soft or not num_workers:
        return num_workers
    wanted = need if hard == resource.RLIM_INFINITY else min(need, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # macOS has a lower limit of its own
        wanted = soft
    fitting = max(0, (wanted - beside) // each)
    if fitting < num_workers:
        say(
            f"warning: {wanted} files may be open and batches of {num_workers} workers may take "
            f"{need}: {_instead(fitting)} ({MORE_FILES})"
        )
    return min(num_workers, fitting)


def _instead(num_workers: int) -> str:
    if num_workers:
        return f"{count(num_workers, 'worker')} instead"
    return "the main process loads images itself"


def _open_files() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder))
        except OSError:
            continue
    return _MARGIN


def files_left() -> bool:
    """Whether a batch can still be sent, for which files are opened."""
    opened: list[int] = []
    try:
        for _ in range(_MARGIN):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return False
    finally:
        for number in opened:
            os.close(number)
    return True


def too_many_files() -> LoaderError:
    """What is wrong when files_left() is false."""
    return LoaderError("too many open files to hand over a batch", hint=MORE_FILES)


def refused(error: Exception) -> LoaderError:
    """An error of the system, met where shared memory or workers were asked for."""
    if not files_left():
        return too_many_files()
    reason = " ".join(str(error).split())
    if os.strerror(errno.ENOSPC) in reason:
        free = _free_bytes()
        left = "" if free is None else f" ({format_bytes(free)} free)"
        return LoaderError(f"{SHARED_MEMORY} is full{left}: {reason}", hint=MORE_MEMORY)
    return LoaderError(f"loader workers got no room: {reason}", hint=MORE_MEMORY)
