"""Whether a process that a file names still lives, and is the same one.

A pid alone names no process for good; with its start it does. Files hold the start in clock
ticks since boot, which no change of the clock moves.
"""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil

SUPERVISOR_VARIABLE = "IMGTOOL_SUPERVISOR"  # whoever limits this process's time, as `word_of`
START_SLACK_SEC = 2.0  # the times in files are whole seconds


def is_process(host: Any, pid: Any, *, ticks: Any = None, started: Any = None) -> bool:
    """Whether `pid` runs on this host and is the same process still; a zombie does not run.

    Args:
        host, pid: as a file says.
        ticks: its start in clock ticks since boot, where the file has it.
        started: else a time at which it had been running already.
    """
    import psutil

    if host != socket.gethostname() or type(pid) is not int or pid <= 1:
        return False
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return False
        if isinstance(ticks, int):
            return _ticks(process) == ticks
        when = parse_time(started)
        return when is None or process.create_time() <= when.timestamp() + START_SLACK_SEC
    except psutil.AccessDenied:
        return True  # another user's, of whom nothing more can be known
    except psutil.NoSuchProcess:
        return _is_hidden(pid)


def is_ancestor(pid: Any) -> bool:
    """Whether this process was started by process `pid` of this host, or by one below it."""
    import psutil

    try:
        return pid in {parent.pid for parent in psutil.Process().parents()}
    except psutil.Error:
        return False


def _is_hidden(pid: int) -> bool:
    """Whether it is another user's, and /proc is mounted so that it shows none of those."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        pass
    return False


def start_ticks(pid: int) -> int | None:
    """When a process of this machine started, in clock ticks since boot; None if unknown."""
    import psutil

    try:
        return _ticks(psutil.Process(pid))
    except psutil.Error:
        return None


def word_of(pid: int) -> str:
    """A process of this machine in a word: `1234:5678`, its number and its start in ticks."""
    return f"{pid}:{start_ticks(pid) or ''}"


def is_word_alive(word: str) -> bool:
    """Whether the process of a `word_of` on this host lives; not if the word is none."""
    pid, _, ticks = word.partition(":")
    if not pid.isdecimal():
        return False
    return is_process(
        socket.gethostname(), int(pid), ticks=int(ticks) if ticks.isdecimal() else None
    )


def parse_time(text: Any) -> datetime | None:
    """A time of status.json or job.json; None when there is none that can be read."""
    try:
        when = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _ticks(process: psutil.Process) -> int:
    import psutil

    while True:  # psutil adds the time of boot, which moves when the clock is set
        boot = psutil.boot_time()
        started = process.create_time()
        if psutil.boot_time() == boot:
            return round((started - boot) * os.sysconf("SC_CLK_TCK"))
