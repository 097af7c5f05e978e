"""The processes below this one: nothing of a child is left behind.

torchrun puts every rank into a session of its own, and daemons leave their parent; signals to
a process group reach neither. A subreaper inherits them instead, so that they stay findable as
descendants of this process.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

MARK = "IMGTOOL_TRIAL_DIR"  # in the environment of a trial and of everything below it
_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> bool:
    """Inherit orphaned descendants from now on; False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        import ctypes

        return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (ImportError, OSError, AttributeError):
        return False


def children() -> frozenset[int]:
    """The direct children of this process, zombies included."""
    import psutil

    return frozenset(child.pid for child in psutil.Process().children())


def descendants(
    excluded: frozenset[int] = frozenset(), *, root: int | None = None
) -> list[psutil.Process]:
    """Every living process below this one, parents first.

    Args:
        excluded: children that, with all below them, do not count.
        root: below this process instead.
    """
    import psutil

    found, skipped = [], set(excluded)
    with suppress(psutil.Error):
        for process in psutil.Process(root).children(recursive=True):
            with suppress(psutil.Error):
                if process.pid in skipped or process.ppid() in skipped:
                    skipped.add(process.pid)
                else:
                    found.append(process)
    return living(found)


def living(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; one that only waits to be reaped does not."""
    import psutil

    found = []
    for process in processes:
        with suppress(psutil.Error):
            dead = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
            if not dead and process.is_running():
                found.append(process)
    return found


def orphans(
    leader: int, exp_dir: str, *, others: frozenset[int], alone: bool
) -> list[psutil.Process]:
    """Living processes that outlived a leader; this process is their subreaper.

    Args:
        leader: its pid, which was the number of its session too.
        exp_dir: the trial's directory, as MARK says in the environment.
        others: our direct children that, with all below them, are not meant.
        alone: no other trial runs, so that everything else is the leader's.
    """
    found = descendants(others)
    return [process for process in found if alone or _is_of(process, leader, exp_dir)]


def _is_of(process: psutil.Process, leader: int, exp_dir: str) -> bool:
    import psutil

    with suppress(OSError):
        if os.getsid(process.pid) == leader:
            return True
    with suppress(psutil.Error):
        return process.environ().get(MARK) == exp_dir
    return False


def names(processes: Iterable[psutil.Process]) -> str:
    """Their programs, for people."""
    import psutil

    found = set()
    for process in processes:
        with suppress(psutil.Error):
            found.add(process.name())
    return ", ".join(sorted(found))


def send(process: psutil.Process, number: signal.Signals) -> bool:
    """Signal a process, unless it has ended and its number belongs to another one."""
    import psutil

    with suppress(psutil.Error, OSError):
        process.send_signal(number)
        return True
    return False


def send_all(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Signal each of them."""
    for process in processes:
        send(process, number)


def reap(excluded: frozenset[int]) -> None:
    """Collect adopted children that have ended, so that no zombie stays.

    Args:
        excluded: children whose end someone else waits for.
    """
    if not hasattr(os, "waitid"):
        return
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None:
            return
        if ended.si_pid in excluded:  # it hides the others from P_ALL
            for pid in children() - excluded:
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            return
        with suppress(ChildProcessError):
            os.waitpid(ended.si_pid, os.WNOHANG)
