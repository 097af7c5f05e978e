"""Whether a process that a file names still lives."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from typing import Any

START_SLACK_SEC = 2.0  # the times in files are whole seconds


def is_process(host: Any, pid: Any, *, ticks: Any = None, started: Any = None) -> bool:
    """Whether `pid` runs on this host and is the same process still; a zombie does not run.

    Args:
        host, pid: as a file says.
        ticks: its start in clock ticks since boot, where the file has it.
        started: else a time at which it had been running already.
    """
    if host != socket.gethostname() or type(pid) is not int or pid <= 1:
        return False
    if not sys.platform.startswith("linux"):
        return _exists(pid)
    found = _read(pid)
    if found is None or found[0] in "ZX":
        return False
    if isinstance(ticks, int):
        return found[1] == ticks
    when, boot = parse_time(started), _boot_time()
    if when is None or boot is None:
        return True
    return boot + found[1] / os.sysconf("SC_CLK_TCK") <= when.timestamp() + START_SLACK_SEC


def parse_time(text: Any) -> datetime | None:
    """A time of status.json or job.json; None when there is none that can be read."""
    try:
        when = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _read(pid: int) -> tuple[str, int] | None:
    """State letter, and start in clock ticks since boot."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b")")[2].split()
        return words[0].decode(), int(words[19])
    except (OSError, ValueError, IndexError):
        return None


@cache
def _boot_time() -> float | None:
    with suppress(OSError, ValueError, IndexError), open("/proc/stat", "rb") as file:
        for line in file:
            if line.startswith(b"btime"):
                return float(line.split()[1])
    return None
