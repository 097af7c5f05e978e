"""Waiting for what other processes do. No test is timed: the limits only end one that hangs."""

import time
from pathlib import Path


def wait_until(condition, seconds=120.0):
    """What `condition` gives, once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
    return found


def is_alive(pid):
    """Whether it runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
