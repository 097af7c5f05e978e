"""The processes below this one, as /proc shows them: nothing of a child is left behind.

torchrun puts every rank into a session of its own, and daemons leave their parent; signals to
a process group reach neither. A subreaper inherits them instead, so that they stay findable as
descendants of this process. Where there is no /proc (not Linux), nothing is found.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass

_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Process:
    """A living process.

    Attributes:
        pid, parent: its own number and its parent's.
        started: clock ticks since boot; with the pid it names one process for good.
        name: of its program, 15 characters at most.
    """

    pid: int
    parent: int
    started: int
    name: str


def become_subreaper() -> bool:
    """Inherit orphaned descendants from now on; False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        import ctypes

        return ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    except (ImportError, OSError, AttributeError):
        return False


def children() -> frozenset[int]:
    """The direct children of this process, zombies included."""
    own = os.getpid()
    return frozenset(found[0].pid for found in _all() if found[0].parent == own)


def descendants(
    excluded: frozenset[int] = frozenset(), *, root: int | None = None
) -> list[Process]:
    """Every living process below this one, parents first.

    Args:
        excluded: direct children that, with all below them, do not count.
        root: below this process instead.
    """
    below: dict[int, list[tuple[Process, str]]] = {}
    for process, state in _all():
        below.setdefault(process.parent, []).append((process, state))
    found = []
    queue = [entry for entry in below.get(root or os.getpid(), []) if entry[0].pid not in excluded]
    while queue:
        process, state = queue.pop(0)
        if state not in "ZX":  # a zombie is dead, but its children may live
            found.append(process)
        queue.extend(below.get(process.pid, []))
    return found


def send(process: Process, number: signal.Signals) -> bool:
    """Signal a process, unless it has ended and its number belongs to another one."""
    found = _read(process.pid)
    if found is None or found[0].started != process.started:
        return False
    with suppress(OSError):
        os.kill(process.pid, number)
        return True
    return False


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


def _all() -> list[tuple[Process, str]]:
    try:
        names = os.listdir("/proc")
    except OSError:
        return []
    found = (_read(int(name)) for name in names if name.isdigit())
    return [entry for entry in found if entry is not None]


def _read(pid: int) -> tuple[Process, str] | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            head, _, tail = file.read().rpartition(b")")
        words = tail.split()
        name = head.partition(b"(")[2].decode(errors="replace")
        return Process(pid, int(words[1]), int(words[19]), name), words[0].decode()
    except (OSError, ValueError, IndexError):
        return None
