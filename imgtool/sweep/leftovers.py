"""What a trial leaves behind when its first process has ended."""

from __future__ import annotations

import os
from contextlib import suppress

from imgtool.training import processes

MARK = "IMGTOOL_TRIAL_DIR"  # in the environment of a trial and of everything below it


def orphans(
    leader: int, exp_dir: str, *, others: frozenset[int], alone: bool
) -> list[processes.Process]:
    """Living processes that outlived a leader; this process is their subreaper.

    Args:
        leader: its pid, which was the number of its session too.
        exp_dir: the trial's directory, as MARK says in the environment.
        others: our direct children that, with all below them, are not meant.
        alone: no other trial runs, so that everything else is the leader's.
    """
    if _direct_children() <= others | {leader}:
        return []  # cheaper than a look at every process of the machine
    mark = f"{MARK}={exp_dir}".encode()
    found = processes.descendants(others)
    return [process for process in found if alone or _is_of(process.pid, leader, mark)]


def _direct_children() -> frozenset[int]:
    own = f"/proc/{os.getpid()}/task"
    found: set[int] = set()
    try:
        for task in os.listdir(own):
            with open(f"{own}/{task}/children", "rb") as file:
                found |= set(map(int, file.read().split()))
    except (OSError, ValueError):
        return processes.children()
    return frozenset(found)


def _is_of(pid: int, leader: int, mark: bytes) -> bool:
    with suppress(OSError):
        if os.getsid(pid) == leader:
            return True
    with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
        return mark in file.read().split(b"\0")
    return False
